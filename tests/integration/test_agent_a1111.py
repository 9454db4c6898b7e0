"""The agent between a real Redis, real storage and a foreign A1111 (a double that speaks its contract over HTTP)."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from redis.asyncio import Redis

from appliance import storage
from appliance.agent.a1111 import A1111
from appliance.agent.a1111.front import serve_ping
from appliance.agent.loop import Agent
from appliance.agent.webui import WebuiError, WebuiNotThere
from appliance.job import JobState, attempt_folder, job_folder
from appliance.queue import JobRecord, Queue
from appliance.settings import A1111Settings, Address, AgentSettings, Common, Secret
from tests.integration import a1111_server
from tests.integration.a1111_server import ForeignA1111, draw, png
from tests.integration.redis_server import FAST, RedisServer, add, redis, redis_server  # noqa: F401
from tests.integration.test_agent import until, wait_for

pytestmark = pytest.mark.docker
QUEUE = replace(FAST, lease_seconds=1.0, beat_seconds=0.1)


@pytest.fixture
def foreign() -> Iterator[ForeignA1111]:
    server = ForeignA1111(auth="ada:pass:word")
    yield server
    server.close()


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    storage.prepare(tmp_path / "jobs")
    return tmp_path / "jobs"


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    queue = redis_server.queue(QUEUE)
    yield queue
    await queue.close()


class Running:
    """An agent that drives `foreign`, in this event loop."""

    def __init__(self, foreign: ForeignA1111, server: RedisServer, jobs_dir: Path, **more: Any) -> None:
        self.jobs_dir = jobs_dir
        own = {"load_seconds": 5.0, "silence_seconds": 1.0, "deaf_seconds": 0.1} | {
            k: more.pop(k) for k in ("auth",) if k in more
        }
        own.setdefault("auth", Secret("ada:pass:word"))
        settings = AgentSettings(
            common=Common("agent", "test", "info", Path("/nonexistent")),
            redis=server.settings,
            queue=QUEUE,
            worker="a/0",
            webui_url=foreign.url,
            jobs_dir=jobs_dir,
            cluster_token=Secret("unused"),
            stream_silence_seconds=2.0,
            no_progress_seconds=1.5,
            drain_seconds=0.3,
            a1111=A1111Settings(foreign.url, "mm_sd15_v3", **own),
        )
        settings = replace(settings, **more)
        assert settings.a1111 is not None
        self.stop = asyncio.Event()
        self.queue = server.queue(settings.queue)
        self.webui = A1111(settings.a1111, jobs_dir, 5.0)
        self.task = asyncio.create_task(Agent(settings, self.queue, self.webui).run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)
        await self.webui.close()
        await self.queue.close()


@pytest_asyncio.fixture
async def agent(
    foreign: ForeignA1111, redis_server: RedisServer, queue: Queue, jobs_dir: Path
) -> AsyncIterator[Running]:
    running = Running(foreign, redis_server, jobs_dir)
    yield running
    await running.end()


async def ask(queue: Queue, **request: Any) -> str:
    body = {"prompt": "a ball", "width": 128, "height": 64, "frames": 8, "steps": 6, "seed": 5} | request
    return await add(queue, body=json.dumps(body))


def files_of(jobs_dir: Path, job: JobRecord) -> dict[str, bytes]:
    """What was committed, each file as long and of the checksum that COMMIT says."""
    commit = storage.read_commit(jobs_dir, job.job_id)
    assert commit is not None
    folder = jobs_dir / attempt_folder(job.job_id, commit.fence)
    contents = {file.name: (folder / file.name).read_bytes() for file in commit.files}
    for file in commit.files:
        content = contents[file.name]
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {path.name for path in folder.iterdir()} == set(contents), "nothing half-written is left"
    return contents


async def wait_until_ready(webui: A1111) -> None:
    for _ in range(100):
        if (await webui.ping()).ready:
            return
        await asyncio.sleep(0.05)
    pytest.fail("it never became ready")


async def last_run(foreign: ForeignA1111) -> dict[str, Any]:
    return next(run for run in reversed(foreign.runs) if run["steps"] != 1)


async def at_step(queue: Queue, job_id: str, step: int) -> None:
    for _ in range(400):
        job = await queue.get(job_id)
        if job is not None and job.step >= step:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"never got to step {step}: {job}")


async def test_a_job_becomes_an_mp4_and_a_gif(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    job = await wait_for(queue, await ask(queue, format=["gif", "mp4"]), JobState.DONE)
    files = files_of(agent.jobs_dir, job)
    assert list(files) == ["video.mp4", "video.gif"], "in the order that our own webui has"
    with av.open(io.BytesIO(files["video.mp4"])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8
    with Image.open(io.BytesIO(files["video.gif"])) as gif:
        assert (gif.n_frames, gif.size) == (8, (128, 64))
    assert job.attempts == 1
    assert foreign.trials == 1, "it made a video before it got its first job"


async def test_everything_a_request_says_arrives(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    last = base64.b64encode(png(np.zeros((64, 64, 3), np.uint8))).decode()
    request = {
        "prompt": "head\n0: a\n4: b\ntail", "negative_prompt": "bad", "model": "OTHER.ckpt", "sampler": "euler A",
        "scheduler": "karras", "clip_skip": 2, "loras": [{"name": "style.safetensors", "weight": 0.5}],
        "init_image": last, "last_frame": last, "denoising_strength": 0.5, "fps": 12, "loop_number": 3,
        "closed_loop": True, "context_batch_size": 4, "context_overlap": 2, "context_stride": 2,
        "motion_module": "mm_sd_v15_v2.ckpt", "free_init": {"iterations": 2, "filter": "ideal"},
        "format": ["frames", "webp", "webm"], "cfg_scale": 4.5,
    }  # fmt: skip
    job = await wait_for(queue, await ask(queue, **request), JobState.DONE)
    assert list(files_of(agent.jobs_dir, job)) == ["video.webp", "video.webm", *(f"frame-{n:04}.png" for n in range(8))]
    run = await last_run(foreign)
    (arguments,) = run["alwayson_scripts"]["AnimateDiff"]["args"]
    assert run["path"] == "/sdapi/v1/img2img"
    assert (run["init_images"], run["denoising_strength"]) == ([last], 0.5)
    assert run["prompt"] == "head\n0: a\n4: b\ntail\n<lora:Style:0.5>"
    assert (run["sampler_name"], run["scheduler"], run["cfg_scale"], run["seed"]) == ("Euler a", "Karras", 4.5, 5)
    assert run["override_settings"] == {"sd_model_checkpoint": "other", "CLIP_stop_at_last_layers": 2}
    assert run["save_images"] is False
    expected = {
        "model": "mm_sd_v15_v2.ckpt", "enable": True, "video_length": 8, "fps": 12, "loop_number": 3,
        "closed_loop": "A", "batch_size": 4, "stride": 2, "overlap": 2, "format": ["WEBP", "WEBM", "Frame"],
        "freeinit_enable": True, "freeinit_filter": "ideal", "freeinit_iters": 2, "freeinit_ds": 0.25,
        "last_frame": last,
    }  # fmt: skip
    assert {name: arguments[name] for name in expected} == expected


async def test_what_it_can_do_is_known_to_the_queue(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    await wait_for(queue, await ask(queue), JobState.DONE)
    (worker,) = await queue.workers()
    assert worker.engine == "a1111"
    assert len(worker.fingerprint) == 64
    can = worker.capabilities
    assert (can.models, can.loras, can.samplers) == (
        ("good", "other"),
        ("Style",),
        ("DPM++ 2M", "Euler a", "Euler", "DDIM"),
    )
    assert can.motion_modules is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"loras": [{"name": "nobody", "weight": 1}]}, "loras: 'nobody' is not known"),
        ({"sampler": "Nonsense"}, "sampler: 'Nonsense' is not known"),
        ({"controlnets": [{"model": "c", "image": base64.b64encode(b"\x89PNG").decode()}]}, "controlnets"),
    ],
)
async def test_what_it_cannot_do_is_refused_before_it_is_asked(
    queue: Queue, foreign: ForeignA1111, agent: Running, request_: dict[str, Any], said: str
) -> None:
    job = await wait_for(queue, await ask(queue, **request_), JobState.DEAD)
    assert (job.reason, said in str(job.message)) == ("INVALID_INPUT", True), job.message
    assert len(foreign.runs) == foreign.trials


async def test_its_own_refusal_is_the_jobs_end(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    foreign.plan = ["", "422"]
    job = await wait_for(queue, await ask(queue), JobState.DEAD)
    assert (job.reason, "Script 'x' not found" in str(job.message)) == ("INVALID_INPUT", True)


async def test_out_of_memory_goes_down_the_ladder(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    foreign.context_limit = 12
    job = await wait_for(queue, await ask(queue, frames=16), JobState.DONE, seconds=15)
    contexts = [
        run["alwayson_scripts"]["AnimateDiff"]["args"][0]["batch_size"] for run in foreign.runs if run["steps"] != 1
    ]
    assert (job.ooms, contexts) == (1, [16, 12])
    assert "/sdapi/v1/unload-checkpoint" in foreign.called, "what the failed run has kept is freed"
    assert foreign.trials == 2, "and it has to prove itself before its next job"
    files_of(agent.jobs_dir, job)


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [("cuda", "CUDA_ERROR", "device-side assert"), ("still", "UNKNOWN", "no mp4 came back, but frames")],
)
async def test_other_failures_are_tried_again(
    queue: Queue, foreign: ForeignA1111, agent: Running, fault: str, reason: str, said: str
) -> None:
    foreign.plan = ["", fault]
    job_id = await ask(queue)
    job = await wait_for(queue, job_id, JobState.DELAYED)
    assert (job.reason, said in str(job.message)) == (reason, True), job.message
    job = await wait_for(queue, job_id, JobState.DONE, seconds=15)
    assert (job.errors, foreign.trials) == (1, 2)


async def test_a_still_image_or_a_gif_that_stands_still_is_no_video(
    queue: Queue, foreign: ForeignA1111, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wait_for(queue, await ask(queue), JobState.DONE)
    monkeypatch.setattr(a1111_server, "draw", lambda width, height, count, seed: draw(width, height, 1, seed))
    job = await wait_for(queue, await ask(queue, format=["gif"]), JobState.DELAYED)
    assert "a still image came back" in str(job.message)


async def test_an_answer_without_end_is_not_taken(
    queue: Queue, foreign: ForeignA1111, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.agent.a1111.client.ANSWER_BYTES", 1 << 20)
    foreign.plan = ["", "huge"]
    job = await wait_for(queue, await ask(queue), JobState.DONE, seconds=15)
    assert job.crashes == 1


async def test_a_run_that_hangs_is_given_up_and_the_next_attempt_waits_until_it_is_free(
    queue: Queue, foreign: ForeignA1111, agent: Running
) -> None:
    foreign.plan = ["", "wait"]
    job = await wait_for(queue, await ask(queue), JobState.DONE, seconds=15)
    assert (job.crashes, job.attempts) == (1, 2)
    assert "/sdapi/v1/interrupt" in foreign.called


async def test_one_that_hears_no_interrupt_gets_no_other_job(
    queue: Queue, foreign: ForeignA1111, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.agent.attempt.STOP_SECONDS", 0.5)
    monkeypatch.setattr("appliance.agent.a1111.adapter.FREE_SECONDS", 0.3)
    foreign.plan = ["", "hang"]
    job_id = await ask(queue)
    await at_step(queue, job_id, 2)
    job = await wait_for(queue, job_id, JobState.DELAYED, JobState.QUEUED)
    assert job.crashes == 1
    await until(lambda: "/sdapi/v1/server-kill" in foreign.called)
    assert len(foreign.runs) == 2, "nothing else is asked of it"
    foreign.go_on.set()
    assert (await wait_for(queue, job_id, JobState.DONE, seconds=15)).attempts == 2


async def test_one_that_stands_still_is_given_up(
    queue: Queue, foreign: ForeignA1111, redis_server: RedisServer, jobs_dir: Path
) -> None:
    running = Running(foreign, redis_server, jobs_dir, no_progress_seconds=9.0)
    try:
        foreign.plan = ["", "wait"]
        job_id = await ask(queue)
        await at_step(queue, job_id, 2)
        foreign.frozen.set()
        job = await wait_for(queue, job_id, JobState.DELAYED, JobState.QUEUED)
        assert (job.crashes, "has not answered" in str(job.message)) == (1, True), job.message
        foreign.frozen.clear()
        await wait_for(queue, job_id, JobState.DONE, seconds=15)
    finally:
        foreign.frozen.clear()
        await running.end()


async def test_a_crash_in_the_middle(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    foreign.plan = ["", "crash"]
    job_id = await ask(queue)
    await wait_for(queue, job_id, JobState.RUNNING)
    job = await wait_for(queue, job_id, JobState.DELAYED, JobState.QUEUED)
    assert job.crashes == 1
    foreign.start()
    job = await wait_for(queue, job_id, JobState.DONE, seconds=15)
    assert (job.attempts, foreign.trials) == (2, 2)
    attempts = agent.jobs_dir / job_folder(job_id) / "attempts"
    await until(lambda: [path.name for path in attempts.iterdir()] == [str(job.fence)])  # tidied after the commit


async def test_a_cancelled_job_stops_it(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    foreign.plan = ["", "wait"]
    job_id = await ask(queue)
    await at_step(queue, job_id, 2)
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED, seconds=3)
    await until(lambda: foreign.state["job_count"] == 0)
    await wait_for(queue, await ask(queue), JobState.DONE)


async def test_one_that_is_cancelled_while_it_loads_is_waited_for(
    queue: Queue, foreign: ForeignA1111, agent: Running
) -> None:
    """It hears the interrupt only afterwards. The next order would wait behind it, and be told its progress."""
    await wait_for(queue, await ask(queue), JobState.DONE)
    foreign.begin_seconds = 1.0
    job_id = await ask(queue)
    await until(lambda: foreign.state["job_count"] == -1)
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED, seconds=3)
    assert foreign.state["job_count"] == -1, "the user need not wait for it"
    foreign.begin_seconds = 0.0
    await wait_for(queue, await ask(queue), JobState.DONE)
    assert foreign.most_waiting == 1, "nothing was posted before it was free"


async def test_a_video_is_not_thrown_away_because_a_question_was_not_answered(
    queue: Queue, foreign: ForeignA1111, agent: Running
) -> None:
    await wait_for(queue, await ask(queue), JobState.DONE)
    foreign.deaf_after_run = 0.4
    job = await wait_for(queue, await ask(queue), JobState.DONE)
    assert (job.crashes, job.attempts) == (0, 1)


async def test_an_old_deafness_says_nothing_about_a_new_one(foreign: ForeignA1111, jobs_dir: Path) -> None:
    """The A1111 was started again meanwhile: the next run that takes its time is no reason to kill it."""
    webui = A1111(A1111Settings(foreign.url, "mm", Secret("ada:pass:word"), deaf_seconds=0.2), jobs_dir, 5.0)
    for _ in range(2):
        foreign.state = {**foreign.state, "job_count": 1}
        with pytest.raises(WebuiError, match="goes on with its work"):
            await webui.interrupt("", seconds=0.05)
        foreign.state = {**foreign.state, "job_count": 0}
        await wait_until_ready(webui)
        await asyncio.sleep(0.3)
    assert "/sdapi/v1/server-kill" not in foreign.called
    await webui.close()


async def test_a_run_interrupted_by_somebody_else_is_no_result(
    queue: Queue, foreign: ForeignA1111, agent: Running
) -> None:
    """It answers 200 with the video of half its steps."""
    foreign.plan = ["", "wait"]
    job_id = await ask(queue)
    await at_step(queue, job_id, 2)
    async with httpx.AsyncClient(auth=("ada", "pass:word")) as client:
        await client.post(f"{foreign.url}/sdapi/v1/interrupt")
    job = await wait_for(queue, job_id, JobState.DELAYED)
    assert "interrupted at the A1111 itself" in str(job.message)
    await wait_for(queue, job_id, JobState.DONE, seconds=15)


async def test_a_leftover_of_an_agent_that_died_is_interrupted(
    queue: Queue, foreign: ForeignA1111, redis_server: RedisServer, jobs_dir: Path
) -> None:
    foreign.plan = ["wait"]
    animate = {"video_length": 2, "batch_size": 2, "format": ["GIF"], "fps": 8}
    left = {"prompt": "x", "width": 64, "height": 64, "steps": 9, "seed": 1,
            "alwayson_scripts": {"AnimateDiff": {"args": [animate]}}}  # fmt: skip
    async with httpx.AsyncClient(auth=("ada", "pass:word"), timeout=30) as client:
        leftover = asyncio.create_task(client.post(f"{foreign.url}/sdapi/v1/txt2img", json=left))
        await until(lambda: foreign.state["sampling_step"] > 2)
        running = Running(foreign, redis_server, jobs_dir)
        try:
            await wait_for(queue, await ask(queue), JobState.DONE)
            assert leftover.done()
        finally:
            await running.end()


async def test_a_drained_agent_hands_its_job_back(queue: Queue, foreign: ForeignA1111, agent: Running) -> None:
    foreign.plan = ["", "wait"]
    job_id = await ask(queue)
    await at_step(queue, job_id, 2)
    agent.stop.set()
    job = await wait_for(queue, job_id, JobState.QUEUED, JobState.DELAYED)
    assert (job.crashes, job.errors) == (0, 0)
    await until(lambda: foreign.state["job_count"] == 0)


@pytest.mark.parametrize(("broken", "said"), [("auth", "401"), ("extension", "AnimateDiff"), ("trial", "first video")])
async def test_one_that_is_not_as_it_must_be_gets_no_job(
    queue: Queue, foreign: ForeignA1111, redis_server: RedisServer, jobs_dir: Path, broken: str, said: str
) -> None:
    auth = Secret("ada:wrong" if broken == "auth" else "ada:pass:word")
    foreign.extensions = [] if broken == "extension" else foreign.extensions
    foreign.plan = ["still"] * 100 if broken == "trial" else []
    running = Running(foreign, redis_server, jobs_dir, auth=auth)
    try:
        job_id = await ask(queue)
        for _ in range(200):
            status = (await running.webui.ping()).status
            if said in status:
                break
            await asyncio.sleep(0.02)
        assert said in status
        job = await queue.get(job_id)
        assert job is not None
        assert (job.state, job.attempts) == (JobState.QUEUED, 0)
        assert running.webui.facts()["status"] == "loading"
    finally:
        await running.end()


async def test_an_order_that_never_reached_it_has_not_begun(foreign: ForeignA1111, jobs_dir: Path) -> None:
    """The agent then gives the job back for free."""
    foreign.crash()
    webui = A1111(A1111Settings(foreign.url, "mm", Secret("")), jobs_dir, 5.0)
    body = {"job": "j", "fence": 1, "memory": {}, "request": {"prompt": "x"}}
    seen: list[object] = []

    async def listen() -> None:
        async with webui.generate(json.dumps(body).encode()) as events:
            async for event in events:
                seen.append(event["event"])

    with pytest.raises(WebuiNotThere):
        await listen()
    assert "started" not in seen
    await webui.close()


async def test_probes_are_answered_in_its_stead(foreign: ForeignA1111, jobs_dir: Path) -> None:
    settings = A1111Settings(foreign.url, "mm", Secret("ada:pass:word"), silence_seconds=0.5)
    webui = A1111(settings, jobs_dir, 5.0)
    async with serve_ping(Address("127.0.0.1", 0), webui.facts) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}"
        assert (await client.get(f"{url}/internal/ping")).status_code == 503
        await wait_until_ready(webui)
        answer = await client.get(f"{url}/internal/ping")
        assert (answer.status_code, answer.json()["status"], answer.json()["engine"]) == (200, "ok", "a1111")
        assert len(answer.json()["fingerprint"]) == 64
        assert (await client.get(f"{url}/")).status_code == 404
        foreign.crash()
        await asyncio.sleep(0.6)
        assert (await client.get(f"{url}/internal/ping")).status_code == 503, "what was long ago is no health"
    await webui.close()
