"""How workers wait for their jobs and get the next one: one is woken per job, and neither short cut loses anything."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys
from appliance.agent.loop import Agent
from appliance.agent.webui import Ping
from appliance.errors import QueueUnavailable
from appliance.job import Capabilities, JobState, Needs
from appliance.queue import Asker, BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue, Taker
from appliance.queue.orders import Order, OrderKind
from tests.integration.redis_server import FAST, RedisServer, add, closing, redis, redis_server, take  # noqa: F401
from tests.integration.test_review_agent import Studio, jobs_dir, settings_for, until  # noqa: F401

pytestmark = pytest.mark.docker

SLOW = replace(FAST, lease_seconds=3.0, beat_seconds=0.5)
LONG = 0.8  # seconds; the longest wait that the socket's time limit allows
SMALL = Capabilities(models=("sd15",), motion_modules=("mm",), vram_mib=8192, max_frames=32)
LARGE = Capabilities(models=("sd15", "toon"), motion_modules=("mm",), vram_mib=24576, max_frames=128)


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    async with closing(redis_server.queue(SLOW)) as queue:
        for worker in ("a/0", "b/0", "c/0"):
            await register(queue, worker)
            assert isinstance(await queue.claim(worker, "to make the line", wait_seconds=0.01), Nothing)
        yield queue


async def register(queue: Queue, worker: str, can: Capabilities | None = None) -> None:
    more = {"capabilities": json.dumps(can.as_dict())} if can else {}
    await queue.register(worker, boot_id=worker, state="idle", engine="e", fingerprint="f", synthetic="0", **more)


def wait(
    queue: Queue, worker: str, can: Capabilities | None = None, seconds: float = LONG
) -> asyncio.Task[Claim | Nothing]:
    return asyncio.create_task(queue.claim(worker, os.urandom(8).hex(), can, wait_seconds=seconds))


async def in_line(queue: Queue, redis: Redis, *workers: tuple[str, Capabilities | None]) -> list[asyncio.Task[Any]]:
    """They wait behind each other, in this order."""
    waiting = []
    for worker, can in workers:
        waiting.append(wait(queue, worker, can))
        await line_is(redis, len(waiting))
    return waiting


async def line_is(redis: Redis, length: int) -> None:
    for _ in range(400):
        if (await redis.info("clients"))["blocked_clients"] == length:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"there are never {length} workers in line")


# --- in line ---------------------------------------------------------------------------------------------------------


async def test_a_job_goes_to_who_waits_and_leaves_the_others_in_line(queue: Queue, redis: Redis) -> None:
    waiting = await in_line(queue, redis, ("a/0", None), ("b/0", None), ("c/0", None))
    job_id = await add(queue)
    claim = await asyncio.wait_for(waiting[0], 0.4)
    assert isinstance(claim, Claim)
    assert (claim.job_id, claim.more) == (job_id, False)
    await asyncio.sleep(0.1)
    assert [task.done() for task in waiting[1:]] == [False, False], "nobody else is woken for it"
    assert [type(answer) for answer in await asyncio.gather(*waiting[1:])] == [Nothing, Nothing]


async def test_each_of_several_jobs_finds_a_waiting_worker(queue: Queue, redis: Redis) -> None:
    waiting = await in_line(queue, redis, ("a/0", None), ("b/0", None), ("c/0", None))
    jobs = {await add(queue) for _ in range(3)}
    claims = await asyncio.wait_for(asyncio.gather(*waiting), 0.5)
    assert {claim.job_id for claim in claims} == jobs


async def test_a_job_that_came_before_the_wait_is_not_waited_for(queue: Queue) -> None:
    job_id = await add(queue)
    claim = await asyncio.wait_for(wait(queue, "a/0"), 0.4)
    assert isinstance(claim, Claim)
    assert claim.job_id == job_id


@pytest.mark.parametrize("lost", ["group", "stream"])
async def test_a_line_that_a_failover_has_lost_is_made_again(queue: Queue, redis: Redis, lost: str) -> None:
    if lost == "stream":
        await redis.delete(keys.WAKE)
    else:
        await redis.xgroup_destroy(keys.WAKE, keys.WAKE_GROUP)
    assert isinstance(await wait(queue, "a/0"), Nothing)
    begin = time.monotonic()
    assert isinstance(await wait(queue, "a/0", seconds=0.3), Nothing)
    assert time.monotonic() - begin >= 0.29, "it waits again"
    await add(queue)
    assert isinstance(await wait(queue, "a/0"), Claim)


async def test_a_job_taken_without_waiting_wakes_nobody_later(queue: Queue) -> None:
    for _ in range(3):
        await add(queue)
        await queue.commit(await take(queue), "{}")
    assert isinstance(await queue.claim("a/0", "nothing left"), Nothing)
    begin = time.monotonic()
    assert isinstance(await wait(queue, "a/0", seconds=0.3), Nothing)
    assert time.monotonic() - begin >= 0.29


async def test_a_job_for_some_workers_finds_one_behind_those_that_cannot(queue: Queue, redis: Redis) -> None:
    await register(queue, "a/0", SMALL)
    await register(queue, "b/0", SMALL)
    await register(queue, "c/0", LARGE)
    *small, large = await in_line(queue, redis, ("a/0", SMALL), ("b/0", SMALL), ("c/0", LARGE))
    job_id = await add(queue, needs=Needs(model="toon"))
    claim = await asyncio.wait_for(large, 0.4)
    assert isinstance(claim, Claim)
    assert claim.job_id == job_id
    assert [type(answer) for answer in await asyncio.gather(*small)] == [Nothing, Nothing]


async def test_a_job_that_its_first_workers_failed_finds_one_behind_them(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    for number, worker in enumerate(("a/0", "b/0")):
        claim = await take(queue, worker)
        await queue.fail(claim, FailKind.ERROR, "CUDA_ERROR", f"failure {number}")
        if worker == "a/0":
            await redis.zadd(keys.DELAYED, {job_id: 0})
    assert isinstance(await queue.claim("c/0", "not yet"), Nothing)
    waiting = await in_line(queue, redis, ("a/0", None), ("b/0", None), ("c/0", None))
    await redis.zadd(keys.DELAYED, {job_id: 0})
    await queue.tick()
    claim = await asyncio.wait_for(waiting[2], 0.4)
    assert claim.job_id == job_id
    await asyncio.gather(*waiting)


async def test_who_has_left_the_line_is_given_nothing(queue: Queue, redis: Redis) -> None:
    (gone,) = await in_line(queue, redis, ("a/0", None))
    gone.cancel()
    await asyncio.wait({gone})
    await line_is(redis, 0)
    job_id = await add(queue)
    assert (await redis.hget(keys.job(job_id), "state")) == "queued"
    assert (await take(queue, "b/0")).job_id == job_id


async def test_a_lost_answer_to_a_wait_costs_nothing(queue: Queue) -> None:
    job_id = await add(queue)
    first = await queue.claim("a/0", "nonce", wait_seconds=LONG)
    again = await queue.claim("a/0", "nonce")
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert (first.job_id, first.fence) == (again.job_id, again.fence) == (job_id, first.fence)


async def test_a_wait_ends_for_a_lease_that_runs_out(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await take(queue, "dead/0")
    taker = Taker(queue)
    began = time.monotonic()
    while not isinstance(answer := await taker.take(Asker("a/0", "a/0")), Claim):
        assert time.monotonic() - began < SLOW.lease_seconds + 1
    assert time.monotonic() - began < SLOW.lease_seconds + 0.3
    assert answer.attempts == 2


# --- with the commit -------------------------------------------------------------------------------------------------


async def test_the_next_job_comes_with_the_commit(queue: Queue) -> None:
    first, second, third = [await add(queue) for _ in range(3)]
    claim = await take(queue)
    assert (claim.job_id, claim.more) == (first, True)
    answer, following = await queue.commit_and_claim(claim, '{"fence": 1}', Asker("a/0"), "n")
    assert answer is CommitAnswer.DONE
    assert isinstance(following, Claim)
    assert (following.job_id, following.nonce, following.more) == (second, "n", True)
    done = await queue.get(first)
    assert done is not None
    assert (done.state, done.result) == (JobState.DONE, {"fence": 1})
    assert await queue.beat(following) is BeatAnswer.OK
    answer, last = await queue.commit_and_claim(following, "{}", Asker("a/0"), "n2")
    assert isinstance(last, Claim)
    assert (last.job_id, last.more) == (third, False)
    answer, nothing = await queue.commit_and_claim(last, "{}", Asker("a/0"), "n3")
    assert (answer, type(nothing)) == (CommitAnswer.DONE, Nothing)


async def test_it_may_be_asked_again(queue: Queue, redis: Redis) -> None:
    await add(queue)
    second, third = await add(queue), await add(queue)
    claim = await take(queue)
    answers = [await queue.commit_and_claim(claim, "{}", Asker("a/0"), "n") for _ in range(3)]
    assert [answer for answer, _ in answers] == [CommitAnswer.DONE, CommitAnswer.REPLAY, CommitAnswer.REPLAY]
    assert len({following.fence for _, following in answers if isinstance(following, Claim)}) == 1
    assert {following.job_id for _, following in answers if isinstance(following, Claim)} == {second}
    assert await redis.zrange(keys.LEASE, 0, -1) == [second]
    assert (await take(queue, "b/0")).job_id == third


async def test_who_has_lost_its_job_is_given_no_other(queue: Queue, redis: Redis) -> None:
    """Its webui may still be at work on it."""
    lost = await add(queue)
    zombie = await take(queue)
    waiting = await add(queue)
    await redis.zadd(keys.LEASE, {lost: 1})
    heir = await take(queue, "b/0")
    assert heir.job_id == lost
    assert await queue.commit_and_claim(zombie, "{}", Asker("a/0"), "n") == (CommitAnswer.FENCED, None)
    record = await queue.get(waiting)
    assert record is not None
    assert (record.state, record.attempts) == (JobState.QUEUED, 0)


async def test_more_is_only_what_the_worker_may_have(queue: Queue) -> None:
    await register(queue, "c/0", LARGE)
    await add(queue)
    await add(queue, needs=Needs(model="toon"))
    claim = await queue.claim("a/0", "n", SMALL)
    assert isinstance(claim, Claim)
    assert not claim.more


async def test_a_taker_keeps_its_nonce_until_it_is_answered(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer with the next job is lost, and then the agent wants none any more: `take` finds it all the same."""
    first, second = await add(queue), await add(queue)
    taker, asker = Taker(queue), Asker("a/0", "a/0")
    claim = await taker.take(asker)
    assert isinstance(claim, Claim)
    real = queue.commit_and_claim

    async def lose_the_answer(*args: object, **more: object) -> None:
        await real(*args, **more)  # type: ignore[arg-type]
        raise QueueUnavailable("cut")

    monkeypatch.setattr(queue, "commit_and_claim", lose_the_answer)
    with pytest.raises(QueueUnavailable):
        await taker.commit(claim, "{}", asker)
    assert await taker.commit(claim, "{}", None) == (CommitAnswer.REPLAY, None)
    found = await taker.take(asker)
    assert isinstance(found, Claim)
    assert (claim.job_id, found.job_id, found.attempts) == (first, second, 1)


# --- the agent -------------------------------------------------------------------------------------------------------


class Watched(Studio):
    """`ready` and `busy` are what it says of itself."""

    ready, busy = True, None

    async def ping(self) -> Ping:
        return Ping(ready=self.ready, status="ok" if self.ready else "loading", busy=self.busy)


class Working:
    def __init__(self, jobs_dir: Path, server: RedisServer, queue: Queue, webui: Studio) -> None:
        self.stop = asyncio.Event()
        self.agent = Agent(settings_for(jobs_dir, server), queue, webui)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.agent.run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 8)


async def done(queue: Queue, *jobs: str) -> None:
    for _ in range(500):
        records = await queue.get_many(list(jobs))
        if all(record is not None and record.state is JobState.DONE for record in records):
            return
        await asyncio.sleep(0.02)
    raise AssertionError([record and (record.state, record.history) for record in records])


async def test_an_agent_gets_its_jobs_with_the_commits_of_those_before(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await add(queue) for _ in range(5)]
    plain, both = count(monkeypatch, queue, "commit"), count(monkeypatch, queue, "commit_and_claim")
    working = Working(jobs_dir, redis_server, queue, Watched(jobs_dir))
    await done(queue, *jobs)
    await working.end()
    assert (len(plain), len(both)) == (1, 4)
    assert [job.attempts for job in await queue.get_many(jobs) if job] == [1] * 5


@pytest.mark.parametrize("why", ["busy", "not ready", "ordered"])
async def test_an_agent_that_could_not_work_takes_no_next_job(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    webui = Watched(jobs_dir, seconds=0.6)
    both = count(monkeypatch, queue, "commit_and_claim")
    first, second = await add(queue), await add(queue)
    working = Working(jobs_dir, redis_server, queue, webui)
    await until(lambda: working.agent.busy)
    if why == "ordered":
        await queue.nodes.put_orders({"a/0": Order(OrderKind.DRAIN, "ada")})
        await asyncio.sleep(0.3)
    webui.busy, webui.ready = ("local" if why == "busy" else None), why != "not ready"
    await done(queue, first)
    await asyncio.sleep(0.3)
    record = await queue.get(second)
    assert record is not None
    assert (record.state, record.attempts, both) == (JobState.QUEUED, 0, [])
    await working.end()


async def test_a_webui_that_went_away_while_its_agent_waited_is_found_out_before_the_work(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path
) -> None:
    """It would take a job and say nothing; the watchdog would need its time for that."""
    webui = Watched(jobs_dir)
    working = Working(jobs_dir, redis_server, queue, webui)
    await line_is(redis, 1)
    await asyncio.sleep(0.15)
    webui.ready = False
    job_id = await add(queue)
    await until(lambda: not working.agent.busy)
    for _ in range(100):
        record = await queue.get(job_id)
        if record is not None and record.history:
            break
        await asyncio.sleep(0.02)
    assert record is not None
    assert [one.kind for one in record.history] == ["refused"]
    assert (record.state, record.crashes, webui.made) == (JobState.QUEUED, 0, [])
    webui.ready = True
    await done(queue, job_id)
    await working.end()


@pytest.mark.parametrize("how", ["stopped", "ordered"])
async def test_a_job_that_comes_to_an_agent_that_may_not_work_any_more_goes_back_for_free(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    webui = Watched(jobs_dir)
    waits = count(monkeypatch, queue, "claim")
    working = Working(jobs_dir, redis_server, queue, webui)
    await until(lambda: len(waits) == 3)  # the first one asks, the second one makes the line
    if how == "stopped":
        working.stop.set()
    else:
        await queue.nodes.put_orders({"a/0": Order(OrderKind.DRAIN, "ada")})
        await until(lambda: working.agent._presence.order == "drain")
        assert len(waits) == 3
    job_id = await add(queue)
    await until(lambda: not working.agent.busy)
    await asyncio.sleep(0.3)
    record = await queue.get(job_id)
    assert record is not None
    assert (record.state, record.crashes, webui.made) == (JobState.QUEUED, 0, [])
    assert [one.kind for one in record.history] == ["release"]
    await working.end()


def count(monkeypatch: pytest.MonkeyPatch, queue: Queue, name: str) -> list[str]:
    real, calls = getattr(queue, name), []

    async def counted(*args: object, **more: object) -> object:
        calls.append(name)
        return await real(*args, **more)

    monkeypatch.setattr(queue, name, counted)
    return calls
