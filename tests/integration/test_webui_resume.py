"""Jobs that move: what one server has kept, another goes on from, to the very same bytes."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.webui_media import clip, image, pixels
from tests.integration.webui_node import Node, generate, resumed_from, wait_for
from webui.request import video_request

Events = Iterator[dict[str, Any]]
NewNode = Callable[..., Node]
FAULTS = {
    "only_prompt_contains": "FAULTY",
    "oom_without_tiling": True,
}


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[NewNode]:
    with ExitStack() as stack:

        def start(faults: dict[str, Any] | None = None, **environ: str) -> Node:
            environ = {"APPLIANCE_CHECKPOINT_SECONDS": "1", "APPLIANCE_STOP_SECONDS": "1"} | environ
            environ["APPLIANCE_SYNTHETIC_FAULTS"] = json.dumps(faults or {})
            node = Node(tmp_path / uuid.uuid4().hex, jobs=tmp_path / "jobs", **environ)
            stack.callback(node.close)
            node.wait("ok")
            return node

        (tmp_path / "jobs").mkdir()
        yield start


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    faults = json.dumps(FAULTS)
    running = Node(tmp_path_factory.mktemp("node"), APPLIANCE_SYNTHETIC_FAULTS=faults, APPLIANCE_CHECKPOINT_SECONDS="1")
    try:
        running.wait("ok")
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Makes what an uninterrupted attempt would have made; its steps take no time."""
    running = Node(tmp_path_factory.mktemp("fast"), APPLIANCE_SYNTHETIC_STEP_SECONDS="0")
    try:
        running.wait("ok")
        Job.fast = running
        yield running
    finally:
        running.close()


class Job:
    """Attempts at one job, with the request of all of them."""

    fast: Node

    def __init__(self, **request: Any) -> None:
        self.id = str(uuid.uuid4())
        self.folder = f"2026/11/22/{self.id}"
        self.request = {"prompt": "a cat", "width": 64, "height": 64, "frames": 3, "steps": 40, "seed": 7} | request

    def order(self, fence: int, **more: Any) -> dict[str, Any]:
        folders = {"output_dir": f"{self.folder}/attempts/{fence}", "checkpoint_dir": f"{self.folder}/checkpoint"}
        return {"job": self.id, "fence": fence, "request": self.request, **folders, **more}

    def checkpoints(self, node: Node) -> list[str]:
        folder = node.jobs / self.folder / "checkpoint"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def interrupt(self, node: Node, **more: Any) -> dict[str, Any]:
        answer = node.client.post("/internal/interrupt", json={"job": self.id, **more})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@contextmanager
def running(node: Node, order: dict[str, Any]) -> Iterator[Events]:
    with node.client.stream("POST", "/internal/generate", json=order) as stream:
        assert stream.status_code == 200
        yield (json.loads(line) for line in stream.iter_lines())


def until(events: Events, kind: str, step: int = 0) -> dict[str, Any]:
    return next(event for event in events if event["event"] == kind and event.get("step", step) >= step)


def steps(events: list[dict[str, Any]]) -> list[int]:
    return [event["step"] for event in events if event["event"] == "step"]


def assert_goes_on(node: Node, job: Job, fence: int, step: int, **order: Any) -> dict[str, Any]:
    """The attempt does the rest and no more, and the video is that of an attempt that was never stopped."""
    events = generate(node, job.order(fence, **order))
    assert resumed_from(events) == step
    assert steps(events) == list(range(step + 1, video_request(job.request).total_steps + 1))
    done = events[-1]
    assert done["event"] == "done", done
    twin = Job(**job.request | {"seed": done["parameters"]["seed"]})
    assert done["files"] == generate(job.fast, twin.order(1, **order))[-1]["files"]
    return done


@pytest.mark.parametrize("seed", [7, -1])
def test_a_killed_server_repeats_no_more_than_the_interval(new_node: NewNode, seed: int) -> None:
    first, second = new_node(), new_node()
    job = Job(seed=seed)
    with running(first, job.order(5)) as events:
        kept = until(events, "checkpoint")["step"]
        until(events, "step", kept + 3)
        os.kill(first.child(), signal.SIGKILL)  # both at once, so that nobody can write any last words
        first.process.kill()
        with pytest.raises(httpx.TransportError):
            list(events)
    assert kept > 5
    assert job.checkpoints(second) == [f"5-{kept}.safetensors"]
    assert_goes_on(second, job, 6, kept)


def test_a_crash_before_the_first_checkpoint_starts_over(new_node: NewNode) -> None:
    node = new_node({"crash_at_step": 3, "only_prompt_contains": "FAULTY"})
    job = Job(prompt="FAULTY", steps=10)
    assert generate(node, job.order(5))[-1]["event"] == "error"
    node.wait("ok")
    assert_goes_on(new_node(), job, 6, 0)


@pytest.mark.parametrize("fault", ["crash_at_step", "kill_at_step"])
def test_a_dead_engine_goes_on_in_its_successor(new_node: NewNode, fault: str) -> None:
    node = new_node({fault: 35, "only_prompt_contains": "FAULTY"})
    job = Job(prompt="FAULTY")
    events = generate(node, job.order(5))
    assert events[-1]["event"] == "error"
    kept = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert kept[-1] > 10
    node.wait("ok")
    again = generate(node, job.order(6))
    assert resumed_from(again) == kept[-1], "the same process' successor, which dies at step 35, too"
    assert again[-1]["event"] == "error"
    assert_goes_on(new_node(), job, 7, int(job.checkpoints(node)[-1].split("-")[1].split(".")[0]))


@pytest.mark.parametrize("step", [1, 2, 39])
def test_an_interrupt_keeps_the_step_it_is_on(node: Node, step: int) -> None:
    job = Job()
    with running(node, job.order(5)) as events:
        until(events, "step", step)
        answer = job.interrupt(node, checkpoint=True, fence=5)
        rest = list(events)
    done = max([step, *steps(rest)])
    assert answer == {"stopped": True, "job": job.id, "checkpoint_step": done}
    assert rest[-1]["reason"] == "CANCELLED"
    assert_goes_on(node, job, 6, done)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"init_image": image(pixels()), "last_frame": image(pixels(1)), "denoising_strength": 0.5},
            id="picture",
            marks=pytest.mark.long,
        ),
        pytest.param({"init_video": clip([pixels(), pixels(1)])}, id="clip"),
        pytest.param({"prompt": "0: a cat\n2: a dog"}, id="travel", marks=pytest.mark.long),
        pytest.param(
            {"context_batch_size": 2, "context_stride": 2, "closed_loop": True},
            id="closed windows",
            marks=pytest.mark.long,
        ),
        pytest.param({"free_init": {"iterations": 2}, "steps": 15}, id="free init"),
    ],
)
def test_what_a_request_starts_from_and_loops_through_is_kept_too(node: Node, fields: dict[str, Any]) -> None:
    job = Job(**fields)
    done = assert_goes_on(node, job, 6, keep(node, job))
    other = Job(**fields | {"prompt": "0: a cat\n1: a dog", "init_image": None, "last_frame": None})
    other.id, other.folder = job.id, job.folder
    assert resumed_from(generate(node, other.order(7))) == 0
    assert done["files"] != generate(node, other.order(8))[-1]["files"]


def test_an_interrupt_without_that_keeps_nothing(node: Node) -> None:
    job = Job()
    with running(node, job.order(5)) as events:
        until(events, "step", 3)
        assert job.interrupt(node, fence=5)["checkpoint_step"] is None
        list(events)
    assert job.checkpoints(node) == []


def test_an_interrupt_of_another_attempt_stops_nothing(node: Node) -> None:
    job = Job(steps=10)
    with running(node, job.order(5)) as events:
        until(events, "step", 1)
        assert job.interrupt(node, fence=4, checkpoint=True)["stopped"] is False
        assert list(events)[-1]["event"] == "done"


@pytest.mark.parametrize("fault", [{"hang_at_step": 5}, {"hang_in_phase": "decode"}])
def test_a_hung_engine_is_kept_and_stopped_in_bounded_time(new_node: NewNode, fault: dict[str, Any]) -> None:
    node = new_node(fault | {"only_prompt_contains": "FAULTY"})
    job = Job(prompt="FAULTY", steps=8)
    last = fault.get("hang_at_step", 9) - 1
    with running(node, job.order(5)) as events:
        until(events, "step", last)
        wait_for(lambda: until(events, "alive")["progress_age_seconds"] > 0.5)
        answer = job.interrupt(node, checkpoint=True)
        list(events)
    assert answer == {"stopped": True, "job": job.id, "checkpoint_step": last}
    assert_goes_on(new_node(), job, 6, last)


@pytest.mark.parametrize("faults", [{}, {"hang_at_step": 20}, {"slow_step_seconds": 2}])
def test_sigterm_keeps_the_work_before_it_gives_the_job_back(new_node: NewNode, faults: dict[str, Any]) -> None:
    node = new_node(faults | {"only_prompt_contains": "FAULTY"}, APPLIANCE_CHECKPOINT_SECONDS="600")
    job = Job(prompt="FAULTY", steps=40)
    with running(node, job.order(5)) as events:
        step = until(events, "step", 1 if "slow_step_seconds" in faults else 19)["step"]
        node.process.send_signal(signal.SIGTERM)
        rest = list(events)
        assert job.checkpoints(node), "whoever is told may look for it at once"
    kept = [event["step"] for event in rest if event["event"] == "checkpoint"]
    assert kept[0] >= step
    assert rest[-1] == {"event": "error", "reason": "WORKER_LOST", "message": "shutting down"}
    assert node.process.wait(10) == 0
    best = max(int(name.split("-")[1].split(".")[0]) for name in job.checkpoints(node))
    assert_goes_on(new_node(), job, 6, best)


def keep(node: Node, job: Job, fence: int = 5, step: int = 3, **order: Any) -> int:
    with running(node, job.order(fence, **order)) as events:
        until(events, "step", step)
        kept = job.interrupt(node, checkpoint=True)["checkpoint_step"]
        list(events)
    assert isinstance(kept, int)
    return kept


def test_another_fingerprint_or_request_starts_over(new_node: NewNode) -> None:
    first = new_node(APPLIANCE_CHECKPOINT_SECONDS="600")
    other = new_node(APPLIANCE_CHECKPOINT_SECONDS="600", APPLIANCE_CHECKPOINT="another-model")
    job = Job(steps=30)
    kept = keep(first, job)
    assert resumed_from(generate(other, job.order(6))) == 0
    changed = Job(**job.request | {"cfg_scale": 3})
    changed.id, changed.folder = job.id, job.folder
    assert_goes_on(first, changed, 7, 0)
    assert_goes_on(first, job, 8, 0, memory={"context_batch_size": 2})
    assert_goes_on(first, job, 9, kept, memory={"vae_tiling": True})


def test_a_damaged_one_is_passed_over_for_the_next_best(node: Node) -> None:
    job = Job(steps=40)
    older, newer = keep(node, job, 5, 3), keep(node, job, 7, 15)
    folder = node.jobs / job.folder / "checkpoint"
    # The older one was removed when the newer was durable: put one of another attempt back.
    assert job.checkpoints(node) == [f"7-{newer}.safetensors"]
    content = (folder / f"7-{newer}.safetensors").read_bytes()
    newer_still = keep(node, job, 8, newer + 3)
    (folder / f"7-{newer}.safetensors").write_bytes(content)
    os.truncate(folder / f"8-{newer_still}.safetensors", 200)
    assert older < newer < newer_still
    assert_goes_on(node, job, 9, newer)
    assert "8-" in node.written_log()
    for name in job.checkpoints(node):
        (folder / name).write_bytes(b"\0" * 5000)
    assert_goes_on(node, job, 10, 0)


def test_a_folder_that_cannot_be_written_costs_only_a_warning(node: Node) -> None:
    job = Job(steps=30)
    (node.jobs / job.folder).mkdir(parents=True)
    (node.jobs / job.folder / "checkpoint").write_text("not a folder")
    assert_goes_on(node, job, 5, 0)
    assert "no checkpoint" in node.written_log()


def test_out_of_memory_while_decoding_repeats_no_step(node: Node) -> None:
    job = Job(prompt="FAULTY", steps=6)
    assert generate(node, job.order(5))[-1]["reason"] == "OOM"
    assert_goes_on(node, job, 6, 6, memory={"vae_tiling": True})


def test_a_zombie_takes_nothing_from_its_successor(new_node: NewNode) -> None:
    zombie, successor = new_node(), new_node()
    job = Job(steps=100)
    with running(zombie, job.order(5)) as events:
        until(events, "checkpoint")
        child = zombie.child()
        os.kill(child, signal.SIGSTOP)
        kept = keep(successor, job, 6, 40)
        os.kill(child, signal.SIGCONT)
        assert job.interrupt(zombie, checkpoint=True)["checkpoint_step"] < kept
        list(events)
    assert f"6-{kept}.safetensors" in job.checkpoints(successor)
    assert resumed_from(generate(successor, job.order(7))) == kept


def test_a_zombie_leaves_nothing_in_a_finished_job(node: Node) -> None:
    job = Job(steps=150)
    with running(node, job.order(5)) as events:
        until(events, "step", 3)
        (node.jobs / job.folder).mkdir(parents=True, exist_ok=True)
        (node.jobs / job.folder / "COMMIT").touch()
        assert job.interrupt(node, checkpoint=True)["checkpoint_step"] is None
        list(events)
    assert os.listdir(node.jobs / job.folder) == ["COMMIT"]


@pytest.mark.parametrize(
    ("faults", "memory"),
    [
        ({"oom_above_context": 2}, {"context_batch_size": 2}),
        ({"oom_without_tiling": True}, {"vae_tiling": True}),
        ({"oom_without_offload": True}, {"cpu_offload": True}),
    ],
)
def test_each_kind_of_memory_setting_answers_its_own_shortage(
    new_node: NewNode, faults: dict[str, Any], memory: dict[str, Any]
) -> None:
    node = new_node(faults)
    job = Job(steps=2)
    assert generate(node, job.order(5))[-1]["reason"] == "OOM"
    assert generate(node, job.order(6, memory=memory))[-1]["event"] == "done"
    assert generate(node, Job(steps=2).order(7))[-1]["reason"] == "OOM", "the settings of one job are not the next's"


@pytest.mark.parametrize("phase", ["load", "decode", "encode"])
def test_each_phase_is_told_while_it_lasts(new_node: NewNode, phase: str) -> None:
    node = new_node({"hang_in_phase": phase})
    with running(node, Job(steps=2).order(5)) as events:
        assert wait_for(lambda: (event := until(events, "alive"))["phase"] == phase and event)["phase"] == phase
        assert until(events, "alive")["progress_age_seconds"] > 0.3


def test_the_ping_says_what_the_node_can_do(new_node: NewNode, node: Node) -> None:
    plain = node.wait("ok")
    told = plain["capabilities"]
    assert ("Euler a" in told.pop("samplers"), "Karras" in told.pop("schedulers")) == (True, True)
    assert told == {
        "models": ["synthetic"],
        "motion_modules": ["synthetic"],
        "loras": [],
        "vaes": [],
        "controlnets": [],
        "vram_mib": 0,
        "max_frames": 128,
    }
    assert plain["gpu"] is None
    large = new_node({"vram_mib": 24576, "max_frames": 32}, APPLIANCE_CHECKPOINT="sd15").wait("ok")
    assert (large["capabilities"]["models"], large["capabilities"]["vram_mib"]) == (["sd15"], 24576)
    assert large["capabilities"]["max_frames"] == 32
    memory = {"memory_total_mib": 24576, "memory_used_mib": 0, "memory_cached_mib": 0}
    assert large["gpu"] == {"name": "synthetic", **memory}
