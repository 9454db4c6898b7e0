"""Corners of the queue where a job could get lost, run on after its end, or stand in everybody's way."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueError, QueueUnavailable
from appliance.job import JobState
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue
from appliance.redis_link import RedisLink
from appliance.settings import Address, Secret
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    PASSWORD,
    RedisServer,
    add,
    queue,
    redis,
    redis_server,
    take,
)

pytestmark = pytest.mark.docker

HOUR_MS = 3_600_000


async def state_of(queue: Queue, job_id: str) -> JobState:
    job = await queue.get(job_id)
    assert job is not None
    return job.state


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_cancel_that_the_worker_heard_holds_even_if_redis_forgot_it(queue: Queue, redis: Redis) -> None:
    claim = await take_one(queue)
    await queue.cancel(claim.job_id)
    assert await queue.beat(claim) is BeatAnswer.CANCEL
    await redis.hdel(keys.job(claim.job_id), "cancel")  # a failover lost the flag
    settled = await queue.fail(claim, FailKind.CANCELLED, "CANCELLED", "cancelled while running")
    assert settled.state is JobState.CANCELLED


async def test_a_cancel_without_its_replica_is_not_acknowledged(
    images: str, redis_server: RedisServer, queue: Queue
) -> None:
    """A failover would bring the job back to life; asking again writes nothing new, and must not look replicated."""
    job_id = await add(queue)
    replica_of = f"replicaof 127.0.0.1 {redis_server.port}\nmasterauth {PASSWORD}\n"
    with RedisServer(images, replica_of) as replica:
        careful = redis_server.queue(replicas=1)
        await until_acknowledged(careful)
        container = replica._container.get_wrapped_container()
        container.pause()
        try:
            for _ in range(2):
                with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
                    await careful.cancel(job_id)
        finally:
            container.unpause()
        await until_acknowledged(careful)
        assert (await careful.cancel(job_id)).state is JobState.CANCELLED
        await careful.close()


async def until_acknowledged(queue: Queue, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(QueueUnavailable):
            return await queue.check_writable()
        await asyncio.sleep(0.05)
    pytest.fail(f"the replica did not acknowledge anything within {seconds} s")


# --- a job that no webui takes ---------------------------------------------------------------------------------------


async def test_a_job_that_everybody_refuses_lets_the_others_pass(queue: Queue) -> None:
    stubborn = await add(queue)
    other = await add(queue)
    for _ in range(20):
        claim = await take(queue)
        if claim.job_id == other:
            break
        await queue.fail(claim, FailKind.REFUSED, "WORKER_LOST", "the webui answered 500")
    else:
        pytest.fail("the refused job stayed at the head of the line")
    job = await queue.get(stubborn)
    assert job is not None
    assert (job.state, job.crashes, job.errors, job.ooms) == (JobState.DELAYED, 0, 0, 0)


async def test_the_first_refusals_cost_no_time(queue: Queue) -> None:
    job_id = await add(queue)
    for worker in ("a/0", "b/0"):
        settled = await queue.fail(await take(queue, worker), FailKind.REFUSED, "WORKER_LOST", "not ready")
        assert settled.state is JobState.QUEUED
    assert (await take(queue, "c/0")).job_id == job_id


# --- between COMMIT and its telling ----------------------------------------------------------------------------------


async def test_a_worker_lost_while_it_commits_does_not_end_a_job_that_may_have_its_result(
    redis_server: RedisServer, redis: Redis
) -> None:
    """With the crash budget all but spent: somebody still has to look whether COMMIT is there."""
    queue = redis_server.queue(replace(FAST, crash_budget=1))
    claim = await take_one(queue)
    for _ in range(4):
        await queue.beat(claim, 3, 3, "commit")
        await redis.zadd(keys.LEASE, {claim.job_id: 1})
        await queue.tick()
        assert await state_of(queue, claim.job_id) is JobState.QUEUED
        claim = await take(queue)
    await redis.zadd(keys.LEASE, {claim.job_id: 1})
    await queue.tick()
    assert await state_of(queue, claim.job_id) is JobState.DEAD
    await queue.close()


# --- clocks ----------------------------------------------------------------------------------------------------------


async def test_a_new_master_whose_clock_is_behind_still_reaps(queue: Queue, redis: Redis) -> None:
    claim = await take_one(queue)
    await redis.zadd(keys.LEASE, {claim.job_id: await now_ms(redis) + HOUR_MS})  # written by the old master's clock
    await redis.hset(keys.EPOCH, mapping={"run_id": "the-old-master", "seen": await now_ms(redis) + HOUR_MS})
    await reaped(queue, claim.job_id)


async def test_a_clock_that_jumps_back_does_not_hold_up_lost_jobs(queue: Queue, redis: Redis) -> None:
    lost = await take_one(queue)
    failed = await take_one(queue, "b/0")
    await queue.fail(failed, FailKind.ERROR, "UNKNOWN", "x")
    far = await now_ms(redis) + HOUR_MS
    await redis.zadd(keys.LEASE, {lost.job_id: far})
    await redis.zadd(keys.DELAYED, {failed.job_id: far})
    await redis.hset(keys.EPOCH, "seen", far)
    await reaped(queue, lost.job_id)
    due = await redis.zscore(keys.DELAYED, failed.job_id)
    assert due is not None
    assert due <= await now_ms(redis) + 80_000


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_a_full_memory_refuses_new_jobs_but_finishes_the_accepted(queue: Queue, redis: Redis) -> None:
    claim = await take_one(queue)
    waiting = await add(queue, body="x" * 100_000)
    try:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(QueueUnavailable):
            await add(queue)
        assert await queue.beat(claim, 1, 3, "step") is BeatAnswer.OK
        await queue.tick()
        assert await queue.commit(claim, "{}") is CommitAnswer.DONE
        assert (await take(queue, "b/0")).job_id == waiting
        assert (await queue.cancel(waiting)).status == "requested"
        await queue.register("b/0", boot_id="b", state="running", engine="e", fingerprint="f", synthetic="0")
        assert (await queue.stats()).done_total == 1
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_refusal_for_want_of_memory_disturbs_nobody_else(queue: Queue, redis: Redis) -> None:
    await queue.claim("a/0", "first", wait_seconds=0.01)  # which makes the line
    waiting = asyncio.create_task(queue.claim("a/0", "n", wait_seconds=0.5))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    try:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(QueueUnavailable):
            await add(queue)
    finally:
        await redis.config_set("maxmemory", 0)
    await waiting


async def test_counts_can_be_read_while_nothing_can_be_written(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    try:
        await redis.config_set("min-replicas-to-write", 1)
        with pytest.raises(QueueUnavailable):
            await queue.tick()
        assert (await queue.stats()).waiting == 1
        assert await state_of(queue, job_id) is JobState.QUEUED
    finally:
        await redis.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("ending", ["done", "cancelled", "invalid"])
async def test_a_request_is_not_kept_for_a_week_after_its_end(queue: Queue, redis: Redis, ending: str) -> None:
    claim = await take_one(queue)
    if ending == "done":
        await queue.commit(claim, "{}")
    elif ending == "cancelled":
        await queue.fail(claim, FailKind.CANCELLED, "CANCELLED", "x")
    else:
        await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "x")
    assert 0 < await redis.ttl(keys.request(claim.job_id)) <= 3600


async def test_a_dead_jobs_request_is_kept_for_another_try(queue: Queue, redis: Redis) -> None:
    claim = await take_one(queue)
    await queue.fail(claim, FailKind.PERMANENT, "TIMEOUT", "x")
    assert await redis.ttl(keys.request(claim.job_id)) == -1


# --- the link --------------------------------------------------------------------------------------------------------


async def test_text_that_is_no_unicode_can_be_told(queue: Queue) -> None:
    claim = await take_one(queue)
    assert await queue.beat(claim, 1, 2, "st\ud800ep") is BeatAnswer.OK
    assert (await queue.fail(claim, FailKind.CRASH, "UNKNOWN", "half a pair: \udcff")).status == "settled"


async def test_what_redis_refuses_is_a_queue_error(redis_server: RedisServer, redis: Redis) -> None:
    await redis.acl_setuser("barred", enabled=True, passwords=["+barred"], keys=["*"], commands=["+info", "+client"])
    settings = replace(redis_server.settings, username="barred", password=Secret("barred"))
    queue = Queue(RedisLink(settings), FAST)
    with pytest.raises(QueueError, match=r"(?i)permission"):
        await queue.claim("a/0", "n")
    await queue.close()
    await redis.acl_deluser("barred")


async def test_an_unreachable_redis_is_told_to_all_at_once(redis_server: RedisServer) -> None:
    """A server that takes connections and never answers: who waits must not wait for the tries of the others too."""
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: taken.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    settings = replace(redis_server.settings, address=Address("127.0.0.1", port), socket_timeout_seconds=0.2)
    queue = Queue(RedisLink(settings), FAST)
    begin = time.monotonic()
    answers = await asyncio.gather(*(queue.stats() for _ in range(20)), return_exceptions=True)
    took = time.monotonic() - begin
    for writer in taken:
        writer.close()
    silent.close()
    assert {type(answer) for answer in answers} == {QueueUnavailable}
    assert took < 1.5


async def test_a_call_that_outlives_its_client_leaves_no_connection_open(redis_server: RedisServer) -> None:
    """On a busy machine many calls are about to connect when one of them gives the client up for all."""
    link = RedisLink(redis_server.settings)
    given_up = asyncio.Event()
    calls = []

    async def late(client: Redis) -> bool:
        await given_up.wait()
        calls.append(client)
        return bool(await client.ping())

    client = await link.client()
    asked = asyncio.create_task(link.run(late))
    await asyncio.sleep(0)
    await link.drop(client)
    await asyncio.sleep(0.1)
    given_up.set()
    assert await asked
    assert calls == [client]
    assert not [one for one in client.connection_pool._available_connections if one.is_connected]
    await link.close()


async def test_one_caller_leaving_does_not_fail_the_others(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue()
    first = asyncio.create_task(queue.stats())
    others = [asyncio.create_task(queue.stats()) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert [(await other).waiting for other in others] == [0, 0, 0]
    await queue.close()


async def test_an_interrupted_read_does_not_answer_the_next_question(queue: Queue) -> None:
    job_id = await add(queue)
    nothing = await queue.claim("a/0", "n")
    assert not isinstance(nothing, Nothing)
    await queue.claim("b/0", "first", wait_seconds=0.01)  # which makes the line
    for pause in (0.002, 0.005, 0.02):
        waiting = asyncio.create_task(queue.claim("b/0", "n", wait_seconds=0.5))
        await asyncio.sleep(pause)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await queue.stats()).running == 1
        job = await queue.get(job_id)
        assert job is not None
        assert job.job_id == job_id


# --- tools -----------------------------------------------------------------------------------------------------------


async def take_one(queue: Queue, worker: str = "a/0") -> Claim:
    job_id = await add(queue)
    claim = await take(queue, worker)
    assert claim.job_id == job_id
    return claim


async def now_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def reaped(queue: Queue, job_id: str) -> None:
    """Within the grace that a failover gives, and a little."""
    deadline = time.monotonic() + FAST.failover_grace_seconds + 1
    while time.monotonic() < deadline:
        await queue.tick()
        if await state_of(queue, job_id) is JobState.QUEUED:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the lost job was not reaped")
