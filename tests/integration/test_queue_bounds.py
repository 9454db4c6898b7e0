"""What big requests, wrong clocks, workers out of service and repeated failures must not do to everybody else."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueUnavailable
from appliance.job import JobState
from appliance.queue import BeatAnswer, FailKind, Queue
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    RedisServer,
    add,
    queue,
    redis,
    redis_server,
    submission,
    take,
)

pytestmark = pytest.mark.docker

HOUR_MS = 3_600_000
BIG = "x" * 1_000_000
SMALL = "x" * 1000


async def fill(redis: Redis, share: float) -> None:
    """Sets the limit so that so much of it is in use. What a request takes beside its own megabyte must not count."""
    for number in range(100):
        await redis.set(f"ballast:{number}", BIG)
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", int(used / share))


async def end(queue: Queue, state: JobState, **more: object) -> str:
    job_id = await add(queue, **more)
    if state is JobState.CANCELLED:
        await queue.cancel(job_id)
    elif state is JobState.DONE:
        await queue.commit(await take(queue), "{}")
    else:
        await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    return job_id


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "body", "status"), [(0.7, BIG, "ok"), (0.8, BIG, "full"), (0.8, SMALL, "ok")])
async def test_big_requests_leave_room_for_the_others(
    queue: Queue, redis: Redis, share: float, body: str, status: str
) -> None:
    await fill(redis, share)
    try:
        accepted = await queue.submit(submission(body=body))
        assert accepted.status == status
    finally:
        await redis.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("state", "body", "share", "seconds"),
    [
        (JobState.DONE, SMALL, 0.7, 3600),
        (JobState.DONE, BIG, 0.2, 60),
        (JobState.CANCELLED, BIG, 0.2, 60),
        (JobState.DEAD, SMALL, 0.7, -1),
        (JobState.DEAD, BIG, 0.2, -1),
        (JobState.DEAD, BIG, 0.7, 3600),
    ],
)
async def test_how_long_a_request_outlives_its_job(
    queue: Queue, redis: Redis, state: JobState, body: str, share: float, seconds: int
) -> None:
    await fill(redis, share)
    try:
        job_id = await end(queue, state, body=body)
        assert await redis.ttl(keys.request(job_id)) == pytest.approx(seconds, abs=5)
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_full_memory_is_no_outage(queue: Queue, redis: Redis) -> None:
    """Or every api would leave the gateway, and nobody could fetch a video."""
    try:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(QueueUnavailable):
            await add(queue)
        await queue.check_writable()
        await redis.config_set("min-replicas-to-write", 1)
        with pytest.raises(QueueUnavailable, match="NOREPLICAS"):
            await queue.check_writable()
    finally:
        await redis.config_set("min-replicas-to-write", 0)
        await redis.config_set("maxmemory", 0)


async def test_a_picture_goes_by_itself_and_comes_from_the_holder_only(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    old = await take(queue)
    await queue.fail(old, FailKind.RELEASE, "WORKER_LOST", "drained")
    new = await take(queue, "b/0")
    await queue.beat(new, 1, 3, "step", preview="bmV3")
    assert await queue.beat(old, 2, 3, "step", preview="b2xk") is BeatAnswer.FENCED
    await queue.beat(new, 2, 3, "step")
    assert await queue.preview(job_id) == "bmV3"
    assert 0 < await redis.ttl(keys.preview(job_id)) <= 600


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leap_hours", "doubt_hours"),
    [(0.5, None), (2, 2), (24 * 30, 24), (-2, None)],
    ids=["short", "2 h", "a month", "back"],
)
async def test_what_a_leap_of_the_clock_made_old_stays_for_a_while(
    redis_server: RedisServer, redis: Redis, leap_hours: float, doubt_hours: float | None
) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    job_id = await end(queue, JobState.DONE)
    await asyncio.sleep(0.1)
    await redis.hincrby(keys.EPOCH, "seen", -round(leap_hours * HOUR_MS))
    assert (await queue.tick()).removed == (doubt_hours is None)
    if doubt_hours is not None:
        assert (await queue.tick()).removed == 0
        await redis.hincrby(keys.EPOCH, "doubt", -round(doubt_hours * HOUR_MS + 5000))
        assert (await queue.tick()).removed == 1
    assert await queue.get(job_id) is None
    await queue.close()


async def test_a_clock_that_is_set_right_ends_the_doubt(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    await end(queue, JobState.DONE)
    await asyncio.sleep(0.1)
    await redis.hincrby(keys.EPOCH, "seen", -2 * HOUR_MS)
    await queue.tick()
    await redis.hincrby(keys.EPOCH, "doubt", 24 * HOUR_MS)  # from the time that was wrong
    assert (await queue.tick()).removed == 1
    await queue.close()


async def test_a_short_leap_does_not_end_the_doubt_of_a_long_one(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    await end(queue, JobState.DONE)
    await asyncio.sleep(0.1)
    for hours in (10, 2):
        await redis.hincrby(keys.EPOCH, "seen", -hours * HOUR_MS)
        await queue.tick()
    await redis.hincrby(keys.EPOCH, "doubt", -3 * HOUR_MS)
    assert (await queue.tick()).removed == 0
    await queue.close()


# --- workers and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["unready", "stopped", "draining", "drained", "quarantined"])
async def test_who_takes_no_jobs_does_not_count(queue: Queue, state: str) -> None:
    for worker, now in (("a/0", "idle"), ("b/0", "running"), ("c/0", state)):
        await queue.register(worker, boot_id=worker, state=now, engine="e", fingerprint="f", synthetic="0")
    assert (await queue.stats()).live_workers == 2


async def test_delays_double_and_scatter(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, error_budget=20))
    delays: dict[int, set[float]] = {}
    for _ in range(8):
        job_id = await add(queue)
        for failures in range(1, 10):
            await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
            seconds, microseconds = await redis.time()
            due = await redis.zscore(keys.DELAYED, job_id)
            assert due is not None
            delays.setdefault(failures, set()).add(due / 1000 - seconds - microseconds / 1e6)
            await redis.zadd(keys.DELAYED, {job_id: 0})
        await queue.cancel(job_id)
        await queue.tick()
    for failures, seen in delays.items():
        middle = min(60.0, 2.0 ** (failures - 1))
        assert 0.75 * middle - 0.1 <= min(seen) < max(seen) <= 1.25 * middle
        assert max(seen) - min(seen) > 0.02 * middle, "all at the same moment"
    await queue.close()
