"""The cpu image for real: its own tiny models, diffusers, and videos that play."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import pytest

from tests.integration.metrics_text import value_of
from tests.integration.webui_media import image, pixels
from tests.integration.webui_node import resumed_from

pytestmark = pytest.mark.docker

TOKEN = "t0ken-of-this-test"
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--init")
PREPARE = """
import os
for folder in ("/storage/jobs", "/storage/models", "/secrets"):
    open(folder + "/.animatediff-ha", "w").close()
    os.chown(folder, 10001, 10001)
open("/secrets/cluster_token", "w").write(os.environ["TOKEN"])
"""

# Offloading wants a GPU; to move everything from the CPU to the CPU shows the same hooks come and go.
PROBE = """
import json
from webui.engine.diffusers import DiffusersEngine, Quiet
from webui.request import MemorySettings, VideoRequest
from webui.settings import EngineSettings

engine = DiffusersEngine(EngineSettings(kind="diffusers", checkpoint="tiny", motion_module="tiny"))
engine.load()
seen = set()
for name, module in engine._pipeline.unet.named_modules():
    if "motion_modules" in name and name.endswith(("attn1", "attn2")):
        module.register_forward_pre_hook(lambda _, arguments: seen.add(arguments[0].shape[1]))
request = VideoRequest("a cat", width=64, height=64, frames=16, steps=2, seed=1)

def make(**memory):
    seen.clear()
    frames = engine.generate(request, Quiet(), MemorySettings(**memory)).frames
    hooked = hasattr(engine._pipeline.unet, "_hf_hook")
    engine.release()
    return frames, sorted(seen), hooked

plain, plain_seen, _ = make()
windowed, windowed_seen, _ = make(context_batch_size=8)
engine._offload = lambda memory: (
    engine._pipeline.enable_model_cpu_offload(device="cpu"), setattr(engine, "_offloading", True)
)
offloaded, _, hooked = make(context_batch_size=8)
del engine._offload
again, _, hooked_again = make()
print(json.dumps({
    "plain": plain_seen, "windows": windowed_seen,
    "offloaded": hooked and bool((offloaded == windowed).all()),
    "as before": not hooked_again and bool((again == plain).all()),
}))
"""


def docker(*args: str) -> str:
    done = subprocess.run(["docker", *args], capture_output=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr.decode()}"
    return done.stdout.decode()


class Server:
    def __init__(self, image: str, name: str, volumes_of: str | None = None) -> None:
        self.image, self.name = image, name
        self.volumes = [f"--volume={volumes_of or name}-{kind}:{path}" for kind, path in self.mounts()]

    @staticmethod
    def mounts() -> list[tuple[str, str]]:
        return [("jobs", "/storage/jobs"), ("models", "/storage/models"), ("secrets", "/secrets")]

    def prepare(self) -> None:
        python = ["--user=0:0", "--entrypoint=/opt/venv/bin/python", f"--env=TOKEN={TOKEN}"]
        docker("run", "--rm", *python, *self.volumes, self.image, "-c", PREPARE)

    def make_models(self) -> str:
        return docker("run", "--rm", *HARDENED, *self.volumes, self.image, "make-demo-models", "/storage/models")

    def start(self) -> None:
        models = {"CHECKPOINT": "tiny", "MOTION_MODULE": "tiny", "SECRETS_DIR": "/secrets", "CHECKPOINT_SECONDS": "1"}
        environ = [f"--env=APPLIANCE_{name}={value}" for name, value in models.items()]
        options = [*HARDENED, *self.volumes, *environ, f"--name={self.name}", "--publish=127.0.0.1::7860"]
        docker("run", "--detach", *options, self.image)
        address = docker("port", self.name, "7860").split()[0]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=f"http://{address}", headers=headers, timeout=60)

    def ping(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.client.get("/internal/ping", timeout=2).json()
        except httpx.TransportError as error:
            return {"status": f"no answer: {error}"}
        return answer

    def wait_until_ready(self, seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (ping := self.ping())["status"] != "ok":
            assert time.monotonic() < deadline, f"{ping}\n{self.logs()}"
            time.sleep(0.1)
        return ping

    def logs(self) -> str:
        return subprocess.run(
            ["docker", "logs", "--tail=30", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        ).stdout.decode()

    def result(self, body: dict[str, Any]) -> np.ndarray[Any, Any]:
        path = f"/storage/jobs/{body['output_dir']}/video.mp4"
        shown = subprocess.run(["docker", "exec", self.name, "cat", path], capture_output=True, check=True)
        with av.open(io.BytesIO(shown.stdout)) as video:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True, check=False)
        volumes = [f"{self.name}-{kind}" for kind, _ in self.mounts()]
        subprocess.run(["docker", "volume", "rm", *volumes], capture_output=True, check=False)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    image = os.environ.get("WEBUI_TEST_IMAGE") or f"animatediff-ha/webui-cpu:{request.getfixturevalue('images')}"
    made = Server(image, f"webui-test-{uuid.uuid4().hex[:8]}")
    try:
        made.prepare()
        assert made.make_models().count(": made") == 2
        made.start()
        made.wait_until_ready()
        yield made
        made.client.close()
    finally:
        made.remove()


@pytest.fixture
def second(server: Server) -> Iterator[Server]:
    """Another container on the same volumes."""
    made = Server(server.image, f"{server.name}-second", volumes_of=server.name)
    try:
        made.start()
        made.wait_until_ready()
        yield made
        made.client.close()
    finally:
        subprocess.run(["docker", "rm", "--force", made.name], capture_output=True, check=False)


def order(**request: Any) -> dict[str, Any]:
    job = str(uuid.uuid4())
    request = {"prompt": "a red circle moves left", "width": 64, "height": 64, "frames": 8, "steps": 3} | request
    return {"job": job, "fence": 1, "output_dir": f"2026/11/22/{job}/attempts/1", "request": request}


def attempt(body: dict[str, Any], fence: int, **memory: Any) -> dict[str, Any]:
    """Another attempt at the same job, which makes checkpoints."""
    folder = body["output_dir"].partition("/attempts/")[0]
    folders = {"output_dir": f"{folder}/attempts/{fence}", "checkpoint_dir": f"{folder}/checkpoint"}
    return body | folders | {"fence": fence, "memory": memory}


def generate(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.client.post("/internal/generate", json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_demo_models_are_made_once(server: Server) -> None:
    assert server.make_models().count("is there already") == 2


def test_a_real_video_with_the_ordered_frames(server: Server) -> None:
    body = order(frames=16, fps=6, width=72, steps=4)
    events = generate(server, body)
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    done = events[-1]
    assert done["event"] == "done", done
    assert done["parameters"]["fingerprint"] == server.ping()["fingerprint"]
    frames = server.result(body)
    assert frames.shape == (16, 64, 72, 3)
    assert frames.std() > 5, "not one flat colour"
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1, "it must move"


def test_the_seed_makes_the_frames(server: Server) -> None:
    orders = [order(seed=7), order(seed=7), order(seed=8), order()]
    *_, last = [generate(server, body)[-1] for body in orders]
    orders.append(order(seed=last["parameters"]["seed"]))
    generate(server, orders[-1])
    same, again, other, chosen, chosen_again = (server.result(body) for body in orders)
    assert (same == again).all()
    assert (same != other).any()
    assert (chosen == chosen_again).all(), "a seed chosen by the engine must be told, and make the same frames"


def test_the_prompt_and_the_guidance_count(server: Server) -> None:
    orders = [order(seed=7), order(seed=7, prompt="a white star"), order(seed=7, cfg_scale=0)]
    for body in orders:
        assert generate(server, body)[-1]["event"] == "done"
    plain, other_prompt, unguided = (server.result(body) for body in orders)
    assert (plain != other_prompt).any()
    assert (plain != unguided).any()


def test_it_answers_while_busy_and_stops_within_a_step(server: Server) -> None:
    with server.client.stream("POST", "/internal/generate", json=order(steps=150)) as stream:
        events = (json.loads(line) for line in stream.iter_lines())
        next(event for event in events if event["event"] == "step")
        started = time.monotonic()
        assert server.ping()["busy"]
        assert time.monotonic() - started < 0.5
        assert server.client.post("/internal/interrupt", json={"job": None}).json()["stopped"] is True
        rest = list(events)
    assert rest[-1]["reason"] == "CANCELLED"
    assert sum(event["event"] == "step" for event in rest) < 20, "the ping and one step, not the 150 steps"
    assert generate(server, order())[-1]["event"] == "done"


def test_closing_the_connection_frees_it(server: Server) -> None:
    with server.client.stream("POST", "/internal/generate", json=order(steps=150)) as stream:
        lines = stream.iter_lines()  # kept: closing the iterator would close the connection
        next(lines)
    left = time.monotonic()
    while server.ping()["busy"]:
        assert time.monotonic() - left < 3
        time.sleep(0.05)


def test_more_frames_than_the_motion_module_has_are_refused_by_name(server: Server) -> None:
    answer = server.client.post("/internal/generate", json=order(frames=33))
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["request.frames"]


def test_a_prompt_that_is_too_long_is_told(server: Server) -> None:
    done = generate(server, order(prompt="a " * 1900))[-1]
    assert done["event"] == "done"
    assert "tokens" in done["parameters"]["warnings"][0]


EVERYTHING = {
    "prompt": "0: a red circle moves left\n6: a (blue:1.2) square",
    "context_batch_size": 4,
    "closed_loop": True,
    "sampler": "DPM++ 2M SDE",
    "free_init": {"iterations": 2},
    "steps": 40,
}


@pytest.mark.parametrize(
    "fields",
    [pytest.param({"steps": 60}, id="plain", marks=pytest.mark.long), pytest.param(EVERYTHING, id="everything")],
)
def test_a_killed_container_goes_on_in_another_bit_for_bit(
    server: Server, second: Server, fields: dict[str, Any]
) -> None:
    body = attempt(order(seed=7, **fields | ({"init_image": image(pixels())} if "free_init" in fields else {})), 5)
    with second.client.stream("POST", "/internal/generate", json=body) as stream:
        events = (json.loads(line) for line in stream.iter_lines())
        first = next(event["step"] for event in events if event["event"] == "checkpoint")
        for _ in range(random.randrange(1, 10)):
            next(event for event in events if event["event"] == "step")
        docker("kill", "--signal=KILL", second.name)
        with pytest.raises(httpx.TransportError):
            list(events)
    kept = docker("exec", server.name, "ls", f"/storage/jobs/{body['checkpoint_dir']}").split()
    step = max(int(name.removesuffix(".safetensors").split("-")[1]) for name in kept if name.endswith(".safetensors"))
    assert step >= first
    assert_goes_on(server, attempt(body, 6), step)


@pytest.mark.parametrize("memory", [{}, {"context_batch_size": 3}, {"vae_tiling": True, "cpu_offload": True}], ids=str)
@pytest.mark.parametrize("step", [1, 5, 10])
def test_an_interrupted_one_goes_on_bit_for_bit(server: Server, step: int, memory: dict[str, Any]) -> None:
    body = attempt(order(steps=10), 5, **memory)  # the engine chooses the seed
    with server.client.stream("POST", "/internal/generate", json=body) as stream:
        events = (json.loads(line) for line in stream.iter_lines())
        next(event for event in events if event.get("step") == step)
        answer = server.client.post("/internal/interrupt", json={"job": body["job"], "checkpoint": True}).json()
        list(events)
    assert answer["checkpoint_step"] >= step
    assert_goes_on(server, attempt(body, 6, **memory), answer["checkpoint_step"])


def assert_goes_on(server: Server, body: dict[str, Any], step: int) -> None:
    events = generate(server, body)
    assert resumed_from(events) == step
    done = events[-1]
    assert done["event"] == "done", done
    twin = order(**body["request"] | {"seed": done["parameters"]["seed"]}) | {"memory": body["memory"]}
    whole = generate(server, twin)
    assert resumed_from(whole) == 0
    assert (server.result(twin) == server.result(body)).all()
    assert done["files"] == whole[-1]["files"]


def test_the_memory_settings_of_one_job_are_not_the_next_ones(server: Server) -> None:
    def make(**memory: Any) -> np.ndarray[Any, Any]:
        body = order(seed=7, frames=16) | {"memory": memory}
        assert generate(server, body)[-1]["event"] == "done"
        return server.result(body)

    plain = make()
    for memory in ({"context_batch_size": 8}, {"vae_tiling": True}):
        changed = make(**memory)
        assert (changed != plain).any(), f"{memory} does something"
        assert (changed == make(**memory)).all(), f"{memory} is no matter of luck"
        assert (make() == plain).all(), f"{memory} has not stayed"


def test_context_windows_allow_clips_longer_than_the_motion_module(server: Server) -> None:
    body = order(frames=40, context_batch_size=16)
    assert generate(server, body)[-1]["event"] == "done"
    assert len(server.result(body)) == 40


def test_the_model_never_sees_more_frames_than_the_context_and_offloading_goes_again(server: Server) -> None:
    command = ["docker", "exec", "--interactive", server.name, "/opt/venv/bin/python", "-W", "ignore", "-"]
    done = subprocess.run(command, input=PROBE.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "plain": [16],
        "windows": [8],
        "offloaded": True,
        "as before": True,
    }


def test_memory_does_not_grow(server: Server) -> None:
    def resident() -> float:
        return value_of(server.client.get("/metrics").text, "webui_engine_resident_memory_bytes")

    generate(server, order(steps=1))
    before = resident()
    for _ in range(10):
        generate(server, order(steps=1))
    assert resident() - before < 30e6


def test_it_stops_as_told(server: Server) -> None:
    docker("exec", server.name, "/opt/venv/bin/python", "-m", "webui", "healthcheck")
    docker("stop", "--time=10", server.name)
    assert docker("inspect", "--format={{.State.ExitCode}}", server.name).strip() == "0"
