"""Jobs wait for a worker that can run them; workers come, go and change hands under their names."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import os

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.job import Capabilities, JobState, Needs, Priority
from appliance.queue import BeatAnswer, Claim, FailKind, Nothing, Queue
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    add,
    queue,
    redis,
    redis_server,
    submission,
    take,
)

pytestmark = pytest.mark.docker

SMALL = Capabilities(models=("sd15",), motion_modules=("mm",), vram_mib=8192, max_frames=32)
LARGE = Capabilities(models=("sd15", "toon"), motion_modules=("mm",), vram_mib=24576, max_frames=128)


async def present(
    queue: Queue, worker: str, can: Capabilities | None, boot_id: str = "boot", state: str = "idle"
) -> int:
    about = {
        "engine": "e",
        "fingerprint": "f",
        "synthetic": "0",
        "capabilities": json.dumps(can.as_dict()) if can else "",
    }
    return (await queue.register(worker, boot_id=boot_id, state=state, **about)).number


async def ask(queue: Queue, worker: str, can: Capabilities | None = None, boot_id: str = "") -> Claim | Nothing:
    return await queue.claim(worker, os.urandom(8).hex(), can, boot_id=boot_id)


async def kinds(queue: Queue) -> list[str]:
    return [event["type"] for event in await queue.cluster_events(60)]


# --- worker classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        (Needs(model="toon"), "model"),
        (Needs(motion_module="other"), "motion_module"),
        (Needs(vram_mib=12288), "vram_mib"),
        (Needs(frames=64), "frames"),
    ],
)
async def test_a_job_waits_for_a_worker_that_can_run_it(queue: Queue, needs: Needs, missing: str) -> None:
    job_id = await add(queue, needs=needs)
    assert SMALL.lacks(needs) == (missing,)
    assert isinstance(await ask(queue, "small/0", SMALL), Nothing)
    able = Capabilities(("toon",), ("other",), vram_mib=0, max_frames=0)
    claim = await ask(queue, "able/0", able)
    assert isinstance(claim, Claim)
    assert claim.job_id == job_id


async def test_what_a_worker_cannot_run_does_not_hold_up_what_it_can(queue: Queue) -> None:
    await add(queue, needs=Needs(vram_mib=16384), priority=Priority.HIGH)
    plain = await add(queue, priority=Priority.LOW)
    claim = await ask(queue, "small/0", SMALL)
    assert isinstance(claim, Claim)
    assert claim.job_id == plain


async def test_the_best_job_of_all_fitting_classes_comes_first(queue: Queue) -> None:
    low = await add(queue, needs=Needs(model="toon"), priority=Priority.LOW)
    normal = await add(queue)
    high = await add(queue, needs=Needs(vram_mib=16384), priority=Priority.HIGH)
    order = []
    for number in range(3):
        claim = await ask(queue, f"large/{number}", LARGE)
        assert isinstance(claim, Claim)
        order.append(claim.job_id)
    assert order == [high, normal, low]


async def test_a_job_that_no_worker_can_run_is_refused_with_what_is_missing(queue: Queue) -> None:
    await present(queue, "small/0", SMALL)
    refused = await queue.submit(submission(needs=Needs(model="toon", vram_mib=16384)))
    assert (refused.status, refused.missing) == ("unfit", ("model", "vram_mib"))
    assert (await queue.stats()).waiting == 0
    await present(queue, "large/0", LARGE)
    assert (await queue.submit(submission(needs=Needs(model="toon", vram_mib=16384)))).status == "ok"


async def test_needs_that_only_different_workers_meet_are_refused_too(queue: Queue) -> None:
    await present(queue, "a/0", Capabilities(models=("toon",), vram_mib=8192))
    await present(queue, "b/0", Capabilities(models=("sd15",), vram_mib=24576))
    refused = await queue.submit(submission(needs=Needs(model="toon", vram_mib=16384)))
    assert (refused.status, refused.missing) == ("unfit", ())


async def test_without_any_known_worker_everything_is_accepted(queue: Queue) -> None:
    assert (await queue.submit(submission(needs=Needs(model="unheard-of")))).status == "ok"


async def test_a_retry_finds_its_class_again_after_the_line_was_empty(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, needs=Needs(model="toon"))
    claim = await ask(queue, "large/0", LARGE)
    assert isinstance(claim, Claim)
    await queue.tick()
    assert await redis.hlen(keys.CLASSES) == 0
    await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "drained")
    job = await queue.get(job_id)
    assert job is not None
    assert (job.position, (await queue.stats()).waiting) == (1, 1)
    assert isinstance(await ask(queue, "small/0", SMALL), Nothing)
    assert isinstance(await ask(queue, "large/0", LARGE), Claim)


async def test_the_limit_counts_every_class(queue: Queue) -> None:
    for number in range(FAST.queue_limit):
        await add(queue, needs=Needs(model=f"m{number % 5}"))
    assert (await queue.submit(submission())).status == "full"


# --- workers ---------------------------------------------------------------------------------------------------------


async def test_a_process_started_anew_ends_its_predecessors_attempt_at_once(queue: Queue) -> None:
    job_id = await add(queue)
    await present(queue, "a/0", None, "old")
    claim = await ask(queue, "a/0", boot_id="old")
    assert isinstance(claim, Claim)
    await present(queue, "a/0", None, "new")
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.crashes, job.history[0].kind) == (JobState.QUEUED, 1, "crash")
    assert await queue.beat(claim) is BeatAnswer.FENCED
    assert "reclaimed" in await kinds(queue)


async def test_a_claim_before_the_first_word_is_not_taken_for_the_predecessors(queue: Queue) -> None:
    await add(queue)
    await present(queue, "a/0", None, "old")
    claim = await ask(queue, "a/0", boot_id="new")
    assert isinstance(claim, Claim)
    await present(queue, "a/0", None, "new")
    assert await queue.beat(claim) is BeatAnswer.OK


async def test_a_frozen_process_does_not_take_its_name_back_from_its_heir(queue: Queue) -> None:
    await add(queue)
    await add(queue)
    await present(queue, "a/0", None, "old")
    heir = await ask(queue, "a/0", boot_id="new")
    assert isinstance(heir, Claim)
    assert await present(queue, "a/0", None, "old") == 0
    assert isinstance(await ask(queue, "a/0", boot_id="old"), Nothing)
    assert await queue.beat(heir) is BeatAnswer.OK


async def test_workers_are_announced_when_they_come_and_when_they_go(queue: Queue) -> None:
    await queue.tick()
    await present(queue, "a/0", None)
    await present(queue, "a/0", None)
    assert await kinds(queue) == ["worker_up"]
    await asyncio.sleep(FAST.failover_grace_seconds + 0.05)  # the first tick's own
    for _ in range(3):
        await queue.tick()
    assert await kinds(queue) == ["worker_up", "worker_down"]
    await present(queue, "a/0", None)
    await present(queue, "a/0", None, state="stopped")
    await queue.tick()
    assert await kinds(queue) == ["worker_up", "worker_down"] * 2


async def test_silence_while_redis_was_away_says_nothing_about_the_workers(queue: Queue, redis: Redis) -> None:
    await present(queue, "a/0", None)
    await queue.tick()
    await asyncio.sleep(FAST.failover_grace_seconds + 0.05)
    await redis.hset(keys.EPOCH, "run_id", "another")
    await queue.tick()
    await queue.tick()
    assert await kinds(queue) == ["worker_up", "failover"]


async def test_a_workers_description_is_read_as_it_was_told(queue: Queue) -> None:
    await present(queue, "a/0", SMALL)
    (worker,) = await queue.workers()
    assert (worker.capabilities, worker.gpu) == (SMALL, None)


# --- what the claim does about a failover ----------------------------------------------------------------------------


async def test_a_claim_notices_a_failover_before_it_reaps(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    await redis.hset(keys.EPOCH, "run_id", "another")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    assert isinstance(await ask(queue, "b/0"), Nothing)
    assert await queue.beat(claim) is BeatAnswer.OK
    assert "failover" in await kinds(queue)
