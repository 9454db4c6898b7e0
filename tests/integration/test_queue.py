"""The queue's scripts and client on a real Redis."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueUnavailable
from appliance.job import JobState, Priority, is_legal, new_job_id
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue
from appliance.settings import QueueSettings
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


async def state_of(queue: Queue, job_id: str) -> JobState:
    job = await queue.get(job_id)
    assert job is not None
    return job.state


# --- submit ----------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_is_the_same_job(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k"))
    again = await queue.submit(submission(idempotency_key="k"))
    assert (first.status, again.status) == ("ok", "duplicate")
    assert again.job_id == first.job_id
    assert (await queue.stats()).waiting == 1


async def test_the_same_key_with_another_body_is_a_conflict(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k"))
    other = await queue.submit(submission(idempotency_key="k", body="{}"))
    assert (other.status, other.job_id) == ("conflict", first.job_id)


async def test_keys_belong_to_their_user(queue: Queue) -> None:
    await queue.submit(submission(idempotency_key="k"))
    assert (await queue.submit(submission(user="bob", idempotency_key="k"))).status == "ok"


async def test_submitting_the_same_id_twice_is_safe(queue: Queue) -> None:
    job = submission()
    assert [(await queue.submit(job)).status for _ in range(2)] == ["ok", "duplicate"]


async def test_a_full_queue_refuses_but_still_knows_duplicates(queue: Queue) -> None:
    await add(queue, idempotency_key="k")
    for _ in range(FAST.queue_limit - 1):
        await add(queue)
    assert (await queue.submit(submission())).status == "full"
    assert (await queue.submit(submission(idempotency_key="k"))).status == "duplicate"


async def test_a_submit_without_its_replica_is_not_acknowledged(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replicas=1)
    with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
        await queue.submit(submission())
    with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
        await queue.check_writable()
    await queue.close()


# --- order -----------------------------------------------------------------------------------------------------------


async def test_priorities_come_in_their_order(queue: Queue) -> None:
    low = await add(queue, priority=Priority.LOW)
    normal = await add(queue, priority=Priority.NORMAL)
    high = await add(queue, priority=Priority.HIGH)
    assert [(await take(queue, f"w/{n}")).job_id for n in range(3)] == [high, normal, low]


async def test_a_heavy_user_does_not_delay_the_others(queue: Queue) -> None:
    heavy = [await add(queue, user="heavy", cost_ms=60_000) for _ in range(5)]
    light = await add(queue, user="light")
    order = [(await take(queue, f"w/{n}")).job_id for n in range(6)]
    assert order == [heavy[0], light, *heavy[1:]]


async def test_positions_count_from_one(queue: Queue) -> None:
    ids = [await add(queue) for _ in range(3)]
    assert [job.position for job in await queue.get_many(ids) if job] == [1, 2, 3]


async def test_a_lost_answer_to_claim_costs_nothing(queue: Queue) -> None:
    await add(queue)
    first = await queue.claim("a/0", "nonce")
    again = await queue.claim("a/0", "nonce")
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert (first.job_id, first.fence) == (again.job_id, again.fence)


async def test_the_ledger_names_the_owner_and_is_emptied(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    pending = await redis.xpending_range(keys.RUN, keys.RUN_GROUP, "-", "+", 10)
    assert [entry["consumer"] for entry in pending] == ["a/0"]
    await queue.commit(claim, "{}")
    assert await redis.xlen(keys.RUN) == 0
    assert await redis.xpending_range(keys.RUN, keys.RUN_GROUP, "-", "+", 10) == []
    assert await redis.zcard(keys.LEASE) == 0


# --- fencing and leases ----------------------------------------------------------------------------------------------


async def test_an_expired_lease_is_reaped_and_its_zombie_is_fenced(queue: Queue) -> None:
    job_id = await add(queue)
    zombie = await take(queue, "a/0")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert [(o.job_id, o.state, o.kind) for o in report.outcomes] == [(job_id, JobState.QUEUED, "crash")]
    heir = await take(queue, "b/0")
    assert heir.job_id == job_id
    assert heir.fence > zombie.fence
    assert await queue.beat(zombie) is BeatAnswer.FENCED
    assert await queue.commit(zombie, '{"by":"zombie"}') is CommitAnswer.FENCED
    assert (await queue.fail(zombie, FailKind.CRASH, "UNKNOWN", "late")).status == "fenced"
    assert await queue.commit(heir, '{"by":"heir"}') is CommitAnswer.DONE
    job = await queue.get(job_id)
    assert job is not None
    assert job.result == {"by": "heir"}


async def test_claim_reaps_without_any_tick(queue: Queue) -> None:
    job_id = await add(queue)
    await take(queue, "a/0")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    heir = await take(queue, "b/0")
    assert heir.job_id == job_id
    assert len(heir.outcomes) == 1


async def test_beats_keep_a_lease(queue: Queue) -> None:
    await add(queue)
    claim = await take(queue)
    for step in range(5):
        await asyncio.sleep(FAST.lease_seconds / 2)
        assert await queue.beat(claim, step, 5, "step") is BeatAnswer.OK
        assert (await queue.tick()).reaped == 0


async def test_fences_grow_even_past_the_clock(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    ahead = 2**52
    await redis.hset(keys.job(job_id), "fence", str(ahead))
    assert (await take(queue)).fence == ahead + 1


async def test_a_restarted_agent_frees_its_old_job_at_once(queue: Queue) -> None:
    job_id = await add(queue)
    old = await take(queue, "a/0")
    new = await take(queue, "a/0")
    assert new.job_id == job_id
    assert await queue.commit(old, "{}") is CommitAnswer.FENCED


async def test_commit_is_answered_again_but_done_once(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    answers = [await queue.commit(claim, "{}") for _ in range(3)]
    assert answers == [CommitAnswer.DONE, CommitAnswer.REPLAY, CommitAnswer.REPLAY]
    assert (await queue.stats()).done_total == 1


async def test_after_a_change_of_run_id_leases_get_their_grace(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    await redis.hset(keys.EPOCH, "run_id", "another")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert (report.grace, report.reaped) == (True, 0)
    assert await queue.beat(claim) is BeatAnswer.OK
    await asyncio.sleep(FAST.failover_grace_seconds + 0.05)
    assert (await queue.tick()).reaped == 1


async def test_after_a_standstill_of_redis_leases_get_their_grace(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await take(queue)
    seen = await redis.hget(keys.EPOCH, "seen")
    assert seen is not None
    await redis.hset(keys.EPOCH, "seen", str(int(seen) - 5000))
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert (report.grace, report.reaped) == (True, 0)


# --- failures --------------------------------------------------------------------------------------------------------


async def test_crashes_are_counted_per_worker(queue: Queue) -> None:
    job_id = await add(queue)
    for worker in ("a/0", "a/0", "b/0", "a/0", "b/0"):
        settled = await queue.fail(await take(queue, worker), FailKind.CRASH, "WORKER_LOST", "gone")
        assert settled.state is JobState.QUEUED, worker
    settled = await queue.fail(await take(queue, "c/0"), FailKind.CRASH, "WORKER_LOST", "gone")
    assert settled.state is JobState.DEAD
    assert await state_of(queue, job_id) is JobState.DEAD


async def test_a_poisonous_job_ends_even_with_one_worker(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(5 * FAST.crash_budget):
        await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "gone")
    assert await state_of(queue, job_id) is JobState.DEAD


async def test_a_crashed_job_goes_to_the_front(queue: Queue) -> None:
    first = await add(queue)
    await add(queue)
    await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "gone")
    assert (await take(queue)).job_id == first


async def test_a_release_is_free(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(20):
        await queue.fail(await take(queue), FailKind.RELEASE, "WORKER_LOST", "drained")
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.crashes, job.errors, job.ooms) == (JobState.QUEUED, 0, 0, 0)


@pytest.mark.parametrize(("kind", "budget"), [(FailKind.ERROR, FAST.error_budget), (FailKind.OOM, FAST.oom_budget)])
async def test_errors_are_delayed_then_dead(queue: Queue, redis: Redis, kind: FailKind, budget: int) -> None:
    job_id = await add(queue)
    for attempt in range(1, budget + 1):
        settled = await queue.fail(await take(queue), kind, "OOM", "too big")
        assert settled.state is (JobState.DEAD if attempt == budget else JobState.DELAYED)
        if settled.state is JobState.DELAYED:
            due = await redis.zscore(keys.DELAYED, job_id)
            now, _ = await redis.time()
            assert due is not None
            assert 0 < due / 1000 - now <= 2**attempt * 1.25 + 1
            await redis.zadd(keys.DELAYED, {job_id: 0})
    assert await redis.xlen(keys.DEAD) == 1


async def test_budgets_are_separate(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    for kind in (FailKind.ERROR, FailKind.OOM, FailKind.ERROR, FailKind.OOM, FailKind.CRASH):
        settled = await queue.fail(await take(queue), kind, "UNKNOWN", "x")
        assert settled.state is not JobState.DEAD
        await redis.zadd(keys.DELAYED, {job_id: 0}, xx=True)


async def test_a_permanent_failure_is_dead_at_once_and_told_again(queue: Queue) -> None:
    await add(queue)
    claim = await take(queue)
    first = await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    again = await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    assert (first.status, first.state) == ("settled", JobState.DEAD)
    assert (again.status, again.state) == ("replay", JobState.DEAD)


async def test_a_deadline_ends_a_waiting_job(queue: Queue) -> None:
    job_id = await add(queue, deadline_seconds=0.05)
    await asyncio.sleep(0.1)
    await queue.tick()
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.reason) == (JobState.DEAD, "TIMEOUT")


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancelling_a_waiting_job_is_immediate(queue: Queue) -> None:
    job_id = await add(queue)
    assert (await queue.cancel(job_id)).status == "cancelled"
    assert isinstance(await queue.claim("a/0", "n"), Nothing)
    assert (await queue.cancel(job_id)).status == "final"


async def test_cancelling_a_delayed_job_is_immediate(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
    assert (await queue.cancel(job_id)).state is JobState.CANCELLED
    assert await redis.zcard(keys.DELAYED) == 0


async def test_cancelling_a_running_job_is_told_by_the_heartbeat(queue: Queue) -> None:
    job_id = await add(queue)
    claim = await take(queue)
    assert (await queue.cancel(job_id)).status == "requested"
    assert await queue.beat(claim) is BeatAnswer.CANCEL
    settled = await queue.fail(claim, FailKind.CANCELLED, "CANCELLED", "stopped")
    assert settled.state is JobState.CANCELLED


async def test_a_cancelled_job_whose_worker_dies_is_not_run_again(queue: Queue) -> None:
    job_id = await add(queue)
    await take(queue)
    await queue.cancel(job_id)
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    await queue.tick()
    assert await state_of(queue, job_id) is JobState.CANCELLED


async def test_a_finished_job_cannot_be_cancelled(queue: Queue) -> None:
    job_id = await add(queue)
    await queue.commit(await take(queue), "{}")
    assert (await queue.cancel(job_id)).status == "final"
    assert await state_of(queue, job_id) is JobState.DONE
    assert (await queue.cancel(new_job_id())).status == "missing"


# --- housekeeping ----------------------------------------------------------------------------------------------------


async def test_scripts_are_loaded_again_after_a_flush(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await redis.script_flush()
    assert isinstance(await queue.claim("a/0", "n"), Claim)


async def test_retention_removes_every_trace(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    job_id = await add(queue)
    await queue.commit(await take(queue), "{}")
    await asyncio.sleep(0.1)
    assert (await queue.tick()).removed == 1
    assert [key async for key in redis.scan_iter(match=f"*{job_id}*")] == []
    assert await queue.list_ids(None, None, 10) == []
    await queue.close()


# --- everything at once ----------------------------------------------------------------------------------------------


class Chaos:
    """Random moves of clients and of workers that crash, freeze, wake up late and repeat themselves."""

    def __init__(self, queue: Queue, seed: int) -> None:
        self.queue = queue
        self.random = random.Random(seed)
        self.accepted: dict[str, JobState] = {}
        self.committed: dict[str, int] = {}
        self.held: dict[str, Claim] = {}
        self.zombies: list[Claim] = []

    async def step(self) -> None:
        move = self.random.choice((self.submit, self.claim, self.claim, self.commit, self.fail, self.freeze, self.wake))
        await move()

    async def submit(self) -> None:
        job = submission(user=self.random.choice("abc"))
        if (await self.queue.submit(job)).status == "ok":
            self.accepted[job.job_id] = JobState.QUEUED

    async def claim(self) -> None:
        idle = [name for name in ("a/0", "b/0", "c/0") if name not in self.held]
        if idle:
            worker = self.random.choice(idle)
            answer = await self.queue.claim(worker, os.urandom(8).hex())
            if isinstance(answer, Claim):
                self.held[worker] = answer

    async def commit(self) -> None:
        if self.held:
            worker = self.random.choice(list(self.held))
            await self.finish(self.held.pop(worker))

    async def finish(self, claim: Claim) -> None:
        answer = await self.queue.commit(claim, json.dumps({"fence": claim.fence}))
        if answer is CommitAnswer.DONE:
            assert claim.job_id not in self.committed, "committed twice"
            self.committed[claim.job_id] = claim.fence

    async def fail(self) -> None:
        if self.held:
            claim = self.held.pop(self.random.choice(list(self.held)))
            kind = self.random.choice((FailKind.CRASH, FailKind.RELEASE, FailKind.ERROR))
            await self.queue.fail(claim, kind, "UNKNOWN", "chaos")

    async def freeze(self) -> None:
        """A worker vanishes; its lease runs out; it may come back as a zombie."""
        if self.held:
            self.zombies.append(self.held.pop(self.random.choice(list(self.held))))
        if self.random.random() < 0.2:
            await asyncio.sleep(0.06)
            await self.queue.tick()

    async def wake(self) -> None:
        if self.zombies:
            await self.finish(self.random.choice(self.zombies))


@pytest.mark.parametrize("seed", range(6))
async def test_no_accepted_job_is_lost_and_none_is_committed_twice(
    redis_server: RedisServer, redis: Redis, seed: int
) -> None:
    settings = QueueSettings(
        lease_seconds=0.05, beat_seconds=0.01, queue_limit=1000, crash_budget=1000, error_budget=1000
    )
    queue = redis_server.queue(settings)
    chaos = Chaos(queue, seed)
    for _ in range(250):
        await chaos.step()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(chaos.committed) < len(chaos.accepted):
        for job_id in await redis.zrange(keys.DELAYED, 0, -1):
            await redis.zadd(keys.DELAYED, {str(job_id): 0}, xx=True)
        chaos.held.clear()
        await chaos.claim()
        await chaos.commit()
    assert set(chaos.committed) == set(chaos.accepted)
    for job_id, fence in chaos.committed.items():
        job = await queue.get(job_id)
        assert job is not None
        assert (job.state, job.result) == (JobState.DONE, {"fence": fence})
    for key in (keys.READY, keys.DELAYED, keys.LEASE):
        assert await redis.zcard(key) == 0
    assert await redis.xlen(keys.RUN) == 0
    await queue.close()


async def test_every_move_seen_in_the_events_is_a_legal_transition(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "x")
    await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
    await redis.zadd(keys.DELAYED, {job_id: 0})
    await queue.commit(await take(queue), "{}")
    states = [JobState(event.kind) for event in await queue.events_after(job_id, "0-0")]
    expected = "queued running queued running delayed queued running done"
    assert " ".join(state.value for state in states) == expected
    assert all(is_legal(states[index], states[index + 1]) for index in range(len(states) - 1))


async def test_all_who_follow_jobs_ask_together(queue: Queue, redis: Redis) -> None:
    """A thousand of them must not hold every connection there is: submissions would wait in line behind them."""
    claims = [await add(queue), await add(queue)]
    await take(queue)
    before = (await redis.info("clients"))["connected_clients"]
    leaving = asyncio.create_task(queue.events_after(claims[0], "0-0"))
    asking = [asyncio.create_task(queue.events_after(claims[number % 2], "0-0")) for number in range(1000)]
    await asyncio.sleep(0)
    leaving.cancel()
    seen = await asyncio.gather(*asking)
    assert leaving.cancelled()
    assert [event.kind for event in seen[0]] == ["queued", "running"]
    assert seen == [seen[0], seen[1]] * 500
    assert seen[1] == []
    assert (await redis.info("clients"))["connected_clients"] <= before + 1


async def test_a_jobs_events_go_an_hour_after_its_end_not_before(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    claim = await take(queue)
    await queue.beat(claim, 1, 20, "step")
    assert await redis.ttl(keys.job_events(job_id)) == -1
    await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "x")
    assert 0 < await redis.ttl(keys.job_events(job_id)) <= 3600
    await redis.persist(keys.request(job_id))
    await queue.requeue_dead(job_id)
    assert await redis.ttl(keys.job_events(job_id)) == -1
    await queue.commit(await take(queue), "{}")
    assert 0 < await redis.ttl(keys.job_events(job_id)) <= 3600
    assert [event.kind for event in await queue.events_after(job_id, "0-0")].count("queued") == 2
