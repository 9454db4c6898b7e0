"""A job that failed on a worker is for the others first: one broken GPU must not spend its whole budget."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.job import JobState, Needs
from appliance.queue import Claim, FailKind, Nothing, Queue
from tests.integration.redis_server import FAST, RedisServer, add, closing, queue, redis, redis_server  # noqa: F401

pytestmark = pytest.mark.docker


async def register(queue: Queue, worker: str, state: str = "idle", **more: str) -> None:
    description = {
        "boot_id": worker,
        "state": state,
        "engine": "own",
        "fingerprint": "x",
        "synthetic": "1",
        "gpu": "{}",
    }
    await queue.register(worker, **description, **more)


async def fail_on(
    queue: Queue, redis: Redis, worker: str, nonce: str = "first", kind: FailKind = FailKind.ERROR
) -> None:
    claim = await queue.claim(worker, nonce)
    assert isinstance(claim, Claim)
    await queue.fail(claim, kind, "OOM" if kind is FailKind.OOM else "CUDA_ERROR", "x")
    await redis.zadd(keys.DELAYED, {claim.job_id: 0})


@pytest.mark.parametrize("kind", [FailKind.ERROR, FailKind.OOM])
async def test_a_job_that_failed_leaves_its_worker_the_others_work(queue: Queue, redis: Redis, kind: FailKind) -> None:
    failed = await add(queue)
    for worker in ("a/0", "b/0"):
        await register(queue, worker)
    await fail_on(queue, redis, "a/0", kind=kind)
    answer = await queue.claim("a/0", "again")
    assert isinstance(answer, Nothing)
    assert answer.next_due_seconds == pytest.approx(120, abs=3), "and when it may have the job after all"
    other = await add(queue)
    claims = [await queue.claim(worker, "n") for worker in ("a/0", "b/0")]
    assert [claim.job_id for claim in claims if isinstance(claim, Claim)] == [other, failed]


async def test_a_worker_that_a_job_crashes_on_again_leaves_it_to_the_others(queue: Queue) -> None:
    """Once may be its host's bad luck: then it goes on there rather than wait for others."""
    job = await add(queue)
    for worker in ("a/0", "b/0"):
        await register(queue, worker)
    for nonce in ("first", "second"):
        claim = await queue.claim("a/0", nonce)
        assert isinstance(claim, Claim)
        await queue.fail(claim, FailKind.CRASH, "WORKER_LOST", "the webui said nothing for 5 s")
    assert isinstance(await queue.claim("a/0", "third"), Nothing)
    other = await queue.claim("b/0", "n")
    assert isinstance(other, Claim)
    assert other.job_id == job


async def test_the_place_in_line_stays_while_a_job_is_passed_by(queue: Queue, redis: Redis) -> None:
    first, second = await add(queue), await add(queue)
    for worker in ("a/0", "b/0", "c/0"):
        await register(queue, worker)
    await fail_on(queue, redis, "a/0")
    claims = [await queue.claim(worker, "n") for worker in ("a/0", "b/0", "c/0")]
    assert [claim.job_id for claim in claims if isinstance(claim, Claim)] == [second, first]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"state": "draining"},
        {"state": "unready"},
        {"capabilities": '{"max_frames":1,"models":[],"motion_modules":[],"vram_mib":0}'},
    ],
    ids=["none", "draining", "unready", "too small"],
)
async def test_nobody_waits_for_a_worker_that_will_not_come(queue: Queue, redis: Redis, other: dict[str, str]) -> None:
    job = await add(queue, needs=Needs(frames=16))
    await register(queue, "a/0")
    if other:
        await register(queue, "b/0", **other)
    await fail_on(queue, redis, "a/0")
    claim = await queue.claim("a/0", "again")
    assert isinstance(claim, Claim)
    assert claim.job_id == job


async def test_nobody_waits_for_a_silent_worker_or_for_long(queue: Queue, redis: Redis) -> None:
    await add(queue)
    for worker in ("a/0", "b/0"):
        await register(queue, worker)
    await fail_on(queue, redis, "a/0")
    assert isinstance(await queue.claim("a/0", "again"), Nothing)
    await asyncio.sleep(FAST.lease_seconds + FAST.beat_seconds + 0.05)
    claim = await queue.claim("a/0", "silent")
    assert isinstance(claim, Claim)
    await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "drained")
    await register(queue, "b/0")
    assert isinstance(await queue.claim("a/0", "it is back"), Nothing)
    await redis.hset(keys.job(claim.job_id), "shun", "1 a/0 ")
    assert isinstance(await queue.claim("a/0", "its time is over"), Claim)


async def test_a_replayed_job_has_forgotten_where_it_failed(queue: Queue, redis: Redis) -> None:
    job = await add(queue)
    for worker in ("a/0", "b/0", "c/0", "d/0"):
        await register(queue, worker)
    for worker in ("a/0", "b/0", "c/0"):
        await fail_on(queue, redis, worker, worker)
    await redis.delete(keys.DELAYED)
    assert (await queue.requeue_dead(job)).state is JobState.QUEUED
    assert isinstance(await queue.claim("a/0", "again"), Claim)


async def test_a_worker_passes_by_only_so_many(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(replace(FAST, lease_seconds=60, queue_limit=40))) as queue:
        for worker in ("a/0", "b/0"):
            await register(queue, worker)
        for number in range(20):
            await add(queue)
            await fail_on(queue, redis, "a/0", f"n{number}")
        assert isinstance(await queue.claim("a/0", "twenty"), Nothing)
        last = await add(queue)
        await fail_on(queue, redis, "a/0", "the last")
        claim = await queue.claim("a/0", "twenty-one")
        assert isinstance(claim, Claim)
        assert claim.job_id == last
