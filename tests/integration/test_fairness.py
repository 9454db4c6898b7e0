"""Who gets the next free worker: shares between users, and old jobs against fresh ones of a higher priority."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import os
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.job import Priority
from appliance.queue import Claim, FailKind, Queue
from appliance.settings import QueueSettings
from tests.integration.redis_server import (  # noqa: F401
    RedisServer,
    add,
    closing,
    redis,
    redis_server,
)

pytestmark = pytest.mark.docker

ROOMY = QueueSettings(lease_seconds=600, queue_limit=1000)
COST_MS = 60_000  # far above what the submitting itself takes
HOUR_MS = 3_600_000


async def served(queue: Queue, count: int) -> list[str]:
    """The users of the next jobs, in the order in which free workers would get them."""
    users = []
    for _ in range(count):
        claim = await queue.claim("a/0", os.urandom(8).hex())
        assert isinstance(claim, Claim)
        users.append(claim.user)
        await queue.commit(claim, "{}")
    return users


async def grow_older(redis: Redis, milliseconds: int, *job_ids: str) -> None:
    """As if they had been submitted that much earlier: a score is a time by the server's clock plus a constant."""
    for job_id in job_ids:
        await redis.zincrby(keys.READY, -milliseconds, job_id)
        await redis.hincrby(keys.job(job_id), "score", -milliseconds)
        if await redis.hexists(keys.job(job_id), "start"):
            await redis.hincrby(keys.job(job_id), "start", -milliseconds)


async def test_three_users_with_100_5_and_1_jobs_take_turns(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        for user, jobs in (("many", 100), ("some", 5), ("one", 1)):
            for _ in range(jobs):
                await add(queue, user=user, cost_ms=COST_MS)
        order = await served(queue, 106)
    assert set(order[:3]) == {"many", "some", "one"}
    assert sorted(order[:11]) == ["many"] * 5 + ["one"] + ["some"] * 5
    assert order[11:] == ["many"] * 95
    assert order.count("many") == 100


async def test_cost_counts_not_the_number_of_jobs(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        for _ in range(12):
            await add(queue, user="small", cost_ms=COST_MS)
        for _ in range(4):
            await add(queue, user="large", cost_ms=4 * COST_MS)
        order = await served(queue, 10)
    assert 7 <= order.count("small") <= 8


async def test_a_weight_of_three_is_three_times_the_share(redis_server: RedisServer, redis: Redis) -> None:
    settings = replace(ROOMY, user_weights={"studio": 3})
    async with closing(redis_server.queue(settings)) as queue:
        for user in ("guest", "studio"):
            for _ in range(40):
                await add(queue, user=user, cost_ms=COST_MS)
        order = await served(queue, 40)
    assert 29 <= order.count("studio") <= 31


async def test_what_idle_workers_did_for_one_user_is_not_owed_to_the_next(
    redis_server: RedisServer, redis: Redis
) -> None:
    """Many workers do in seconds what one does in twenty minutes."""
    async with closing(redis_server.queue(ROOMY)) as queue:
        for _ in range(40):
            await add(queue, user="early", cost_ms=COST_MS)
        await served(queue, 20)
        for _ in range(5):
            await add(queue, user="late", cost_ms=COST_MS)
        assert await served(queue, 10) == ["late", "early"] * 5


async def test_the_virtual_clock_is_only_ever_ahead_and_never_goes_back(
    redis_server: RedisServer, redis: Redis
) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        for worker in ("a/0", "b/0"):
            about = {"boot_id": "b", "state": "idle", "engine": "e", "fingerprint": "f", "synthetic": "1"}
            await queue.register(worker, **about)
        for _ in range(3):
            await add(queue, user="a", cost_ms=COST_MS)
        first = await queue.claim("b/0", "n")
        assert isinstance(first, Claim)
        assert await redis.hget(keys.EPOCH, "vtime") is None, "the first one starts now"
        await served(queue, 1)
        ahead = await redis.hget(keys.EPOCH, "vtime")
        start = int(await redis.hget(keys.job(first.job_id), "created") or 0) + COST_MS  # for any number of workers
        assert int(ahead or 0) == start
        await redis.hset(keys.job(first.job_id), "start", start - COST_MS // 2)  # ahead as well, but less
        await queue.fail(first, FailKind.RELEASE, "WORKER_LOST", "drained")
        again = await queue.claim("a/0", "m")
        assert isinstance(again, Claim)
        assert again.job_id == first.job_id
        assert await redis.hget(keys.EPOCH, "vtime") == ahead


async def test_a_replay_starts_where_the_job_in_service_did(redis_server: RedisServer, redis: Redis) -> None:
    """Its record has that start only where it is ahead of the real clock."""
    async with closing(redis_server.queue(ROOMY)) as queue:
        job_id = await add(queue, user="again", cost_ms=COST_MS)
        claim = await queue.claim("a/0", "n")
        assert isinstance(claim, Claim)
        await queue.fail(claim, FailKind.PERMANENT, "UNKNOWN", "no")
        assert await redis.hget(keys.job(job_id), "start") is None, "as good as its submission: no memory for it"
        for _ in range(10):
            await add(queue, user="early", cost_ms=COST_MS)
        await served(queue, 5)
        ahead = int(await redis.hget(keys.EPOCH, "vtime") or 0)
        await queue.requeue_dead(job_id)
        assert int(await redis.hget(keys.job(job_id), "start") or 0) == ahead
        await redis.hset(keys.job(job_id), "state", "dead")
        await redis.hset(keys.EPOCH, "vtime", 1)
        await redis.delete(keys.VIRTUAL_FINISH)
        await queue.requeue_dead(job_id)
        assert await redis.hget(keys.job(job_id), "start") is None, "that of its former life is over"


async def test_who_was_away_does_not_get_all_the_turns_missed(redis_server: RedisServer, redis: Redis) -> None:
    """A newcomer takes turns from now on; the busy user's waiting jobs are not all put behind theirs."""
    async with closing(redis_server.queue(ROOMY)) as queue:
        for _ in range(10):
            await add(queue, user="busy", cost_ms=COST_MS)
        await served(queue, 5)
        ids = await redis.zrange(keys.READY, 0, -1)
        await grow_older(redis, 5 * COST_MS, *map(str, ids))  # the time those five took
        await redis.hincrby(keys.EPOCH, "vtime", -5 * COST_MS)
        for _ in range(10):
            await add(queue, user="newcomer", cost_ms=COST_MS)
        order = await served(queue, 6)
    assert sorted(order) == ["busy"] * 3 + ["newcomer"] * 3


async def test_a_low_job_of_an_hour_ago_overtakes_fresh_high_ones(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        patient = await add(queue, user="patient", priority=Priority.LOW)
        fresh = await add(queue, user="patient-too", priority=Priority.LOW)
        for number in range(5):
            await add(queue, user=f"urgent-{number}", priority=Priority.HIGH)
        first = (await queue.get(patient), await queue.get(fresh))
        assert [job.position for job in first if job] == [6, 7]
        await grow_older(redis, HOUR_MS, patient)
        order = await served(queue, 7)
    assert order[0] == "patient"
    assert order[-1] == "patient-too"


async def test_the_priorities_differ_by_ten_minutes_and_an_hour(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        ids = [await add(queue, user=priority.value, priority=priority) for priority in Priority]
        scores = [float(await redis.zscore(keys.READY, job_id) or 0) for job_id in ids]
    assert [round((score - scores[0]) / 60_000) for score in scores] == [0, 10, 60]


async def test_a_retry_keeps_its_place(redis_server: RedisServer, redis: Redis) -> None:
    async with closing(redis_server.queue(ROOMY)) as queue:
        first = await add(queue, user="a", cost_ms=COST_MS)
        await add(queue, user="a", cost_ms=COST_MS)
        claim = await queue.claim("a/0", "n")
        assert isinstance(claim, Claim)
        await add(queue, user="b", cost_ms=COST_MS)
        await queue.fail(claim, FailKind.CRASH, "WORKER_LOST", "x")
        again = await queue.claim("a/0", "m")
        assert isinstance(again, Claim)
        assert again.job_id == first
