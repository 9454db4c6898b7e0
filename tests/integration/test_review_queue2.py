"""More corners of the queue: replays, deadlines, forgotten leases, other clocks, and work that must stay bounded."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from appliance import keys, redis_link
from appliance.api import ticker as ticker_module
from appliance.api.ticker import Ticker
from appliance.errors import QueueError, QueueUnavailable
from appliance.job import Capabilities, JobState, Needs
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue, hints
from appliance.queue.types import JobRecord
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
MANY = 1000


async def read(queue: Queue, job_id: str) -> JobRecord:
    job = await queue.get(job_id)
    assert job is not None
    return job


async def add_many(queue: Queue, number: int, **more: object) -> list[str]:
    """In order, and with few connections at a time."""
    ids: list[str] = []
    while len(ids) < number:
        ids += await asyncio.gather(*(add(queue, **more) for _ in range(50)))
    return sorted(ids)


async def now_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def register(queue: Queue, worker: str, boot_id: str = "b", **more: str) -> None:
    await queue.register(worker, boot_id=boot_id, state="idle", engine="e", fingerprint="f", synthetic="0", **more)


# --- deadlines -------------------------------------------------------------------------------------------------------


async def test_every_replay_has_the_same_time_again(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, deadline_seconds=60.0)
    await redis.hincrby(keys.job(job_id), "created", -HOUR_MS)  # it was an hour ago
    await redis.hincrby(keys.job(job_id), "deadline", -HOUR_MS)
    await queue.tick()
    for _ in range(3):
        await redis.hset(keys.job(job_id), "state", "dead")
        assert (await queue.requeue_dead(job_id)).status == "settled"
        claim = await take(queue)
        assert claim.deadline_seconds is not None
        assert 50 < claim.deadline_seconds <= 60
        await queue.fail(claim, FailKind.PERMANENT, "UNKNOWN", "no")


async def test_a_deadline_that_passed_while_it_ran_ends_a_job_that_no_worker_takes_again(
    queue: Queue, redis: Redis
) -> None:
    job_id = await add(queue, deadline_seconds=0.1)
    claim = await take(queue)
    await asyncio.sleep(0.15)
    await queue.tick()
    assert (await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "drained")).state is JobState.QUEUED
    await queue.tick()  # no worker is left to ask for it
    job = await read(queue, job_id)
    assert (job.state, job.reason) == (JobState.DEAD, "TIMEOUT")
    assert await redis.zcard(keys.DEADLINE) == 0


async def test_one_claim_ends_a_bounded_number_of_jobs_that_are_too_late(
    redis_server: RedisServer, redis: Redis
) -> None:
    queue = redis_server.queue(replace(FAST, queue_limit=10_000))
    await add_many(queue, MANY, deadline_seconds=0.001)
    await redis.delete(keys.DEADLINE)  # tick has not come to them
    last = await add(queue)
    answer = await queue.claim("a/0", "n")
    assert isinstance(answer, Nothing)
    assert len(answer.outcomes) <= 100
    assert answer.next_due_seconds == 0
    for number in range(MANY // 50):
        answer = await queue.claim("a/0", f"n{number}")
        if isinstance(answer, Claim):
            break
    assert isinstance(answer, Claim)
    assert answer.job_id == last
    await queue.close()


@pytest.mark.parametrize("hours", [1, -1])
async def test_time_that_nobody_could_use_is_not_the_jobs(queue: Queue, redis: Redis, hours: int) -> None:
    """The clock jumped, or Redis was away: neither the waiting jobs nor one that comes back pay for it."""
    waiting = await add(queue, deadline_seconds=60.0)
    await add(queue, deadline_seconds=90.0)
    claim = await take(queue)
    assert claim.job_id == waiting, "the first one runs"
    last = await add(queue)
    for job_id in await redis.zrange(keys.DEADLINE, 0, -1):
        for field in ("deadline", "created"):
            await redis.hincrby(keys.job(job_id), field, -hours * HOUR_MS)
        await redis.zincrby(keys.DEADLINE, -hours * HOUR_MS, job_id)
    await redis.hincrby(keys.EPOCH, "seen", -hours * HOUR_MS)
    await queue.tick()
    await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "drained")
    await queue.tick()
    claims = [await queue.claim(worker, "n") for worker in ("a/0", "b/0", "c/0")]
    left = [claim.deadline_seconds for claim in claims if isinstance(claim, Claim)]
    assert left == [pytest.approx(60, abs=5), pytest.approx(90, abs=5), None]
    assert isinstance(claims[2], Claim)
    assert claims[2].job_id == last


async def test_a_replay_after_such_a_time_has_as_much_as_at_first(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, deadline_seconds=60.0)
    await redis.hincrby(keys.EPOCH, "seen", -HOUR_MS)
    await queue.tick()
    await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    assert (await queue.requeue_dead(job_id)).status == "settled"
    assert (await take(queue)).deadline_seconds == pytest.approx(60, abs=5)


async def test_the_same_nonce_is_told_the_same_deadline_after_such_a_time(queue: Queue, redis: Redis) -> None:
    await add(queue, deadline_seconds=60.0)
    assert isinstance(await queue.claim("a/0", "n"), Claim)
    await redis.hincrby(keys.EPOCH, "seen", -HOUR_MS)
    again = await queue.claim("a/0", "n")
    assert isinstance(again, Claim)
    assert again.deadline_seconds == pytest.approx(HOUR_MS / 1000 + 60, abs=5), "that hour was not the job's"


@pytest.mark.parametrize("replayed", [False, True])
async def test_a_clock_that_went_back_before_the_first_word_takes_nothing_from_a_deadline(
    queue: Queue, redis: Redis, replayed: bool
) -> None:
    """The submission (or the replay) is the first that anybody says to the new master."""
    job_id = await add(queue, deadline_seconds=60.0) if replayed else ""
    if replayed:
        await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    await redis.hset(keys.EPOCH, "seen", await now_ms(redis) + 120_000)
    if replayed:
        assert (await queue.requeue_dead(job_id)).status == "settled"
    else:
        await add(queue, deadline_seconds=60.0)
    await queue.tick()
    assert (await take(queue)).deadline_seconds == pytest.approx(60, abs=5)


async def test_a_replay_of_a_record_of_an_older_version_has_as_much_as_at_first(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, deadline_seconds=60.0)
    await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    await redis.hdel(keys.job(job_id), "allowed")
    assert (await queue.requeue_dead(job_id)).status == "settled"
    assert (await take(queue)).deadline_seconds == pytest.approx(60, abs=5)


async def test_such_a_time_costs_a_bounded_number_of_commands(queue: Queue, redis: Redis) -> None:
    """One script that goes through all jobs would itself be a standstill."""
    await queue.tick()
    deadline = await now_ms(redis) + HOUR_MS // 2
    pipeline = redis.pipeline(transaction=False)
    for number in range(20_000):
        pipeline.hset(keys.job(f"j{number}"), mapping={"state": "queued", "created": 1, "deadline": deadline})
    pipeline.zadd(keys.DEADLINE, {f"j{number}": deadline for number in range(20_000)})
    await pipeline.execute()
    await redis.hset(keys.EPOCH, "seen", await now_ms(redis) - HOUR_MS)
    await redis.config_resetstat()
    await queue.tick()
    calls = await redis.info("commandstats")
    assert sum(stats["calls"] for stats in calls.values()) <= 100
    shift = await redis.hget(keys.EPOCH, "shift")
    assert int(shift or 0) == pytest.approx(HOUR_MS, abs=10_000), "it was noticed"


@pytest.mark.parametrize("ticked", [True, False])
async def test_a_job_that_may_be_made_is_looked_at_however_late(queue: Queue, redis: Redis, ticked: bool) -> None:
    """Its worker was lost between COMMIT and its telling: an agent has to look, the deadline is no reason not to."""
    job_id = await add(queue, deadline_seconds=0.1)
    claim = await take(queue)
    await queue.beat(claim, 3, 3, "commit")
    await asyncio.sleep(0.15)
    await redis.zadd(keys.LEASE, {job_id: 1})
    if ticked:
        await queue.tick()
        await queue.tick()
    late = await queue.claim("b/0", "late")
    assert isinstance(late, Claim)
    assert late.job_id == job_id
    assert late.deadline_seconds is not None
    assert late.deadline_seconds <= 0


async def test_a_job_that_a_script_of_before_left_may_be_made_too(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, deadline_seconds=0.1)
    claim = await take(queue)
    await queue.beat(claim, 3, 3, "commit")
    await redis.zadd(keys.LEASE, {job_id: 1})
    await queue.tick()
    await redis.hdel(keys.job(job_id), "unsure")  # which it did not note
    await asyncio.sleep(0.15)
    await queue.tick()
    assert isinstance(await queue.claim("b/0", "late"), Claim)


async def end_unsure(queue: Queue, claim: Claim) -> None:
    """As when storage hangs while it commits."""
    await queue.beat(claim, 3, 3, "commit")
    await queue.fail(claim, FailKind.REFUSED, "UNKNOWN", "storage hangs")


async def test_a_job_that_may_be_made_remains_so_until_somebody_has_looked(queue: Queue) -> None:
    job_id = await add(queue, deadline_seconds=0.1)
    await end_unsure(queue, await take(queue))
    for worker in ("b/0", "c/0"):
        blind = await take(queue, worker)
        await queue.beat(blind, 0, 0, "")
        await queue.fail(blind, FailKind.REFUSED, "UNKNOWN", "storage hangs")
    await asyncio.sleep(0.15)
    await queue.tick()
    await queue.tick()
    assert (await take(queue, "d/0")).job_id == job_id


@pytest.mark.parametrize(("step", "phase"), [(0, "load"), (1, "")])
async def test_a_job_that_is_being_made_was_not(queue: Queue, redis: Redis, step: int, phase: str) -> None:
    """Its agent has looked: from there on its deadline counts as any other's."""
    job_id = await add(queue, deadline_seconds=0.1)
    await end_unsure(queue, await take(queue))
    claim = await take(queue, "b/0")
    await queue.beat(claim, step, 8, phase)
    await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "drained")
    await asyncio.sleep(0.15)
    await queue.tick()
    job = await read(queue, job_id)
    assert (job.state, job.reason) == (JobState.DEAD, "TIMEOUT")


async def test_nothing_is_known_to_be_made_in_another_life(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, deadline_seconds=0.1)
    await end_unsure(queue, await take(queue))
    await queue.fail(await take(queue), FailKind.PERMANENT, "UNKNOWN", "no")
    assert (await queue.requeue_dead(job_id)).status == "settled"
    await asyncio.sleep(0.15)
    await queue.tick()
    assert (await read(queue, job_id)).state is JobState.DEAD


async def test_a_job_that_may_be_made_does_not_wait_for_ever_for_a_worker_that_is_gone(
    queue: Queue, redis: Redis
) -> None:
    toon = Capabilities(models=("toon",))
    job_id = await add(queue, deadline_seconds=0.1, needs=Needs(model="toon"))
    claim = await queue.claim("a/0", "n", toon)
    assert isinstance(claim, Claim)
    await end_unsure(queue, claim)
    await asyncio.sleep(0.15)
    plain = Capabilities(models=("sd15",))

    async def state_after(milliseconds: int) -> JobState:
        await redis.hincrby(keys.job(job_id), "deadline", -milliseconds)
        await redis.zincrby(keys.DEADLINE, -milliseconds, job_id)
        await queue.tick()
        await queue.tick()
        assert isinstance(await queue.claim("b/0", "n", plain), Nothing)
        return (await read(queue, job_id)).state

    assert [await state_after(0), await state_after(590_000)] == [JobState.QUEUED] * 2
    again = await queue.claim("c/0", "n", toon)
    assert isinstance(again, Claim), "whoever can look may"
    await queue.fail(again, FailKind.REFUSED, "UNKNOWN", "storage hangs")
    assert await state_after(0) is JobState.QUEUED, "once more does not begin anew"
    assert await state_after(10_000) is JobState.DEAD
    assert (await read(queue, job_id)).reason == "TIMEOUT"
    assert await redis.zcard(keys.DEADLINE) == 0


# --- budgets ---------------------------------------------------------------------------------------------------------


async def test_a_word_that_a_failover_lost_is_no_crash_of_its_worker(redis_server: RedisServer, redis: Redis) -> None:
    """The same process asks for more: it has ended the attempt, perhaps with COMMIT, and somebody has to look."""
    queue = redis_server.queue(replace(FAST, crash_budget=1))
    await add(queue)
    await register(queue, "a/0", "boot")
    assert isinstance(await queue.claim("a/0", "n1", boot_id="boot"), Claim)
    again = await queue.claim("a/0", "n2", boot_id="boot")  # after a commit that the new master never saw
    assert isinstance(again, Claim)
    assert await queue.commit(again, "{}", adopted=True) is CommitAnswer.DONE
    await queue.close()


# --- other clocks ----------------------------------------------------------------------------------------------------


async def test_a_clock_that_went_back_does_not_keep_dead_workers_alive(queue: Queue, redis: Redis) -> None:
    await register(queue, "a/0")
    far = await now_ms(redis) + HOUR_MS
    await redis.zadd(keys.WORKERS, {"a/0": far})
    await redis.hset(keys.EPOCH, "seen", far)
    await queue.tick()
    for _ in range(20):
        await asyncio.sleep(0.1)
        await queue.tick()
    assert (await queue.stats()).live_workers == 0
    assert [event["type"] for event in await queue.cluster_events(60)].count("worker_down") == 1


async def test_a_run_that_began_in_the_future_does_not_turn_the_averages_negative(queue: Queue, redis: Redis) -> None:
    await add(queue, resolution="512x512")
    claim = await take(queue)
    await redis.hset(keys.job(claim.job_id), "started", await now_ms(redis) + HOUR_MS)
    await queue.commit(claim, "{}")
    stats = await queue.stats()
    assert min(stats.average_run_ms, stats.average_ratio, *stats.averages.values()) >= 0


# --- workers and classes ---------------------------------------------------------------------------------------------


async def test_an_agent_that_starts_again_does_not_make_impossible_jobs_welcome(queue: Queue) -> None:
    """Until its webui is up it says nothing about its capabilities; they are still what they were."""
    await register(queue, "a/0", "old", capabilities=json.dumps(Capabilities(models=("sd15",)).as_dict()))
    assert (await queue.submit(submission(needs=Needs(model="toon")))).status == "unfit"
    await register(queue, "a/0", "new")
    assert (await queue.submit(submission(needs=Needs(model="toon")))).status == "unfit"


@pytest.mark.parametrize(
    "odd", ['{"models": null, "vram_mib": null, "max_frames": null}', '{"models": ["\\ud800"]}', "{", "null", "7"]
)
async def test_one_workers_odd_description_does_not_stop_anybodys_jobs(queue: Queue, odd: str) -> None:
    await register(queue, "a/0", capabilities=odd)
    assert (await queue.submit(submission(needs=Needs("toon", "mm", 16384, 64)))).status == "ok"


async def test_the_attempt_that_a_restarted_agent_left_is_told_once(queue: Queue) -> None:
    await add(queue)
    await register(queue, "a/0", "old")
    assert isinstance(await queue.claim("a/0", "n1", boot_id="old"), Claim)
    about = {"state": "idle", "engine": "e", "fingerprint": "f", "synthetic": "0"}
    answer = await queue.register("a/0", boot_id="new", **about)
    assert [(outcome.kind, outcome.reason) for outcome in answer.outcomes] == [("crash", "WORKER_LOST")]
    assert (await queue.register("a/0", boot_id="new", **about)).outcomes == ()
    assert (await queue.tick()).outcomes == ()


async def test_how_attempts_ended_is_logged_whatever_else_fails(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await add(queue)
    claims = [await take(queue, worker) for worker in ("a/0", "b/0")]
    await redis.zadd(keys.LEASE, {claim.job_id: 1 for claim in claims})

    async def away(*_: object) -> None:
        raise QueueUnavailable("Redis fails over")

    monkeypatch.setattr(queue, "request_body", away)
    monkeypatch.setattr(queue, "stats", away)
    with caplog.at_level("INFO", "appliance.job_result"):
        await Ticker(queue).tick_once()
    lines = [record for record in caplog.records if record.name == "appliance.job_result"]
    assert [record.getMessage().rpartition(": ")[2] for record in lines] == ["crash", "crash"]


async def test_what_a_worker_was_to_the_ledger_is_forgotten_with_it(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await register(queue, "gone/0")
    await queue.commit(await take(queue, "gone/0"), "{}")
    await redis.zadd(keys.WORKERS, {"gone/0": 1})
    await queue.tick()
    assert await redis.xinfo_consumers(keys.RUN, keys.RUN_GROUP) == []


async def test_counts_read_a_bounded_number_of_jobs_however_many_classes_there_are(queue: Queue, redis: Redis) -> None:
    await redis.hset(keys.CLASSES, mapping={f"{number:016x}": "{}" for number in range(1001)})
    await redis.zadd(keys.READY, {f"j{number}": number for number in range(5000)})
    await redis.config_resetstat()
    assert (await queue.stats()).waiting == 5000
    calls = await redis.info("commandstats")
    assert calls.get("cmdstat_hget", {"calls": 0})["calls"] <= 2000


# --- retention -------------------------------------------------------------------------------------------------------


async def test_nothing_that_is_not_over_is_thrown_away(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=1))
    job_id = await add(queue)
    await redis.zadd(keys.DONE, {job_id: 1})
    await queue.tick()
    assert (await read(queue, job_id)).state is JobState.QUEUED
    assert await redis.zcard(keys.DONE) == 0
    await queue.close()


# --- the ticker ------------------------------------------------------------------------------------------------------


async def one_pass(ticker: Ticker) -> None:
    for _ in range(10):
        await ticker.tick_once()
        if ticker._pass_ended is not None:
            return
    pytest.fail("the first pass did not end")


async def test_all_records_are_checked_after_a_failover_whoever_noticed_it(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    ticker = Ticker(queue)
    await one_pass(ticker)
    await redis.hset(keys.EPOCH, "run_id", "the-old-master")
    await redis.zrem(keys.READY, job_id)
    assert isinstance(await queue.claim("a/0", "n"), Nothing)  # this is who noticed
    await ticker.tick_once()
    assert (await read(queue, job_id)).position == 1


async def test_the_check_after_a_failover_does_not_keep_ticks_waiting(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = redis_server.queue(replace(FAST, queue_limit=10_000))
    ids = await add_many(queue, 1200)
    ticker = Ticker(queue)
    await one_pass(ticker)
    monkeypatch.setattr(ticker_module, "TICK_SECONDS", 0.0)  # no time at all: one slice a tick
    await redis.hset(keys.EPOCH, "run_id", "the-old-master")
    await redis.zrem(keys.READY, ids[0], ids[-1])
    await ticker.tick_once()
    positions = [(await read(queue, ids[index])).position for index in (0, -1)]
    assert positions[0] is not None
    assert positions[1] is None
    await ticker.tick_once()
    await ticker.tick_once()
    assert (await read(queue, ids[-1])).position is not None
    await queue.close()


# --- hints -----------------------------------------------------------------------------------------------------------


async def test_following_the_hints_does_not_drop_a_new_connection(queue: Queue) -> None:
    link = queue._link
    subscription = await link.run(hints._subscribe)
    link._client = None  # somebody else has dropped it
    fresh = await link.client()
    with pytest.raises(QueueError, match="master has changed"):
        await link.run(subscription.next_hint)
    assert await link.client() is fresh
    await subscription.close()


# --- connections -----------------------------------------------------------------------------------------------------


async def test_a_burst_of_calls_waits_in_line_and_drops_nothing(queue: Queue) -> None:
    fresh = await queue._link.client()
    answers = await asyncio.gather(*(queue.stats() for _ in range(500)), return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert await queue._link.client() is fresh


async def test_calls_that_never_end_do_not_use_up_the_places(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "MOST_CALLS", 1)
    monkeypatch.setattr(redis_link, "OPERATION_SECONDS", 0.2)
    queue = redis_server.queue()
    over = asyncio.Event()

    async def deaf(_: Redis) -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    with pytest.raises(QueueUnavailable, match="no answer"):
        await queue._link.run(deaf)
    monkeypatch.undo()
    assert (await queue.stats()).waiting == 0
    over.set()
    await queue.close()


# --- what held already, and has to go on holding ---------------------------------------------------------------------


async def test_a_zombie_of_the_former_life_has_no_say_in_the_next(queue: Queue) -> None:
    await add(queue)
    zombie = await take(queue)
    await queue.fail(zombie, FailKind.PERMANENT, "UNKNOWN", "x")
    await queue.requeue_dead(zombie.job_id)
    assert await queue.commit(zombie, "{}") is CommitAnswer.FENCED
    assert await queue.beat(zombie) is BeatAnswer.FENCED
    claim = await take(queue)
    assert (await queue.fail(zombie, FailKind.ERROR, "UNKNOWN", "x")).status == "fenced"
    assert await queue.commit(claim, "{}") is CommitAnswer.DONE


async def test_no_message_breaks_the_history(queue: Queue, redis: Redis) -> None:
    odd = '\n],\n[{"\\\x00\x7f\u2028\ud800' + "é" * 2000
    job_id = await add(queue)
    for _ in range(25):
        await redis.hdel(keys.job(job_id), "crash", "crash_workers")
        await queue.fail(await take(queue), FailKind.CRASH, "UNKNOWN", odd)
    job = await read(queue, job_id)
    assert len(job.history) == 20
    assert job.history[-1].message == odd.replace("\ud800", "?")[:500]
    assert await redis.hstrlen(keys.job(job_id), "history") < 40_000


async def test_a_confirmed_cancel_is_the_last_word(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    claim = await take(queue)
    await redis.zadd(keys.LEASE, {job_id: 1})
    await queue.tick()
    assert (await queue.cancel(job_id)).status == "cancelled"
    assert await queue.commit(claim, "{}") is CommitAnswer.FENCED
    assert (await queue.requeue_dead(job_id)).status == "final"
    assert isinstance(await queue.claim("b/0", "n"), Nothing)


# --- late messages ---------------------------------------------------------------------------------------------------


async def test_a_claim_that_arrives_late_takes_nothing(queue: Queue) -> None:
    """A cut network delivers what was sent before the cut seconds after it is whole again; its sender has moved on."""
    await register(queue, "a/0", "boot")
    late = {"worker": "a/0", "nonce": "n1", "boot": "boot", "turn": queue._turn("n1")}
    assert isinstance(await queue.claim("a/0", "n1", boot_id="boot"), Nothing)
    await asyncio.sleep(0.01)
    await add(queue)
    waiting = await add(queue)
    claim = await queue.claim("a/0", "n2", boot_id="boot")
    assert isinstance(claim, Claim)
    assert (await queue._call("claim", late))[0] == "none"
    assert await queue.beat(claim) is BeatAnswer.OK
    assert (await read(queue, waiting)).state is JobState.QUEUED
    again = await queue.claim("a/0", "n2", boot_id="boot")
    assert isinstance(again, Claim)
    assert again.fence == claim.fence
    await register(queue, "a/0", "next boot")  # on a host that has just started, its clock begins at 0
    assert (await queue._call("claim", {**late, "boot": "next boot", "turn": 1}))[0] == "job"
