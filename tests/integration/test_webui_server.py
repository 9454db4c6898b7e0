"""The server for real: `python -m webui serve` with the synthetic engine, over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from safetensors.numpy import save_file

from tests.integration.metrics_text import value_of
from tests.integration.webui_node import ROOT, TOKEN, Node, generate, is_alive, order, wait_for


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    running = Node(tmp_path_factory.mktemp("node"))
    try:
        running.wait("ok")
        yield running
    finally:
        running.close()


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def start(**options: Any) -> Node:
            started = Node(tmp_path, **options)
            stack.callback(started.close)
            return started

        yield start


def test_ping_is_open_and_says_what_this_is(node: Node) -> None:
    answer = node.ping()
    assert answer is not None
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["engine"], body["synthetic"], body["busy"]) == ("ok", "synthetic", True, None)
    assert len(body["fingerprint"]) == 64


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/internal/state", "/internal/generate", "/nowhere", "/internal/ping/"]
)
@pytest.mark.parametrize("token", [None, "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}"])
def test_everything_else_asks_for_the_token(node: Node, path: str, token: str | None) -> None:
    headers = {"Authorization": token} if token else {}
    answer = node.stranger.post(path, headers=headers, json={})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "unauthorized"


def test_unknown_paths_are_problems_too(node: Node) -> None:
    answer = node.client.get("/nowhere")
    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")
    assert node.client.get("/internal/generate").json()["type"] == "method-not-allowed"


def test_a_generation_streams_and_leaves_the_file_it_names(node: Node) -> None:
    body = order(steps=14, seed=3)
    events = generate(node, body)
    started = next(event for event in events if event["event"] != "alive")
    assert started == {"event": "started", "engine": "synthetic", "total_steps": 14, "resumed_from": 0}
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 15))
    alive = [event for event in events if event["event"] == "alive"]
    assert alive, "0.7 s of work must show at least one sign of life"
    assert "step" in {event["phase"] for event in alive}
    assert alive[0]["progress_age_seconds"] < 0.3
    done = events[-1]
    assert done["event"] == "done"
    assert done["parameters"]["seed"] == 3
    (file,) = done["files"]
    content = (node.jobs / body["output_dir"] / file["name"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_same_seed_gives_the_same_file(node: Node) -> None:
    sums = {generate(node, order(seed=11))[-1]["files"][0]["size_bytes"] for _ in range(2)}
    assert len(sums) == 1


def test_busy_is_said_to_the_next_and_to_the_ping(node: Node) -> None:
    body = order(steps=150)
    with node.client.stream("POST", "/internal/generate", json=body) as stream:
        lines = stream.iter_lines()  # kept: closing the iterator would close the connection
        next(lines)
        refused = node.client.post("/internal/generate", json=order())
        assert (refused.status_code, refused.json()["job"]) == (409, body["job"])
        ping = node.ping()
        assert ping is not None
        assert (ping.status_code, ping.json()["busy"]) == (200, body["job"])
    wait_for(lambda: node.wait("ok")["busy"] is None, 2)


def test_closing_the_connection_stops_the_work(node: Node) -> None:
    body = order(steps=150)
    with node.client.stream("POST", "/internal/generate", json=body) as stream:
        lines = stream.iter_lines()  # kept: closing the iterator would close the connection
        next(lines)
    left = time.monotonic()
    wait_for(lambda: node.wait("ok")["busy"] is None, 2)
    assert time.monotonic() - left < 1, "150 steps take 7.5 s; one step takes 0.05 s"
    assert not (node.jobs / body["output_dir"]).exists()


def test_interrupt_stops_only_the_named_job(node: Node) -> None:
    body = order(steps=150)
    with node.client.stream("POST", "/internal/generate", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        other = node.client.post("/internal/interrupt", json={"job": str(uuid.uuid4())}).json()
        assert other == {"stopped": False, "job": None, "checkpoint_step": None}
        mine = node.client.post("/internal/interrupt", json={"job": body["job"]}).json()
        assert mine == {"stopped": True, "job": body["job"], "checkpoint_step": None}
        last = [json.loads(line) for line in lines][-1]
    assert (last["event"], last["reason"]) == ("error", "CANCELLED")
    assert generate(node, order())[-1]["event"] == "done", "the node must be free at once"


def test_interrupt_of_any_job(node: Node) -> None:
    assert node.client.post("/internal/interrupt", json={"job": None}).json()["stopped"] is False
    assert node.client.post("/internal/interrupt", json={"job": 3}).status_code == 422
    assert node.client.post("/internal/interrupt", json=[]).status_code == 422


def test_what_is_not_supported_is_refused_by_name(node: Node) -> None:
    answer = node.client.post("/internal/generate", json=order(loras=[{"name": 3}], width=65, colour="red"))
    assert answer.status_code == 422
    body = answer.json()
    assert (body["type"], body["reason"]) == ("invalid-input", "INVALID_INPUT")
    assert [error["field"] for error in body["errors"]] == ["request.colour", "request.loras[0].name", "request.width"]
    answer = node.client.post("/internal/generate", json=order(model="other", loras=[{"name": "x"}]))
    assert [error["field"] for error in answer.json()["errors"]] == ["request.model", "request.loras[0].name"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"job": NaN}', b'{"job": "\\ud800"}', b"[" * 200_000, b"9" * 5000],
    ids=["empty", "cut", "bytes", "nan", "surrogate", "deep", "long number"],
)
@pytest.mark.parametrize("path", ["/internal/generate", "/internal/interrupt"])
def test_what_is_not_json_is_refused(node: Node, path: str, content: bytes) -> None:
    assert node.client.post(path, content=content).status_code == 422


def test_a_huge_body_is_refused_before_it_is_read_whole(node: Node) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 20)

    try:
        answer = node.client.post("/internal/generate", content=endless())
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server closed while we were still sending
    assert node.wait("ok")["busy"] is None


def test_the_page_holds_and_runs_nothing_foreign(node: Node) -> None:
    answer = node.client.get("/")
    assert "gpu-01" not in answer.text, "what it shows it asks for, and shows as text (test_webui_page.py)"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "http" not in answer.text


def test_the_state_shows_progress_but_no_prompt(node: Node) -> None:
    with node.client.stream("POST", "/internal/generate", json=order(steps=150, prompt="a secret")) as stream:
        lines = stream.iter_lines()  # kept: closing the iterator would close the connection
        next(lines)
        state = wait_for(lambda: (found := node.client.get("/internal/state").json())["step"] and found)
        assert (state["phase"], state["total_steps"], state["checkpoint"]) == ("step", 150, "synthetic")
        assert "secret" not in json.dumps(state)
    wait_for(lambda: node.wait("ok")["busy"] is None)


def test_metrics_count_what_happened(node: Node) -> None:
    def value(name: str, **labels: str) -> float:
        return value_of(node.client.get("/metrics").text, name, node_name="<gpu-01>", **labels)

    done, steps = value("webui_generations_total", outcome="done"), value("webui_steps_total")
    generate(node, order(steps=3))
    assert value("webui_generations_total", outcome="done") == done + 1
    assert value("webui_steps_total") == steps + 3
    assert value("webui_engine_resident_memory_bytes") > 10e6
    assert value("animatediff_model_load_time_seconds_count", cache="cold", model="synthetic") == 1
    assert value("process_cpu_seconds_total") > 0
    assert value("webui_generations_total", outcome="GPU_LOST") == 0, "told before the first one"


def test_a_file_that_comes_right_after_the_start_is_told(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.wait("ok")
    (node.models / "lora").mkdir(exist_ok=True)
    save_file({"weight": np.zeros(1, np.float32)}, node.models / "lora" / "late.safetensors")
    wait_for(lambda: "late" in node.wait("ok")["capabilities"]["loras"], 15)


def test_metrics_say_what_is_loaded_and_what_the_engine_only_keeps(new_node: Callable[..., Node]) -> None:
    node = new_node(APPLIANCE_SYNTHETIC_FAULTS=json.dumps({"vram_mib": 24576, "cached_mib": 2048}))
    loaded = node.wait("ok")["fingerprint"]

    def samples(name: str) -> list[Sample]:
        families = text_string_to_metric_families(node.client.get("/metrics").text)
        return [sample for family in families for sample in family.samples if sample.name == name]

    (pipeline,) = samples("webui_pipeline_info")
    assert {"engine": "synthetic", "fingerprint": loaded}.items() <= pipeline.labels.items()
    assert pipeline.value == 1
    wait_for(lambda: samples("webui_gpu_memory_cached_bytes")[0].value == 2048 << 20)


def test_the_http_process_never_loads_what_only_the_engine_needs() -> None:
    code = "import sys, webui.serve; print(sorted({'torch', 'diffusers', 'av', 'transformers'} & sys.modules.keys()))"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/images/webui:{ROOT}/images/sdapi"}
    shown = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_without_the_marker_files_it_says_so_and_waits(new_node: Callable[..., Node]) -> None:
    node = new_node(markers=False)
    assert ".animatediff-ha is missing" in node.wait("error")["message"]
    assert node.client.post("/internal/generate", json=order()).status_code == 503
    node.put_markers()
    assert node.wait("ok")["fingerprint"]
    (node.jobs / ".animatediff-ha").unlink()
    assert "jobs" in node.wait("error")["message"]
    refused = node.client.post("/internal/generate", json=order())
    assert (refused.status_code, refused.json()["type"]) == (503, "not-ready")


def test_the_ping_answers_while_the_engine_loads(new_node: Callable[..., Node]) -> None:
    node = new_node(APPLIANCE_SYNTHETIC_FAULTS='{"load_seconds": 1}')
    assert node.wait("loading")["fingerprint"] is None
    answer = node.ping()
    assert answer is not None
    assert answer.status_code == 503
    node.wait("ok")


@pytest.mark.parametrize("faults", ["{}", '{"hang_at_step": 2}'])
def test_sigterm_ends_the_job_as_lost_and_the_server_in_time(new_node: Callable[..., Node], faults: str) -> None:
    node = new_node(APPLIANCE_SYNTHETIC_FAULTS=faults)
    node.wait("ok")
    with node.client.stream("POST", "/internal/generate", json=order(steps=150)) as stream:
        lines = stream.iter_lines()
        next(lines)
        child = node.child()
        node.process.send_signal(signal.SIGTERM)
        last = [json.loads(line) for line in lines][-1]
    assert last == {"event": "error", "reason": "WORKER_LOST", "message": "shutting down"}
    assert node.process.wait(10) == 0
    assert not is_alive(child)


def test_a_full_storage_says_nothing_against_the_job(new_node: Callable[..., Node], tmp_path: Path) -> None:
    """A real one: a page of memory. The markers take no room, the video does not fit."""
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", full], check=True)
    try:
        node = new_node(jobs=full)
        node.wait("ok")
        last = generate(node, order(frames=16))[-1]
        assert (last["event"], last["reason"], last.get("storage")) == ("error", "UNKNOWN", True), last
        assert "No space left on device" in last["message"]
        assert [path for path in full.rglob("*") if path.is_file()] == [full / ".animatediff-ha"]
        node.wait("ok")
        node.close()
    finally:
        subprocess.run(["umount", "--lazy", full], check=True)


def test_an_idle_server_stops_at_once(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.wait("ok")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(3) == 0


@pytest.mark.parametrize(("faults", "freeze"), [("{}", False), ('{"hang_at_step": 1}', False), ("{}", True)])
def test_killing_the_server_leaves_nothing_behind(new_node: Callable[..., Node], faults: str, freeze: bool) -> None:
    node = new_node(APPLIANCE_SYNTHETIC_FAULTS=faults)
    node.wait("ok")
    child = node.child()
    with node.client.stream("POST", "/internal/generate", json=order(steps=150)) as stream:
        lines = stream.iter_lines()
        next(lines)
        if freeze:  # what cannot notice the closed pipe must die as well
            os.kill(child, signal.SIGSTOP)
        node.process.kill()
        with suppress(httpx.TransportError):
            list(lines)
    wait_for(lambda: not is_alive(child), 2)


def test_a_frozen_engine_does_not_freeze_the_ping(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.wait("ok")
    with node.client.stream("POST", "/internal/generate", json=order(steps=150)) as stream:
        lines = (json.loads(line) for line in stream.iter_lines())
        next(lines)
        os.kill(node.child(), signal.SIGSTOP)
        alive = (event for event in islice(lines, 20) if event["event"] == "alive")
        assert any(event["progress_age_seconds"] >= 0.5 for event in alive)
        started = time.monotonic()
        assert node.ping() is not None
        assert time.monotonic() - started < 0.5


def test_the_health_check_follows_the_ping(new_node: Callable[..., Node]) -> None:
    node = new_node(markers=False)

    def check() -> int:
        command = [sys.executable, "-m", "webui", "healthcheck"]
        return subprocess.run(command, env=node.environ, capture_output=True, check=False).returncode

    node.wait("error")
    assert check() == 1
    node.put_markers()
    node.wait("ok")
    assert check() == 0
    node.process.kill()
    node.process.wait()
    assert check() == 1


def test_a_missing_secret_is_told_by_name(new_node: Callable[..., Node], tmp_path: Path) -> None:
    node = new_node(APPLIANCE_SECRETS_DIR=str(tmp_path / "none"))
    assert node.process.wait(10) == 1
    assert str(tmp_path / "none" / "cluster_token") in (tmp_path / "log").read_text()
