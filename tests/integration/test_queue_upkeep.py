"""Replay of dead jobs, the history of attempts, cancel hints, the trash, averages and the cross-check."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.job import JobState, Needs, new_job_id
from appliance.queue import BeatAnswer, Claim, FailKind, Nothing, Queue
from appliance.queue.types import JobRecord, RepairReport
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    RedisServer,
    add,
    queue,
    redis,
    redis_server,
    take,
)

pytestmark = pytest.mark.docker


async def read(queue: Queue, job_id: str) -> JobRecord:
    job = await queue.get(job_id)
    assert job is not None
    return job


async def dead_job(queue: Queue, **more: object) -> str:
    job_id = await add(queue, **more)
    await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    return job_id


# --- replay ----------------------------------------------------------------------------------------------------------


async def test_a_dead_job_gets_all_its_budgets_again(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    for kind in (FailKind.CRASH, FailKind.OOM, FailKind.ERROR, FailKind.PERMANENT):
        await queue.fail(await take(queue), kind, "UNKNOWN", "x")
        await redis.zadd(keys.DELAYED, {job_id: 0}, xx=True)
    assert await redis.xlen(keys.DEAD) == 1
    settled = await queue.requeue_dead(job_id)
    assert (settled.status, settled.state) == ("settled", JobState.QUEUED)
    assert (await queue.requeue_dead(job_id)).status == "replay"
    job = await read(queue, job_id)
    assert (job.crashes, job.errors, job.ooms, job.reason, len(job.history)) == (0, 0, 0, None, 4)
    assert await redis.xlen(keys.DEAD) == await redis.zcard(keys.DONE) == 0
    await queue.commit(await take(queue), "{}")
    assert (await queue.requeue_dead(job_id)).status == "final"


async def test_a_replay_waits_like_a_new_job(queue: Queue) -> None:
    job_id = await dead_job(queue, user="ada", cost_ms=60_000)
    other = await add(queue, user="bob")
    await queue.requeue_dead(job_id)
    assert [(await take(queue, f"w/{n}")).job_id for n in range(2)] == [other, job_id]


async def test_a_replay_has_as_much_time_as_at_first(queue: Queue) -> None:
    job_id = await add(queue, deadline_seconds=0.6)
    await asyncio.sleep(0.65)
    await queue.tick()
    assert (await read(queue, job_id)).state is JobState.DEAD
    await queue.requeue_dead(job_id)
    assert (await take(queue)).job_id == job_id


async def test_a_replay_needs_its_request(queue: Queue, redis: Redis) -> None:
    job_id = await dead_job(queue)
    await redis.delete(keys.request(job_id))
    settled = await queue.requeue_dead(job_id)
    assert (settled.status, settled.state) == ("gone", JobState.DEAD)
    assert (await queue.requeue_dead(new_job_id())).status == "missing"


async def test_a_replayed_request_is_kept(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    await queue.requeue_dead(job_id)
    assert await redis.ttl(keys.request(job_id)) == -1


# --- history ---------------------------------------------------------------------------------------------------------


async def test_every_attempt_is_on_the_record(queue: Queue) -> None:
    job_id = await add(queue)
    first = await take(queue, "a/0")
    await queue.beat(first, 3, 20, "step", memory="context 12", resumed_from=2, checkpoint_step=3)
    await queue.fail(first, FailKind.RELEASE, "WORKER_LOST", 'drained\n"fence":')
    second = await take(queue, "b/0")
    await queue.commit(second, "{}")
    job = await read(queue, job_id)
    one, two = job.history
    assert (one.fence, one.worker, one.kind, one.memory) == (first.fence, "a/0", "release", "context 12")
    assert (one.reason, one.message, one.step, one.resumed_from) == ("WORKER_LOST", 'drained\n"fence":', 3, 2)
    assert (two.fence, two.kind, two.memory, two.resumed_from) == (second.fence, "done", None, 0)
    assert job.checkpoint_step == 3


async def test_a_heartbeat_without_news_is_no_progress(queue: Queue) -> None:
    job_id = await add(queue)
    claim = await take(queue)
    await queue.beat(claim, memory="", resumed_from=0)
    kinds = [event.kind for event in await queue.events_after(job_id, "0-0")]
    assert kinds == ["queued", "running"]


async def test_the_history_keeps_the_newest(queue: Queue) -> None:
    job_id = await add(queue)
    fences = []
    for _ in range(23):
        claim = await take(queue)
        fences.append(claim.fence)
        await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "x")
    assert [attempt.fence for attempt in (await read(queue, job_id)).history] == fences[-20:]


async def test_a_claim_says_how_often_memory_ran_out(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, user="ada")
    await queue.fail(await take(queue), FailKind.OOM, "OOM", "x")
    await redis.zadd(keys.DELAYED, {job_id: 0})
    claim = await take(queue)
    assert (claim.ooms, claim.user, claim.attempts) == (1, "ada", 2)


async def test_a_workers_successes_and_their_pace_are_summed(queue: Queue, redis: Redis) -> None:
    await queue.register("a/0", boot_id="b", state="idle", engine="e", fingerprint="", synthetic="1")
    for _ in range(2):
        job_id = await add(queue, cost_ms=1000)
        claim = await take(queue)
        await redis.hset(keys.job(job_id), "started", int(await redis.hget(keys.job(job_id), "started")) - 3000)
        await queue.commit(claim, "{}")
    (worker,) = await queue.workers()
    assert (worker.done, worker.pace_sum) == (2, pytest.approx(6, abs=0.5))


async def test_averages_have_room_for_so_many_resolutions_only(queue: Queue, redis: Redis) -> None:
    await redis.hset(keys.STATS, mapping={f"run:{n}x1": 1 for n in range(400)})
    for resolution in ("64x64", "7x1"):
        await add(queue, resolution=resolution)
        await queue.commit(await take(queue), "{}")
    averages = (await queue.stats()).averages
    assert "7x1" in averages
    assert "64x64" not in averages


async def test_run_times_are_averaged_by_resolution(queue: Queue) -> None:
    for resolution, cost in (("64x64", 10), ("512x512", 1000)):
        await add(queue, resolution=resolution, cost_ms=cost)
        claim = await take(queue)
        await asyncio.sleep(0.05)
        await queue.commit(claim, "{}")
    stats = await queue.stats()
    assert set(stats.averages) == set(stats.ratios) == {"64x64", "512x512"}
    assert (stats.estimate(10, "64x64") or 0) > (stats.estimate(10, "512x512") or 0) > 0
    assert stats.estimate(10, "1x1") == pytest.approx(stats.average_ratio / 100)


# --- hints and trash -------------------------------------------------------------------------------------------------


async def test_a_cancel_is_hinted_at_once(queue: Queue) -> None:
    job_id = await add(queue)
    await take(queue)
    hints = queue.cancel_hints()
    hint = asyncio.ensure_future(anext(hints))
    for _ in range(50):
        await queue.cancel(job_id)
        await asyncio.sleep(0.02)
        if hint.done():
            break
    assert await asyncio.wait_for(hint, 1) == job_id
    await hints.aclose()


async def test_hints_come_again_after_the_connection_is_lost(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await take(queue)
    hints = queue.cancel_hints()
    hint = asyncio.ensure_future(anext(hints))
    await asyncio.sleep(0.1)
    await redis.client_kill_filter(_type="pubsub")
    for _ in range(200):
        with contextlib.suppress(Exception):
            await queue.cancel(job_id)
        await asyncio.sleep(0.02)
        if hint.done():
            break
    assert await asyncio.wait_for(hint, 1) == job_id
    await hints.aclose()


async def test_what_is_left_on_storage_is_found_by_the_trash(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    ran = await add(queue)
    await queue.commit(await take(queue), "{}")
    await queue.cancel(await add(queue))  # has nothing there
    await asyncio.sleep(0.1)
    await queue.tick()
    assert await queue.trash(10) == [ran]
    await queue.untrash([ran])
    assert await queue.trash(10) == []
    await queue.close()


# --- cross-check -----------------------------------------------------------------------------------------------------


async def repair_all(queue: Queue) -> RepairReport:
    total: dict[str, int] = {}
    cursor = ""
    while True:
        cursor, report = await queue.repair(cursor)
        for name, number in vars(report).items():
            total[name] = total.get(name, 0) + number
        if not cursor:
            return RepairReport(**total)


async def test_a_sound_queue_is_left_alone(queue: Queue) -> None:
    for needs in (Needs(), Needs(model="m")):
        for _ in range(4):
            await add(queue, needs=needs)
    await take(queue, "a/0")
    await queue.fail(await take(queue, "b/0"), FailKind.ERROR, "UNKNOWN", "x")
    await queue.commit(await take(queue, "c/0"), "{}")
    report = await repair_all(queue)
    assert (report.repaired, report.checked > 8) == (0, True)


async def test_a_running_job_without_a_lease_gets_one(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await take(queue)
    await redis.delete(keys.LEASE)
    assert (await repair_all(queue)).relet == 1
    assert await redis.zscore(keys.LEASE, job_id) is not None
    assert "repaired" in [event["type"] for event in await queue.cluster_events(60)]


@pytest.mark.parametrize("needs", [Needs(), Needs(model="m")])
async def test_a_queued_job_in_no_line_gets_back_in(queue: Queue, redis: Redis, needs: Needs) -> None:
    job_id = await add(queue, needs=needs)
    await redis.delete(keys.ready(needs.worker_class()), keys.CLASSES)
    assert isinstance(await queue.claim("a/0", "n"), Nothing)
    assert (await repair_all(queue)).requeued == 1
    assert (await take(queue)).job_id == job_id


async def test_a_delayed_job_without_a_time_is_due_now(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
    await redis.delete(keys.DELAYED)
    assert (await repair_all(queue)).promoted == 1
    assert (await take(queue)).job_id == job_id


async def test_members_that_are_elsewhere_are_removed(queue: Queue, redis: Redis) -> None:
    running = await add(queue)
    await take(queue)
    waiting = await add(queue)
    ghost = new_job_id()
    await redis.zadd(keys.READY, {running: 1, ghost: 2})
    await redis.zadd(keys.DELAYED, {waiting: 1e15})
    await redis.zadd(keys.LEASE, {waiting: 1e15})
    await redis.hset(keys.worker("z/0"), "job", ghost)
    await redis.zadd(keys.WORKERS, {"z/0": 1})
    assert (await repair_all(queue)).removed == 5
    assert await redis.zrange(keys.READY, 0, -1) == [waiting]
    assert await redis.zcard(keys.DELAYED) == 0
    assert await redis.zrange(keys.LEASE, 0, -1) == [running]


async def test_the_ledger_names_what_runs_and_nothing_else(queue: Queue, redis: Redis) -> None:
    first = await add(queue)
    claim = await take(queue)
    await redis.xadd(keys.RUN, {"job": new_job_id(), "fence": "1", "worker": "x/0"})
    await redis.xadd(keys.RUN, {"job": first, "fence": "1", "worker": "x/0"})
    entry = await redis.hget(keys.job(first), "entry")
    assert entry is not None
    await redis.xdel(keys.RUN, entry)
    report = await repair_all(queue)
    assert (report.unledgered, report.ledgered) == (2, 1)
    (row,) = await redis.xrange(keys.RUN)
    assert row[1]["job"] == first
    assert await queue.beat(claim) is BeatAnswer.OK
    await queue.commit(claim, "{}")
    assert await redis.xlen(keys.RUN) == 0
    assert (await redis.xpending(keys.RUN, keys.RUN_GROUP))["pending"] == 0


async def test_a_long_list_is_checked_in_slices(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, queue_limit=5000))
    for _ in range(1100):
        await add(queue)
    await redis.delete(keys.READY)
    cursor, report = await queue.repair()
    assert (report.checked, report.requeued) == (500, 500)
    assert cursor
    assert (await repair_all(queue)).requeued == 600
    assert isinstance(await queue.claim("a/0", "n"), Claim)
    await queue.close()
