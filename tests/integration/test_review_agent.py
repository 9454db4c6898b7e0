"""Ends of an attempt at which a committed result, or the line behind a bad job, could get lost."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys, storage
from appliance.agent import loop as agent_loop
from appliance.agent.attempt import Attempt
from appliance.agent.ending import Ending
from appliance.agent.loop import Agent
from appliance.agent.webui import Ping
from appliance.job import JobState, attempt_folder, job_folder
from appliance.queue import Claim, CommitAnswer, JobRecord, Queue, Taker
from appliance.redis_link import RedisLink
from appliance.settings import AgentSettings, Common, Secret
from tests.integration.redis_server import FAST, RedisServer, add, redis, redis_server, take  # noqa: F401

pytestmark = pytest.mark.docker

QUEUE = replace(FAST, lease_seconds=0.6, beat_seconds=0.1)


class Studio:
    """A webui without HTTP: writes one file after `seconds`."""

    def __init__(self, jobs_dir: Path, seconds: float = 0.0) -> None:
        self.jobs_dir = jobs_dir
        self.seconds = seconds
        self.made: list[str] = []

    async def ping(self) -> Ping:
        return Ping(ready=True, status="ok")

    async def interrupt(self, job_id: str, fence: int, **_: object) -> None:
        pass

    @asynccontextmanager
    async def generate(self, body: bytes) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        yield self._events(json.loads(body))

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"event": "started", "total_steps": 1}
        began = time.monotonic()
        while time.monotonic() < began + self.seconds:
            await asyncio.sleep(0.05)
            yield {"event": "alive", "phase": "step"}
        self.made.append(body["job"])
        folder = self.jobs_dir / body["output_dir"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "video.mp4").write_bytes(b"frames")
        file = {"name": "video.mp4", "media_type": "video/mp4", "size_bytes": 6, "sha256": "0" * 64}
        yield {"event": "done", "files": [file]}


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    storage.prepare(tmp_path / "jobs")
    return tmp_path / "jobs"


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    queue = redis_server.queue(QUEUE)
    yield queue
    await queue.close()


def settings_for(jobs_dir: Path, server: RedisServer, worker: str = "a/0", patience: float = 3.0) -> AgentSettings:
    common = Common("agent", "test", "info", Path("/nonexistent"))
    url, token = "http://127.0.0.1:1", Secret("unused")
    return AgentSettings(common, server.settings, QUEUE, worker, url, jobs_dir, token, 1.0, patience, 0.5)


def attempt(
    settings: AgentSettings, queue: Queue, claim: Claim, studio: Studio, drain: asyncio.Event | None = None
) -> asyncio.Task[Ending]:
    drain = drain or asyncio.Event()
    made = Attempt(
        settings,
        queue,
        studio,  # type: ignore[arg-type]
        Taker(queue),
        claim,
        ping=Ping(ready=True, status="ok"),
        looked_at=time.monotonic(),
        look_ahead=AsyncMock(return_value=False),
        next_asker=lambda: None,
        drain_over=drain,
        hand_back=drain,
    )
    return asyncio.create_task(made.run())


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def claim_again(queue: Queue, worker: str = "b/0") -> Claim:
    """Until a lease has run out, or a delay is over."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        claim = await queue.claim(worker, os.urandom(8).hex())
        if isinstance(claim, Claim):
            return claim
        await asyncio.sleep(0.05)
    pytest.fail("nothing to claim")


async def finished(queue: Queue, job_id: str, jobs_dir: Path) -> JobRecord:
    """The job, done, with its video really there."""
    job = await queue.get(job_id)
    assert job is not None
    assert job.state is JobState.DONE, job
    assert job.result is not None
    folder = jobs_dir / attempt_folder(job_id, job.result["fence"])
    assert [file["name"] for file in job.result["files"] if (folder / file["name"]).is_file()] == ["video.mp4"]
    return job


# --- COMMIT is the arbiter, also against its own author --------------------------------------------------------------


async def test_a_zombie_that_had_committed_leaves_its_result_to_the_adopter(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen between COMMIT and telling Redis; meanwhile another worker adopts what COMMIT names."""
    job_id = await add(queue)
    claim = await take(queue)
    zombie_queue = redis_server.queue(QUEUE)
    thaw = asyncio.Event()

    async def frozen_commit(claim: Claim, result: str, *, adopted: bool = False, **_: object) -> CommitAnswer:
        await thaw.wait()
        return await queue.commit(claim, result, adopted=adopted)

    async def frozen_beat(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    zombie = attempt(settings_for(jobs_dir, redis_server), zombie_queue, claim, Studio(jobs_dir))
    monkeypatch.setattr(zombie_queue, "commit", frozen_commit)
    await until((jobs_dir / job_folder(job_id) / "COMMIT").is_file)
    monkeypatch.setattr(zombie_queue, "beat", frozen_beat)
    adopter = Studio(jobs_dir)
    await attempt(settings_for(jobs_dir, redis_server, "b/0"), queue, await claim_again(queue), adopter)
    thaw.set()
    await zombie
    job = await finished(queue, job_id, jobs_dir)
    assert job.result is not None
    assert (job.result["fence"], adopter.made) == (claim.fence, [])
    await zombie_queue.close()


@pytest.mark.parametrize("made", [True, False])
async def test_a_job_that_is_too_late_is_looked_at_but_not_made(
    queue: Queue, redis_server: RedisServer, redis: Redis, jobs_dir: Path, made: bool
) -> None:
    """Its worker was lost while it committed, and then its deadline passed."""
    job_id = await add(queue, deadline_seconds=0.3)
    first = await take(queue)
    await queue.beat(first, 3, 3, "commit")
    if made:
        storage.make_attempt_folder(jobs_dir, job_id, first.fence)
        file = storage.write_result(jobs_dir, job_id, first.fence, "video.mp4", "video/mp4", b"frames")
        storage.write_commit(jobs_dir, storage.new_commit(job_id, first.fence, "a/0", (file,)))
    await asyncio.sleep(0.4)
    await redis.zadd(keys.LEASE, {job_id: 1})
    studio = Studio(jobs_dir)
    await attempt(settings_for(jobs_dir, redis_server, "b/0"), queue, await claim_again(queue), studio)
    assert studio.made == []
    if made:
        await finished(queue, job_id, jobs_dir)
    else:
        job = await queue.get(job_id)
        assert job is not None
        assert (job.state, job.reason) == (JobState.DEAD, "TIMEOUT")


async def test_a_link_that_worked_but_was_told_to_have_failed_keeps_its_result(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a network file system does when the server's answer gets lost."""
    job_id = await add(queue)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", link_and_fail)
        await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Studio(jobs_dir))
    adopter = Studio(jobs_dir)
    await attempt(settings_for(jobs_dir, redis_server), queue, await claim_again(queue), adopter)
    job = await finished(queue, job_id, jobs_dir)
    assert (job.errors, job.crashes, adopter.made) == (0, 0, [])


def link_and_fail(source: Path, target: Path, real: Callable[..., None] = os.link) -> None:
    real(source, target)
    raise OSError(errno.EIO, "the answer got lost")


async def test_a_commit_that_hangs_and_lands_late_keeps_its_result(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, release, landed = storage.write_commit, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(root: Path, commit: storage.Commit) -> storage.Commit:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        winner = real(root, commit)
        loop.call_soon_threadsafe(landed.set)
        return winner

    job_id = await add(queue)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_commit", hang)
        settings = settings_for(jobs_dir, redis_server, patience=0.3)
        await attempt(settings, queue, await take(queue), Studio(jobs_dir))
        release.set()
        await asyncio.wait_for(landed.wait(), 5)
    adopter = Studio(jobs_dir)
    await attempt(settings_for(jobs_dir, redis_server), queue, await claim_again(queue), adopter)
    assert (await finished(queue, job_id, jobs_dir)).errors == 0
    assert adopter.made == []


async def test_a_full_disk_at_the_commit_is_not_the_jobs_fault(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    job_id = await add(queue)
    for _ in range(FAST.error_budget):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            claim = await claim_again(queue)
            folder = jobs_dir / attempt_folder(job_id, claim.fence)
            folder.mkdir(parents=True)
            await attempt(settings_for(jobs_dir, redis_server), queue, claim, Studio(jobs_dir))
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state.is_final, job.errors) == (False, 0)
    assert [path.name for path in (jobs_dir / job_folder(job_id)).iterdir()] == ["attempts"]


async def test_the_queue_is_told_that_a_result_is_being_committed(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await add(queue)
    real = storage.write_commit
    phases: list[str] = []

    def watch(root: Path, commit: storage.Commit) -> storage.Commit:
        job = asyncio.run_coroutine_threadsafe(queue.get(job_id), loop).result()
        phases.append(job.phase if job else "no job")
        return real(root, commit)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(storage, "write_commit", watch)
    await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Studio(jobs_dir))
    assert phases == ["commit"]


# --- one bad job, and everybody else ---------------------------------------------------------------------------------


async def test_a_job_with_a_broken_commit_does_not_stop_the_line(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_loop, "PAUSE_MOST_SECONDS", 0.05)
    bad, good = await add(queue), await add(queue)
    folder = jobs_dir / job_folder(bad)
    folder.mkdir(parents=True)
    (folder / "COMMIT").write_text("")
    studio, stop = Studio(jobs_dir), asyncio.Event()
    agent = Agent(settings_for(jobs_dir, redis_server), queue, studio)  # type: ignore[arg-type]
    running = asyncio.create_task(agent.run(stop))
    await until(lambda: good in studio.made)
    stop.set()
    await running


async def test_what_a_claim_has_ended_is_told_before_its_own_job_ends(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = await add(queue)
    await take(queue, "gone/0")
    await redis.zadd(keys.LEASE, {lost: 1})
    studio, stop = Studio(jobs_dir, seconds=3600), asyncio.Event()
    agent = Agent(settings_for(jobs_dir, redis_server), queue, studio)  # type: ignore[arg-type]
    with caplog.at_level("INFO", "appliance.job_result"):
        running = asyncio.create_task(agent.run(stop))
        await until(lambda: any("crash" in record.getMessage() for record in caplog.records), 2)
        assert studio.made == []
    studio.seconds = 0
    await until(lambda: lost in studio.made)
    stop.set()
    await running


async def test_a_job_without_its_request_does_not_end_the_agent(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path
) -> None:
    job_id = await add(queue)
    await redis.delete(keys.request(job_id))
    await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Studio(jobs_dir))
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.crashes) == (JobState.QUEUED, 1)


# --- a Redis that answers, but refuses -------------------------------------------------------------------------------


async def test_a_lease_outlives_a_moment_without_permission(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path
) -> None:
    """The user's rights are renewed (a secret rotated, an ACL reloaded) while a job runs."""
    await redis.acl_setuser("worker", enabled=True, passwords=["+worker"], keys=["*"], commands=["+@all"])
    settings = replace(redis_server.settings, username="worker", password=Secret("worker"))
    own = Queue(RedisLink(settings), QUEUE)
    job_id = await add(queue)
    running = attempt(settings_for(jobs_dir, redis_server), own, await take(own), Studio(jobs_dir, seconds=1.5))
    await asyncio.sleep(0.2)
    await redis.acl_setuser("worker", enabled=True, commands=["-evalsha"])
    await asyncio.sleep(0.2)
    await redis.acl_setuser("worker", enabled=True, commands=["+evalsha"])
    while not running.done():
        await queue.tick()
        await asyncio.sleep(0.05)
    job = await finished(queue, job_id, jobs_dir)
    assert (job.attempts, job.crashes) == (1, 0)
    await own.close()
    await redis.acl_deluser("worker")
