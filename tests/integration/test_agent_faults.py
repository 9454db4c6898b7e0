"""The agent at its turning points: drain, freeze, restart, twins, hints, trash. Real Redis, real storage, a webui of
the tests' own that does what a real one cannot be made to do."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from appliance import keys, storage
from appliance.agent import presence, trash
from appliance.agent.trash import TrashCollector
from appliance.disk import Disk
from appliance.job import JobState, Needs, job_folder, new_job_id
from appliance.queue import BeatAnswer, JobRecord, Queue
from appliance.queue.types import Registration
from appliance.redis_watchdog import EXIT_CODE
from tests.integration.redis_server import RedisServer, redis, redis_server  # noqa: F401
from tests.integration.test_agent import (  # noqa: F401
    QUEUE,
    Peer,
    Running,
    add,
    agent,
    jobs_dir,
    peer,
    queue,
    settings_for,
    start_process,
    until,
    wait_for,
)

pytestmark = pytest.mark.docker

CAN: dict[str, object] = {"models": ["m"], "motion_modules": ["mm"], "vram_mib": 8192, "max_frames": 32}


# --- what the webui is asked -----------------------------------------------------------------------------------------


async def test_a_webui_that_knows_checkpoints_is_told_where_and_how(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.capabilities = CAN
    peer.plan = ["OOM"]
    job_id = await add(queue)
    await wait_for(queue, job_id, JobState.DONE)
    first, second = peer.requests
    assert first["checkpoint_dir"] == f"{job_folder(job_id)}/checkpoint"
    assert first["memory"] == {"context_batch_size": None, "vae_tiling": False, "cpu_offload": False}
    assert second["memory"] == {"context_batch_size": 12, "vae_tiling": False, "cpu_offload": False}


async def test_an_older_webui_is_asked_as_it_understands(queue: Queue, peer: Peer, agent: Running) -> None:
    """In the middle of an upgrade; it would refuse the rest, and the job would be dead."""
    await wait_for(queue, await add(queue), JobState.DONE)
    assert set(peer.requests[0]) == {"job", "fence", "output_dir", "request"}


async def test_a_webui_with_other_models_since_the_claim_costs_nothing(
    queue: Queue, peer: Peer, agent: Running
) -> None:
    """Its 422 speaks about the models that it has now; the job may be right for the next worker."""
    peer.plan = ["422 of another model"]
    job = await wait_for(queue, await add(queue), JobState.DONE)
    assert (job.attempts, job.errors, job.crashes) == (2, 0, 0)
    assert job.history[0].kind == "refused"


async def test_a_job_that_does_not_fit_is_left_to_others(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    big = await add(queue, needs=Needs(vram_mib=12288))
    peer.capabilities = CAN
    running = Running(settings_for(peer, redis_server), redis_server)
    await wait_for(queue, await add(queue), JobState.DONE)
    assert (await wait_for(queue, big, JobState.QUEUED)).attempts == 0
    peer.capabilities = {**CAN, "vram_mib": 24576}
    await wait_for(queue, big, JobState.DONE)
    await running.end()


async def test_a_webui_that_is_out_for_a_moment_is_known_for_what_it_can(
    queue: Queue, peer: Peer, redis_server: RedisServer
) -> None:
    """Or a job that no worker can run would be accepted whenever one of them is started again."""
    peer.capabilities = CAN
    running = Running(settings_for(peer, redis_server), redis_server)
    await wait_for(queue, await add(queue), JobState.DONE)
    peer.ready, peer.capabilities = False, None
    await asyncio.sleep(1.5)
    (worker,) = await queue.workers()
    assert (worker.state, worker.capabilities.vram_mib) == ("unready", 8192)
    await running.end()


async def test_a_slow_disk_is_not_the_webuis_silence(
    queue: Queue, peer: Peer, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.read_commit

    def slow(root: Path, job_id: str) -> storage.Commit | None:
        time.sleep(2 * 0.5)  # twice the silence that the tests' settings allow
        return real(root, job_id)

    monkeypatch.setattr(storage, "read_commit", slow)
    peer.plan = ["slow start"]
    job = await wait_for(queue, await add(queue), JobState.DONE)
    assert (job.attempts, job.crashes) == (1, 0)


async def test_reading_an_order_is_not_the_webuis_silence(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    """Pictures by the dozen take seconds, and its stream begins only then."""
    peer.plan = ["slow reader"]
    running = Running(replace(settings_for(peer, redis_server), stream_silence_seconds=1.0), redis_server)
    job = await wait_for(queue, await add(queue), JobState.DONE)
    assert (job.attempts, job.crashes) == (1, 0)
    await running.end()


async def test_a_webui_that_freezes_over_an_order_is_left(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    peer.plan = ["frozen reader"]
    job_id = await add(queue)
    running = Running(replace(settings_for(peer, redis_server), stream_silence_seconds=1.5), redis_server)
    await until(peer.frozen.is_set)
    job = await wait_for(queue, job_id, JobState.QUEUED)
    assert (job.crashes, job.message) == (1, "the webui said nothing for 1.5 s")
    await running.end()


async def test_a_lease_outlives_a_bug_in_the_heartbeat(
    queue: Queue, peer: Peer, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = agent.queue.beat, 0

    async def beat(*args: object, **more: object) -> BeatAnswer:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise TypeError("on purpose")
        return await real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(agent.queue, "beat", beat)
    peer.plan = ["wait"]
    job_id = await add(queue)
    await asyncio.sleep(2 * QUEUE.lease_seconds)
    await queue.tick()
    peer.go_on.set()
    job = await wait_for(queue, job_id, JobState.DONE)
    assert (job.attempts, job.crashes) == (1, 0)


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_a_drain_asks_for_a_checkpoint_of_that_very_attempt(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan, peer.checkpoint_step = ["wait"], 2
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    agent.stop.set()
    job = await wait_for(queue, job_id, JobState.QUEUED)
    assert peer.interrupts[0] == {"job": job_id, "fence": peer.requests[0]["fence"], "checkpoint": True}
    assert job.checkpoint_step == 2
    assert (job.crashes, job.errors, job.history[0].kind) == (0, 0, "release")


async def test_a_result_that_is_ready_at_the_end_of_the_grace_counts(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["done when interrupted"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    agent.stop.set()
    job = await wait_for(queue, job_id, JobState.DONE)
    assert job.attempts == 1


@pytest.mark.parametrize("phase", ["idle", "unready", "replaced"])
async def test_an_agent_without_a_job_stops_at_once(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, phase: str
) -> None:
    peer.ready = phase != "unready"
    running = Running(replace(settings_for(peer, redis_server), drain_seconds=30), redis_server)
    await asyncio.sleep(0.5)
    if phase == "replaced":
        await queue.register("a/0", boot_id="younger", state="idle", engine="", fingerprint="", synthetic="0")
        await asyncio.sleep(0.5)
    await asyncio.wait_for(running.end(), 3)
    (worker,) = await queue.workers()
    assert worker.state == ("idle" if phase == "replaced" else "stopped")


async def test_stopped_with_a_commit_that_redis_does_not_know(peer: Peer, images: str) -> None:
    """COMMIT is written, Redis is away, SIGTERM comes: the agent ends in time, and the next one adopts."""
    with RedisServer(images) as server:
        queue = server.queue(QUEUE)
        leaving = Running(settings_for(peer, server), server)
        peer.plan = ["wait"]
        job_id = await add(queue)
        await until(lambda: bool(peer.requests))
        real = storage.write_commit
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def commit_then_stop(root: Path, mine: storage.Commit) -> storage.Commit:
            winner = real(root, mine)
            server.stop()
            loop.call_soon_threadsafe(stopped.set)
            return winner

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(storage, "write_commit", commit_then_stop)
            peer.go_on.set()
            await asyncio.wait_for(stopped.wait(), 10)
            await asyncio.wait_for(leaving.end(), 8)
        await asyncio.to_thread(server.start)
        await queue.close()
        heir = Running(settings_for(peer, server, "b/0"), server)
        job = await wait_for(queue, job_id, JobState.DONE)
        assert job.result is not None
        assert (job.result["worker"], len(peer.requests)) == ("a/0", 1)
        await heir.end()
        await queue.close()


# --- freezes --------------------------------------------------------------------------------------------------------


class FrozenCommit:
    """Stands still between the last heartbeat and COMMIT, for as long as the test wants; to the queue it is dead."""

    def __init__(self, frozen: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._thaw = asyncio.Event(), asyncio.Event()
        self._real, self._loop = storage.write_commit, asyncio.get_running_loop()
        self._frozen, self._monkeypatch = frozen, monkeypatch
        monkeypatch.setattr(storage, "write_commit", self._write)

    def _write(self, root: Path, mine: storage.Commit) -> storage.Commit:
        if mine.worker == "a/0":
            asyncio.run_coroutine_threadsafe(self._stand_still(), self._loop).result()
        return self._real(root, mine)

    async def _stand_still(self) -> None:
        async def silent(*_: object, **__: object) -> BeatAnswer:
            await self._thaw.wait()
            return BeatAnswer.OK

        async def unheard(*_: object, **__: object) -> Registration:
            await self._thaw.wait()
            return Registration(1)

        self._monkeypatch.setattr(self._frozen, "beat", silent)
        self._monkeypatch.setattr(self._frozen, "register", unheard)
        self.reached.set()
        await self._thaw.wait()

    def thaw(self) -> None:
        self._thaw.set()


async def tick_until(queue: Queue, job_id: str, wanted: Callable[[JobRecord], bool]) -> JobRecord:
    deadline = time.monotonic() + 10
    while True:
        await queue.tick()
        job = await queue.get(job_id)
        assert job is not None
        if wanted(job):
            return job
        assert time.monotonic() < deadline, f"still {job}"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("thawed", ["while the heir works", "after the heir", "after a cancel"])
async def test_frozen_before_its_commit(
    queue: Queue, peer: Peer, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, thawed: str
) -> None:
    zombie = Running(settings_for(peer, redis_server), redis_server)
    frozen = FrozenCommit(zombie.queue, monkeypatch)
    job_id = await add(queue)
    await asyncio.wait_for(frozen.reached.wait(), 10)
    peer.plan = ["wait"]
    heir = Running(settings_for(peer, redis_server, "b/0"), redis_server)
    await tick_until(queue, job_id, lambda job: job.state is JobState.RUNNING and job.worker == "b/0")
    await until(lambda: len(peer.requests) == 2)
    if thawed == "after a cancel":
        await queue.cancel(job_id)
        await wait_for(queue, job_id, JobState.CANCELLED)
    elif thawed == "after the heir":
        peer.go_on.set()
        await wait_for(queue, job_id, JobState.DONE)
    frozen.thaw()
    await until((peer.jobs_dir / job_folder(job_id) / "COMMIT").is_file)
    peer.go_on.set()
    await zombie.end()
    await heir.end()
    job = await queue.get(job_id)
    assert job is not None
    commit = storage.read_commit(peer.jobs_dir, job_id)
    assert commit is not None
    if thawed == "after a cancel":
        assert (job.state, job.result) == (JobState.CANCELLED, None), "a cancelled job came back"
        return
    assert job.state is JobState.DONE
    assert job.result is not None
    assert (job.result["fence"], job.result["worker"]) == (commit.fence, commit.worker)
    assert commit.worker == ("b/0" if thawed == "after the heir" else "a/0")
    storage.verify_files(peer.jobs_dir, job_id, commit.fence, commit.files)
    assert [record.kind for record in job.history].count("done") == 1


# --- twins -----------------------------------------------------------------------------------------------------------


async def test_of_two_agents_with_one_name_the_younger_works(
    queue: Queue,
    peer: Peer,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    older = Running(settings_for(peer, redis_server), redis_server)
    await wait_for(queue, await add(queue), JobState.DONE)
    younger = Running(settings_for(peer, redis_server), redis_server)
    await until(lambda: "started later" in caplog.text)
    jobs = [await add(queue) for _ in range(5)]
    done = [await wait_for(queue, job_id, JobState.DONE) for job_id in jobs]
    assert [(job.attempts, job.crashes) for job in done] == [(1, 0)] * 5
    (worker,) = await queue.workers()
    await younger.end()
    job = await wait_for(queue, await add(queue), JobState.DONE, seconds=5)
    assert job.attempts == 1, "the older one did not take over"
    assert (await queue.workers())[0].boot_id != worker.boot_id
    await older.end()


# --- hints -----------------------------------------------------------------------------------------------------------

SLOW_BEATS = replace(QUEUE, lease_seconds=30.0, beat_seconds=10.0)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_cancelled_job_is_stopped_before_the_next_heartbeat(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, cut: bool
) -> None:
    settings = replace(settings_for(peer, redis_server), queue=SLOW_BEATS, no_progress_seconds=30.0)
    running = Running(settings, redis_server)
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    if cut:  # the subscription's connection is lost, and made again
        await redis.client_kill_filter(_type="pubsub")
        await asyncio.sleep(2.0)
    await asyncio.sleep(0.3)
    lease = await redis.zscore(keys.LEASE, job_id)
    await redis.publish(keys.CONTROL, new_job_id())
    await asyncio.sleep(0.3)
    assert await redis.zscore(keys.LEASE, job_id) == lease, "another job's hint counted"
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED, seconds=3)
    await running.end()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_redis_that_stands_still_ends_an_agent_only_without_a_job(
    peer: Peer, images: str, tmp_path: Path, busy: bool
) -> None:
    """Its connections stay open, so that silence on the cancel channel proves nothing."""
    with RedisServer(images) as server:
        queue = server.queue(QUEUE)
        process = start_process(peer, server, tmp_path / "a", "a/0", APPLIANCE_REDIS_WATCHDOG_SECONDS="3")
        try:
            peer.plan = ["wait"] if busy else []
            job_id = await add(queue)
            await until(lambda: bool(peer.requests), 10)
            if not busy:
                await wait_for(queue, job_id, JobState.DONE)
            await asyncio.to_thread(server.pause)
            if not busy:
                assert await asyncio.to_thread(process.wait, 15) == EXIT_CODE
                return
            await asyncio.sleep(8)
            assert process.poll() is None, "the work of a running job was thrown away"
            await asyncio.to_thread(server.unpause)
            peer.go_on.set()
            await queue.close()
            job = await wait_for(queue, job_id, JobState.DONE)
            assert (job.attempts, job.crashes) == (1, 0)
        finally:
            await queue.close()
            process.kill()
            process.wait()


@pytest.mark.parametrize("is_taken", [False, True])
async def test_steps_that_may_be_wrong_go_unless_another_attempt_is_on_them(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, is_taken: bool
) -> None:
    """It was taken away, and fails before its heartbeat has heard of it."""
    peer.plan = ["wait and fail", "wait"]
    slow = replace(QUEUE, lease_seconds=6.0, beat_seconds=2.0)
    running = Running(replace(settings_for(peer, redis_server), queue=slow), redis_server)
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    steps = peer.jobs_dir / job_folder(job_id) / "checkpoint" / f"{peer.requests[0]['fence']}-1.safetensors"
    steps.parent.mkdir(parents=True)
    steps.touch()
    if is_taken:
        await redis.hset(keys.job(job_id), "nonce", "another's")
    peer.go_on.set()
    await until(lambda: bool(peer.interrupted))  # the last that a failed attempt does
    assert steps.exists() is is_taken
    await running.end()


# --- trash -----------------------------------------------------------------------------------------------------------


async def throw_away(redis: Redis, peer: Peer, count: int) -> list[str]:
    jobs = [new_job_id() for _ in range(count)]
    for job_id in jobs:
        storage.make_attempt_folder(peer.jobs_dir, job_id, 1)
    await redis.sadd(keys.TRASH, *jobs)
    return jobs


def left(peer: Peer, jobs: list[str]) -> list[str]:
    return [job_id for job_id in jobs if (peer.jobs_dir / job_folder(job_id)).exists()]


async def test_an_idle_agent_takes_the_trash_out(
    queue: Queue, peer: Peer, redis: Redis, agent: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "EVERY_SECONDS", 0.1)
    jobs = await throw_away(redis, peer, 25)
    deadline = time.monotonic() + 8
    while await redis.scard(keys.TRASH):
        assert time.monotonic() < deadline, f"left: {left(peer, jobs)}"
        await asyncio.sleep(0.05)
    assert left(peer, jobs) == []


async def test_an_agent_with_work_lets_the_trash_wait(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "EVERY_SECONDS", 0.05)
    peer.plan = ["wait"]
    job_id = await add(queue)
    running = Running(settings_for(peer, redis_server), redis_server)
    await until(lambda: bool(peer.requests))
    jobs = await throw_away(redis, peer, 3)
    await asyncio.sleep(0.4)
    assert left(peer, jobs) == jobs
    running.stop.set()
    await wait_for(queue, job_id, JobState.QUEUED)
    await running.end()
    assert left(peer, jobs) == jobs


async def test_trash_does_not_wait_for_ever(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents that always have work would leave a full disk full, and then nothing could be made any more."""
    monkeypatch.setattr(trash, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(trash, "BUSY_SECONDS", 1.0)
    peer.plan = ["wait"]
    await add(queue)
    running = Running(settings_for(peer, redis_server), redis_server)
    await until(lambda: bool(peer.requests))
    jobs = await throw_away(redis, peer, trash.AT_ONCE + 1)
    await until(lambda: len(left(peer, jobs)) == 1, 3)
    await asyncio.sleep(0.3)
    assert len(left(peer, jobs)) == 1, "a few at a time"
    await until(lambda: not left(peer, jobs), 3)
    await running.end()


async def test_an_agent_out_of_work_lets_the_trash_be(
    queue: Queue, peer: Peer, redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its storage may hang, and each removal would keep a thread."""
    monkeypatch.setattr(trash, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(trash, "BUSY_SECONDS", 0.2)
    peer.ready = False
    running = Running(settings_for(peer, redis_server), redis_server)
    jobs = await throw_away(redis, peer, 2)
    await asyncio.sleep(1)
    assert left(peer, jobs) == jobs
    await running.end()


async def test_an_agent_at_work_bothers_a_storage_that_fails_only_once(
    queue: Queue, peer: Peer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a video to write there; each removal that hangs would keep a thread from that."""
    real, asked = storage.remove_job, []

    def remove(root: Path, job_id: str) -> None:
        asked.append(job_id)
        real(root, job_id)

    monkeypatch.setattr(storage, "remove_job", remove)
    await throw_away(redis, peer, 3)
    (peer.jobs_dir / storage.MARKER).unlink()
    collector = TrashCollector(queue, Disk(peer.jobs_dir, 3), lambda: True)
    assert await collector.collect(at_work=True) == 0
    assert len(asked) == 1
    assert await collector.collect() == 0
    assert len(asked) == 4


async def test_a_job_that_is_alive_is_no_trash(queue: Queue, peer: Peer, redis: Redis) -> None:
    job_id = await add(queue)
    storage.make_attempt_folder(peer.jobs_dir, job_id, 1)
    await redis.sadd(keys.TRASH, job_id)
    await TrashCollector(queue, Disk(peer.jobs_dir, 3), lambda: True).collect()
    assert left(peer, [job_id]) == [job_id]
    assert await redis.scard(keys.TRASH) == 0


async def test_an_end_in_the_middle_leaves_the_rest_for_the_next(
    queue: Queue, peer: Peer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await throw_away(redis, peer, 6)
    real, removed = storage.remove_job, 0

    def remove(root: Path, job_id: str) -> None:
        nonlocal removed
        if removed == 3:
            raise RuntimeError("killed")
        removed += 1
        real(root, job_id)

    collector = TrashCollector(queue, Disk(peer.jobs_dir, 3), lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "remove_job", remove)
        with pytest.raises(RuntimeError, match="killed"):
            await collector.collect()
    assert await redis.scard(keys.TRASH) == 6
    assert len(left(peer, jobs)) == 3
    await collector.collect()
    assert await redis.scard(keys.TRASH) == 0
    assert left(peer, jobs) == []


async def test_what_cannot_be_removed_stays_in_the_trash(
    queue: Queue, peer: Peer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await throw_away(redis, peer, 2)
    (peer.jobs_dir / storage.MARKER).unlink()
    await TrashCollector(queue, Disk(peer.jobs_dir, 3), lambda: True).collect()
    assert await redis.scard(keys.TRASH) == 2
    assert left(peer, jobs) == jobs
