"""Node-local runs for real: HTTP, WebSockets, the engine process, files; beside the agent's orders."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.integration.webui_node import TOKEN, Node, generate, is_alive, order, wait_for
from webui.tiny_models import make_checkpoint, make_motion_module

RUN = {"prompt": "a cat", "width": 64, "height": 64, "frames": 3, "steps": 4, "seed": 3}
FAULTS = json.dumps({"kill_at_step": 2, "only_prompt_contains": "CRASH"})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    running = Node(tmp_path_factory.mktemp("node"), APPLIANCE_SYNTHETIC_FAULTS=FAULTS)
    try:
        running.wait("ok")
        yield running
        assert "stack_trace" not in running.written_log()
        assert "uvicorn" not in running.written_log()
    finally:
        running.close()


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def start(name: str = "node", **options: Any) -> Node:
            started = Node(tmp_path / name, **options)
            stack.callback(started.close)
            started.wait("ok")
            return started

        yield start


def submit(node: Node, **fields: Any) -> str:
    answer = node.client.post("/local/runs", json=RUN | fields)
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["id"]
    return run_id


def view(node: Node, run_id: str) -> dict[str, Any]:
    answer = node.client.get(f"/local/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    seen: dict[str, Any] = answer.json()
    return seen


def ended(node: Node, run_id: str, seconds: float = 10) -> dict[str, Any]:
    over: dict[str, Any] = wait_for(
        lambda: seen if (seen := view(node, run_id))["state"] not in ("queued", "running") else None, seconds
    )
    return over


def wait_until_running(node: Node, run_id: str) -> None:
    wait_for(lambda: view(node, run_id)["step"] > 0)


def follow(node: Node, run_id: str, **headers: str) -> ClientConnection:
    given = {"Authorization": f"Bearer {TOKEN}", **headers}
    return connect(f"ws://127.0.0.1:{node.port}/local/runs/{run_id}/ws", additional_headers=given)


def test_a_run_leaves_files_that_can_be_fetched_whole_and_in_parts(node: Node) -> None:
    done = ended(node, submit(node, format=["mp4", "gif"]))
    assert (done["state"], done["step"], done["error"]) == ("done", 4, None)
    assert done["parameters"]["seed"] == 3
    assert [file["media_type"] for file in done["files"]] == ["video/mp4", "image/gif"]
    for file in done["files"]:
        answer = node.client.get("/" + file["url"])
        assert answer.headers["content-type"] == file["media_type"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["content-disposition"].startswith("inline")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        part = node.client.get("/" + file["url"], headers={"Range": "bytes=5-14"})
        assert (part.status_code, part.content) == (206, answer.content[5:15])
        saved = node.client.get(f"/{file['url']}?download")
        assert saved.headers["content-disposition"].startswith("attachment")
    with av.open(io.BytesIO(node.client.get("/" + done["files"][0]["url"]).content)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
    assert node.client.get(f"/local/runs/{done['id']}/files/2").status_code == 404


def test_nothing_of_a_run_reaches_the_jobs_volume(node: Node) -> None:
    before = sorted(node.jobs.rglob("*"))
    ended(node, submit(node))
    assert sorted(node.jobs.rglob("*")) == before


def test_a_run_that_is_over_can_be_removed(node: Node) -> None:
    run_id = ended(node, submit(node))["id"]
    assert node.client.delete(f"/local/runs/{run_id}").status_code == 204
    for call in (node.client.get, node.client.delete):
        answer = call(f"/local/runs/{run_id}")
        assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
    assert node.client.get(f"/local/runs/{run_id}/files/0").status_code == 404


def test_the_agent_and_local_runs_share_one_engine(node: Node) -> None:
    run_id = submit(node, steps=20)
    wait_until_running(node, run_id)
    answer = node.client.post("/internal/generate", json=order())
    assert (answer.status_code, answer.json()["job"]) == (409, "local")
    ping = node.ping()
    assert ping is not None
    assert (ping.json()["busy"], run_id in ping.text) == ("local", False)
    for job in ("local", run_id, None):
        stopped = node.client.post("/internal/interrupt", json={"job": job})
        assert stopped.json()["stopped"] is False
    assert ended(node, run_id)["state"] == "done"


def test_a_local_run_waits_for_the_agents_order(node: Node) -> None:
    body = order(steps=10)
    with node.client.stream("POST", "/internal/generate", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        run_id = submit(node)
        seen = view(node, run_id)
        assert (seen["state"], seen["position"], seen["blocked_by"]) == ("queued", 1, "cluster")
        facts = node.client.get("/local/node").json()
        assert (facts["busy"], facts["line"]) == ("cluster", {"waiting": 1, "running": False})
        assert [json.loads(line)["event"] for line in lines][-1] == "done"
    assert ended(node, run_id)["state"] == "done"


def test_a_waiting_agent_gets_its_turn_between_two_local_runs(node: Node) -> None:
    first, second = submit(node, steps=10), submit(node)
    wait_until_running(node, first)
    assert node.client.get("/internal/ping").json()["busy"] == "local"  # the agent looks, with its token
    ended(node, first)
    free = wait_for(lambda: node.client.get("/internal/ping").json()["busy"] is None)
    assert free
    assert generate(node, order())[-1]["event"] == "done"
    assert view(node, second)["state"] != "done" or view(node, second)["started_at"] > view(node, first)["finished_at"]
    assert ended(node, second)["started_at"] - view(node, first)["finished_at"] > 0.2, "the agent's job came between"


def test_cancelling_stops_within_a_step_and_frees_the_engine(node: Node) -> None:
    run_id, waiting = submit(node, steps=150), submit(node, steps=150)
    wait_until_running(node, run_id)
    pid = node.child()
    started = time.monotonic()
    assert node.client.delete(f"/local/runs/{waiting}").json()["state"] == "cancelled"
    assert node.client.delete(f"/local/runs/{run_id}").status_code == 202
    over = ended(node, run_id)
    assert (over["state"], over["files"], over["error"]) == ("cancelled", [], None)
    assert time.monotonic() - started < 2
    assert node.child() == pid, "cancelling costs no restart"
    assert ended(node, submit(node))["state"] == "done"


def test_a_dying_engine_fails_one_run_and_the_next_goes_on(node: Node) -> None:
    first, second = submit(node, prompt="CRASH"), submit(node)
    over = ended(node, first)
    assert (over["state"], over["error"]["reason"]) == ("error", "HOST_OOM")
    assert ended(node, second, 20)["state"] == "done"


def test_the_line_is_bounded(node: Node) -> None:
    first = submit(node, steps=150)
    wait_until_running(node, first)
    waiting = [submit(node) for _ in range(8)]
    refused = node.client.post("/local/runs", json=RUN)
    assert (refused.status_code, refused.json()["type"]) == (503, "line-full")
    assert refused.headers["retry-after"]
    assert [view(node, run_id)["position"] for run_id in waiting] == list(range(1, 9))
    for run_id in [*waiting, first]:
        node.client.delete(f"/local/runs/{run_id}")
    ended(node, first)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["prompt"]),
        ({"prompt": "x", "width": 7, "steps": 0, "nonsense": 1}, ["nonsense", "steps", "width"]),
        ({"prompt": "x", "model": "unknown"}, ["model"]),
        ({"prompt": "x", "sampler": "unknown"}, ["sampler"]),
        ([], ["body"]),
    ],
)
def test_bad_input_is_named_field_by_field(node: Node, body: Any, fields: list[str]) -> None:
    answer = node.client.post("/local/runs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert sorted(error["field"] for error in answer.json()["errors"]) == fields


def test_pages_of_others_can_order_and_cancel_nothing(node: Node) -> None:
    foreign = {"Origin": "http://evil.example"}
    run_id = ended(node, submit(node))["id"]
    assert node.client.post("/local/runs", json=RUN, headers=foreign).status_code == 403
    assert node.client.delete(f"/local/runs/{run_id}", headers=foreign).status_code == 403
    form = {"Content-Type": "text/plain"}  # what a browser sends anywhere without asking
    assert node.client.post("/local/runs", content=json.dumps(RUN), headers=form).status_code == 415
    with pytest.raises(InvalidStatus, match="403"):
        follow(node, run_id, Origin="http://evil.example")
    with follow(node, run_id, Origin=f"http://127.0.0.1:{node.port}") as socket:
        assert json.loads(socket.recv())["event"] == "done"


def test_nothing_answers_without_the_token(node: Node) -> None:
    run_id = ended(node, submit(node))["id"]
    for path in ("runs", "choices", "node", f"runs/{run_id}", f"runs/{run_id}/files/0"):
        assert node.stranger.get(f"/local/{path}").status_code == 401
    for given in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{node.port}/local/runs/{run_id}/ws", additional_headers=given)


def test_others_runs_are_counted_but_not_shown(node: Node) -> None:
    mine, theirs = (ended(node, submit(node))["id"] for _ in range(2))
    listed = node.client.get("/local/runs", params={"ids": f"{mine},{'0' * 32}"})
    assert [run["id"] for run in listed.json()["runs"]] == [mine]
    assert theirs not in node.client.get("/local/runs").text


def test_a_socket_tells_everything_and_can_come_back(node: Node) -> None:
    run_id = submit(node, steps=30, width=256, height=256)
    with follow(node, run_id) as socket:
        first = json.loads(socket.recv())
        assert (first["event"] in ("queued", "running"), first["run"]["id"]) == (True, run_id)
        preview = next(message for line in socket if (message := json.loads(line))["event"] == "preview")
        jpeg = base64.b64decode(preview["image"].removeprefix("data:image/jpeg;base64,"))
        assert jpeg[:2] == b"\xff\xd8"
    with follow(node, run_id) as socket:  # gone, and back
        messages = [json.loads(line) for line in socket]
        assert socket.close_code == 1000
    again = [message["run"]["step"] for message in messages if message["event"] == "running"]
    assert again == sorted(again)
    assert again[0] > 0
    assert len(set(again)) > 5
    assert messages[-1]["event"] == "done"
    assert node.client.get("/" + messages[-1]["run"]["files"][0]["url"]).status_code == 200
    with follow(node, run_id) as socket:
        assert [json.loads(line)["event"] for line in socket] == ["done"]


def test_sockets_of_unknown_runs_and_too_many_are_refused(node: Node) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        follow(node, "0" * 32)
    run_id = submit(node, steps=150)
    with ExitStack() as stack:
        sockets = [stack.enter_context(follow(node, run_id)) for _ in range(32)]
        assert all(json.loads(socket.recv())["run"]["id"] == run_id for socket in sockets)
        one_more = stack.enter_context(follow(node, run_id))
        with pytest.raises(ConnectionClosed) as closed:
            one_more.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
    wait_for(lambda: can_follow(node, run_id))
    node.client.delete(f"/local/runs/{run_id}")


def can_follow(node: Node, run_id: str) -> bool:
    with follow(node, run_id) as socket:
        try:
            return bool(socket.recv(timeout=5))
        except ConnectionClosed:
            return False


def test_a_client_that_never_reads_holds_up_nothing(node: Node) -> None:
    """A real socket with a window of a few kB: what it does not take must wait nowhere for ever."""
    run_id = submit(node, steps=60, prompt="x" * 3000)
    before = connections(node)
    key = base64.b64encode(bytes(16)).decode()
    head = f"GET /local/runs/{run_id}/ws HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    with ExitStack() as stack:
        for _ in range(3):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", node.port))
            deaf.sendall(f"{head}\r\n".encode())
            assert deaf.recv(12) == b"HTTP/1.1 101"
        with follow(node, run_id) as quick:
            seen = [json.loads(line)["event"] for line in quick]
        assert seen[-1] == "done"
        assert ended(node, submit(node))["state"] == "done"
        # Each ends 10 s after its message or its farewell was not taken.
        wait_for(lambda: connections(node) <= before, 25)


def connections(node: Node) -> int:
    """Established ones, counted at the node's end."""
    rows = [line.split() for line in Path(f"/proc/{node.process.pid}/net/tcp").read_text().splitlines()]
    return sum(row[1].endswith(f":{node.port:04X}") and row[3] == "01" for row in rows)


def test_whoever_talks_on_a_socket_is_not_heard(node: Node) -> None:
    run_id = submit(node, steps=20)
    with follow(node, run_id) as socket:
        socket.send("cancel")
        assert json.loads(list(socket)[-1])["event"] == "done"
    run_id = submit(node, steps=40)
    with follow(node, run_id) as socket:
        socket.send("x" * 10_000)
        list(messages_until_closed(socket))
        assert socket.close_code == 1009
    assert ended(node, run_id)["state"] == "done"


def test_shutdown_ends_runs_and_sockets_in_time_and_leftovers_go(new_node: Callable[..., Node], tmp_path: Path) -> None:
    node = new_node()
    kept = ended(node, submit(node))["id"]
    running, waiting = submit(node, steps=150), submit(node)
    wait_until_running(node, running)
    folder = tmp_path / "node" / "scratch" / "local"
    assert (folder / kept / "video.mp4").is_file()
    child = node.child()
    with follow(node, running) as mine, follow(node, waiting) as other:
        node.process.send_signal(signal.SIGTERM)
        for socket in (mine, other):
            last = json.loads(list(messages_until_closed(socket))[-1])
            assert (last["event"], last["run"]["error"]["reason"]) == ("error", "WORKER_LOST")
    assert node.process.wait(9) == 0
    assert not is_alive(child)
    assert "stack_trace" not in node.written_log()
    again = new_node(name="again", APPLIANCE_SCRATCH_DIR=str(tmp_path / "node" / "scratch"))
    assert list(folder.iterdir()) == []
    assert again.client.get(f"/local/runs/{kept}").status_code == 404


def messages_until_closed(socket: ClientConnection) -> Iterator[str]:
    try:
        while True:
            yield str(socket.recv(timeout=8))
    except ConnectionClosed:
        return


def test_a_node_without_scratch_says_so_and_serves_the_cluster(new_node: Callable[..., Node], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    node = new_node(APPLIANCE_SCRATCH_DIR=str(tmp_path / "file" / "x"))
    answer = node.client.post("/local/runs", json=RUN)
    assert (answer.status_code, "scratch" in answer.json()["detail"]) == (503, True)
    assert generate(node, order())[-1]["event"] == "done"


def test_the_real_engine_draws_shows_previews_and_repeats_itself(new_node: Callable[..., Node], tmp_path: Path) -> None:
    models = tmp_path / "node" / "models"
    for kind, make in (("checkpoint", make_checkpoint), ("motion_module", make_motion_module)):
        (models / kind).mkdir(parents=True)
        make(models / kind / "tiny")
    node = Node(
        tmp_path / "node",
        APPLIANCE_ENGINE="diffusers",
        APPLIANCE_CHECKPOINT="tiny",
        APPLIANCE_MOTION_MODULE="tiny",
    )
    try:
        node.wait("ok", 60)
        choices = node.client.get("/local/choices").json()
        assert (choices["checkpoints"], choices["synthetic"]) == (["tiny"], False)
        first = submit(node, frames=4, steps=3)
        with follow(node, first) as socket:
            events = [json.loads(line)["event"] for line in socket]
        assert "preview" in events
        second = submit(node, frames=4, steps=3)
        files = [ended(node, run_id, 30)["files"][0] for run_id in (first, second)]
        assert files[0]["sha256"] == files[1]["sha256"]
        picture = base64.b64encode(png(64, 64)).decode()
        third = ended(node, submit(node, frames=4, steps=3, init_image=picture), 30)
        assert third["state"] == "done", third["error"]
        assert third["request"]["init_image"] is not None
        assert third["files"][0]["sha256"] != files[0]["sha256"]
        bad = node.client.post("/local/runs", json=RUN | {"init_image": "bm90IGFuIGltYWdl"})
        assert [error["field"] for error in bad.json()["errors"]] == ["init_image"]
    finally:
        node.close()


def png(width: int, height: int) -> bytes:
    target = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(target, "PNG")
    return target.getvalue()


def test_the_page_and_its_files_are_served_with_a_strict_policy(node: Node) -> None:
    page = node.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for name in ("page/app.js", "page/form.js", "page/style.css", "page/icon.svg", "docs"):
        answer = node.client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        known = {"If-None-Match": answer.headers["etag"]}
        assert node.client.get(f"/{name}", headers=known).status_code == 304
