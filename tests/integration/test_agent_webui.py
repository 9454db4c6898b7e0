"""The agent with a real webui (synthetic engine), real Redis and real storage: patience, memory, hand-over."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import storage
from appliance.job import JobState, job_folder
from appliance.queue import JobRecord, Queue
from appliance.settings import AgentSettings, Common, Secret
from tests.integration.redis_server import FAST, RedisServer, add, closing, redis, redis_server  # noqa: F401
from tests.integration.test_agent import Running, wait_for
from tests.integration.webui_node import TOKEN, Node

pytestmark = pytest.mark.docker

QUEUE = replace(FAST, lease_seconds=1.0, beat_seconds=0.1, oom_budget=5)
PATIENT = {"stream_silence_seconds": 5.0, "no_progress_seconds": 30.0, "drain_seconds": 20.0}

StartNode = Callable[..., Awaitable[Node]]
StartAgent = Callable[..., Running]


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    async with closing(redis_server.queue(QUEUE)) as queue:
        yield queue


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[StartNode]:
    """Starts a webui with the given faults on the one jobs volume."""
    async with AsyncExitStack() as stack:
        storage.prepare(tmp_path / "jobs")
        count = 0

        async def start(faults: dict[str, object] | None = None, **environ: str) -> Node:
            nonlocal count
            count += 1
            root = tmp_path / f"node-{count}"
            environ["APPLIANCE_SYNTHETIC_FAULTS"] = json.dumps(faults or {})
            started = Node(root, jobs=tmp_path / "jobs", **environ)
            stack.callback(started.close)
            await asyncio.to_thread(started.wait, "ok")
            return started

        yield start


@pytest_asyncio.fixture
async def agent(redis_server: RedisServer) -> AsyncIterator[StartAgent]:
    async with AsyncExitStack() as stack:

        def start(node: Node, worker: str = "a/0", **limits: float) -> Running:
            settings = AgentSettings(
                common=Common("agent", "test", "info", Path("/nonexistent")),
                redis=redis_server.settings,
                queue=QUEUE,
                worker=worker,
                webui_url=f"http://127.0.0.1:{node.port}",
                jobs_dir=node.jobs,
                cluster_token=Secret(TOKEN),
                **{**PATIENT, **limits},
            )
            running = Running(settings, redis_server)
            stack.push_async_callback(running.end)
            return running

        yield start


def request(**more: object) -> str:
    return json.dumps({"prompt": "a cat", "width": 64, "height": 64, "frames": 2, "steps": 4, **more})


async def first_attempt_of(queue: Queue, job_id: str, seconds: float = 15) -> JobRecord:
    deadline = time.monotonic() + seconds
    while True:
        job = await queue.get(job_id)
        assert job is not None
        if job.history:
            return job
        assert time.monotonic() < deadline, f"still {job}"
        await asyncio.sleep(0.02)


# --- patience --------------------------------------------------------------------------------------------------------


async def test_slow_steps_on_a_live_worker_are_waited_for(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    """Each step takes longer than a lease and than what any other phase may take."""
    agent(await node({"slow_step_seconds": 2.5}), no_progress_seconds=8, decode_seconds=2, encode_seconds=2)
    job = await wait_for(queue, await add(queue, body=request(steps=3)), JobState.DONE, seconds=30)
    assert (job.attempts, job.crashes) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "phase", "limits"),
    [
        ({"hang_in_phase": "load"}, "load", {"load_seconds": 1.5}),
        ({"hang_at_step": 1}, "step", {"no_progress_seconds": 1.5}),
        ({"hang_at_step": 2}, "step", {"no_progress_seconds": 1.5}),
        ({"hang_in_phase": "decode"}, "decode", {"decode_seconds": 1.5}),
        ({"hang_in_phase": "encode"}, "encode", {"encode_seconds": 1.5}),
    ],
)
async def test_a_hang_is_noticed_in_its_phase(
    queue: Queue, node: StartNode, agent: StartAgent, fault: dict[str, object], phase: str, limits: dict[str, float]
) -> None:
    """Only the limit of the phase that hangs is short."""
    agent(await node(fault, APPLIANCE_STOP_SECONDS="0.5"), drain_seconds=0.1, **limits)
    job = await first_attempt_of(queue, await add(queue, body=request()))
    (attempt, *_) = job.history
    assert (attempt.kind, attempt.reason) == ("crash", "TIMEOUT")
    assert f"in phase {phase}" in (attempt.message or "")


async def test_a_killed_webui_is_reported_at_once(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    running = await node()
    agent(running)
    job_id = await add(queue, body=request(steps=150))
    await wait_for(queue, job_id, JobState.RUNNING)
    await asyncio.sleep(0.5)
    killed = time.monotonic()
    running.process.send_signal(signal.SIGKILL)
    job = await first_attempt_of(queue, job_id)
    assert time.monotonic() - killed < QUEUE.lease_seconds
    assert (job.history[0].kind, job.history[0].reason) == ("crash", "WORKER_LOST")


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_out_of_memory_is_answered_with_less(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    agent(await node({"oom_above_context": 8}))
    job = await wait_for(queue, await add(queue, body=request(frames=16)), JobState.DONE, seconds=20)
    assert [(a.kind, a.reason, a.memory) for a in job.history] == [
        ("oom", "OOM", None),
        ("oom", "OOM", "context 12"),
        ("done", None, "context 8"),
    ]
    assert (job.ooms, job.errors, job.crashes) == (2, 0, 0)


async def test_the_last_rung_ends_with_what_to_ask_for(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    agent(await node({"oom_above_context": 1}))
    job = await wait_for(queue, await add(queue, body=request(frames=8)), JobState.DEAD, seconds=20)
    assert [a.memory for a in job.history] == [None, "vae tiling", "vae tiling, cpu offload"]
    assert (job.history[-1].kind, job.reason) == ("permanent", "OOM")
    assert "ask for a smaller picture than 64x64 or fewer frames than 8" in (job.message or "")


async def test_an_attempt_tells_what_it_ran_on_and_where_it_failed(
    queue: Queue, node: StartNode, agent: StartAgent
) -> None:
    agent(await node({"fail_prompt_contains": "boom", "vram_mib": 24_576}))
    job = await first_attempt_of(queue, await add(queue, body=request(prompt="boom", frames=4)))
    (attempt, *_) = job.history
    assert (attempt.gpu, attempt.where) == ("synthetic, 24576 MiB", "webui.engine.synthetic:generate")
    assert json.loads(job.parameters)["frames"] == 4
    assert "boom" not in job.parameters


# --- hand-over -------------------------------------------------------------------------------------------------------


async def test_a_drained_job_goes_on_elsewhere_where_it_was(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    first = await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1")
    leaving = agent(first, drain_seconds=0.2)
    job_id = await add(queue, body=request(steps=40, seed=7))
    await wait_for_step(queue, job_id, 5)
    leaving.stop.set()
    job = await wait_for(queue, job_id, JobState.QUEUED)
    assert (job.crashes, job.errors, job.history[0].kind) == (0, 0, "release")
    assert job.checkpoint_step >= 5
    folder = first.jobs / job_folder(job_id)
    assert list((folder / "checkpoint").iterdir())
    agent(await node(), worker="b/0")
    done = await wait_for(queue, job_id, JobState.DONE)
    assert (done.worker, done.history[-1].resumed_from) == ("b/0", job.checkpoint_step)
    deadline = time.monotonic() + 5  # the queue is told first, then the agent tidies up
    while sorted(path.name for path in folder.iterdir()) != ["COMMIT", "attempts"]:
        assert time.monotonic() < deadline, "the checkpoint is still there"
        await asyncio.sleep(0.05)


async def test_a_webui_that_is_stopped_gives_its_job_back_for_free(
    queue: Queue, node: StartNode, agent: StartAgent
) -> None:
    stopping = await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1")
    agent(stopping)
    job_id = await add(queue, body=request(steps=150))
    await wait_for_step(queue, job_id, 3)
    stopping.process.send_signal(signal.SIGTERM)
    job = await first_attempt_of(queue, job_id)
    assert (job.history[0].kind, job.crashes, job.errors) == ("release", 0, 0)
    agent(await node(), worker="b/0")
    done = await wait_for(queue, job_id, JobState.DONE, seconds=20)
    assert done.history[-1].resumed_from >= 3


async def test_a_cancelled_job_leaves_no_checkpoint(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    running = await node(APPLIANCE_CHECKPOINT_SECONDS="1", APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1")
    agent(running)
    job_id = await add(queue, body=request(steps=150))
    folder = running.jobs / job_folder(job_id) / "checkpoint"
    deadline = time.monotonic() + 10
    while not folder.exists():
        assert time.monotonic() < deadline, "no checkpoint was written"
        await asyncio.sleep(0.05)
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED)
    deadline = time.monotonic() + 5
    while folder.exists():
        assert time.monotonic() < deadline, "the checkpoint is still there"
        await asyncio.sleep(0.05)


async def test_steps_that_led_to_an_error_are_not_gone_on_from(
    queue: Queue, node: StartNode, agent: StartAgent
) -> None:
    running = await node(
        {"nan_at_decode": True}, APPLIANCE_CHECKPOINT_SECONDS="1", APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1"
    )
    agent(running)
    job_id = await add(queue, body=request(steps=25))
    deadline = time.monotonic() + 30
    while len((await first_attempt_of(queue, job_id)).history) < 2:
        assert time.monotonic() < deadline, "no second attempt has ended"
        await asyncio.sleep(0.1)
    job = await queue.get(job_id)
    assert job is not None
    assert [attempt.resumed_from for attempt in job.history[:2]] == [0, 0]
    assert job.checkpoint_step, "there was one to go on from"


async def test_a_cancelled_job_that_hangs_leaves_nothing(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    """Its engine has to be killed first, which takes the webui longer than any other answer."""
    faults = {"hang_at_step": 15}
    steps = {"APPLIANCE_CHECKPOINT_SECONDS": "1", "APPLIANCE_SYNTHETIC_STEP_SECONDS": "0.1"}
    running = await node(faults, APPLIANCE_STOP_SECONDS="6", **steps)
    agent(running)
    job_id = await add(queue, body=request(steps=150))
    await wait_for_step(queue, job_id, 14)
    folder = running.jobs / job_folder(job_id)
    assert (folder / "checkpoint").exists()
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED)
    deadline = time.monotonic() + 12
    while (folder / "checkpoint").exists() or list((folder / "attempts").iterdir()):
        assert time.monotonic() < deadline, "something is still there"
        await asyncio.sleep(0.1)


async def test_the_workers_record_tells_what_it_can_do(queue: Queue, node: StartNode, agent: StartAgent) -> None:
    agent(await node({"vram_mib": 24576, "max_frames": 32}))
    deadline = time.monotonic() + 10
    while not (workers := await queue.workers()) or not workers[0].capabilities.vram_mib:
        assert time.monotonic() < deadline, workers
        await asyncio.sleep(0.05)
    (worker,) = workers
    assert (worker.capabilities.vram_mib, worker.capabilities.max_frames) == (24576, 32)
    assert worker.capabilities.models == ("synthetic",)
    assert worker.gpu is not None
    assert worker.gpu["memory_total_mib"] == 24576


async def wait_for_step(queue: Queue, job_id: str, step: int) -> None:
    deadline = time.monotonic() + 15
    while True:
        job = await queue.get(job_id)
        if job is not None and job.step >= step:
            return
        assert time.monotonic() < deadline, f"never at step {step}: {job}"
        await asyncio.sleep(0.02)
