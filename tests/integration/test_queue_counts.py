"""What the queue's scripts count for the exporters, in a real Redis: each outcome once, in the move that makes it."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from appliance import keys
from appliance.job import JobState, Needs
from appliance.process_figures import ProcessFigures, own_figures, tell_process
from appliance.queue import Claim, CommitAnswer, FailKind, Queue
from appliance.queue.counts import BOUNDS, USUAL_SIZES, Counts, parse_counts, whole_numbers
from appliance.queue.figures import FigureBook, Line
from appliance.redis_link import RedisLink
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
SIZE = "512x512"


async def counts_of(queue: Queue, redis: Redis, host: str = "a") -> Counts:
    await queue.tick()
    return parse_counts(whole_numbers(await redis.hgetall(keys.counts(host))))


async def lose(queue: Queue) -> None:
    """Every lease runs out."""
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    await queue.tick("here")


async def test_a_job_that_is_done(queue: Queue, redis: Redis) -> None:
    await redis.hset(keys.RATES, "a/0", "3.600000 NVIDIA A10G")
    await add(queue, resolution=SIZE)
    await asyncio.sleep(0.15)
    claim = await take(queue)
    await asyncio.sleep(0.12)
    assert await queue.commit(claim, "{}", model="sd15", video_seconds=2.0) is CommitAnswer.DONE
    counts = await counts_of(queue, redis)
    assert counts.done_by_size_model == {(SIZE, "sd15"): 1}
    assert counts.video_seconds == {SIZE: 2.0}
    assert counts.failed_by_reason_size == {}
    wait, took = counts.waits[SIZE], counts.took[SIZE]
    assert (sum(wait.counts), wait.counts[0], sum(took.counts)) == (1, 0, 1)
    assert 0.15 <= wait.sum_seconds < 2
    assert 0.12 <= took.sum_seconds < 2
    assert wait.cumulative()[1] == (0.5, 1)
    assert counts.gpu_seconds_by_size_model == {(SIZE, "NVIDIA A10G"): took.sum_seconds}
    assert counts.cost_usd[SIZE] == pytest.approx(took.sum_seconds * 3.6 / 3600, abs=1e-8)


async def test_each_answer_counts_once(queue: Queue, redis: Redis) -> None:
    """Lost answers are asked for again: claims, commits and failures are repeated with the same words."""
    await add(queue, resolution=SIZE)
    first = await queue.claim("a/0", "nonce")
    again = await queue.claim("a/0", "nonce")
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert await queue.commit(first, "{}", model="m") is CommitAnswer.DONE
    assert await queue.commit(again, "{}", model="m") is CommitAnswer.REPLAY
    await add(queue, resolution=SIZE)
    claim = await take(queue)
    for _ in range(2):
        await queue.fail(claim, FailKind.ERROR, "CUDA_ERROR", "x")
    counts = await counts_of(queue, redis)
    assert counts.done_by_size_model == {(SIZE, "m"): 1}
    assert counts.failed_by_reason_size == {("CUDA_ERROR", SIZE): 1}
    assert sum(counts.waits[SIZE].counts) == 2


async def test_a_zombie_counts_nowhere(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, resolution=SIZE)
    zombie = await take(queue, "a/0")
    await lose(queue)
    heir = await take(queue, "b/0")
    assert await queue.commit(zombie, "{}", model="m") is CommitAnswer.FENCED
    assert await queue.commit(heir, "{}", model="m", adopted=True) is CommitAnswer.DONE
    lost, made = await counts_of(queue, redis, "a"), await counts_of(queue, redis, "b")
    assert lost.failed_by_reason_size == {("WORKER_LOST", SIZE): 1}
    assert (lost.done_by_size_model, made.done_by_size_model) == ({}, {(SIZE, "m"): 1})
    assert made.took == {}, "the adopter only looked up what another attempt had made"
    assert (sum(lost.waits[SIZE].counts), made.waits) == (1, {}), "a job waits once, before its first attempt"
    assert lost.gpu_seconds_by_size_model[SIZE, "other"] >= FAST.lease_seconds, "lost work has cost, too"
    job = await queue.get(job_id)
    assert job is not None
    assert job.state is JobState.DONE


@pytest.mark.parametrize(
    ("kind", "reason", "counted"),
    [
        (FailKind.OOM, "OOM", True),
        (FailKind.PERMANENT, "INVALID_INPUT", True),
        (FailKind.CRASH, "WORKER_LOST", True),
        (FailKind.RELEASE, "WORKER_LOST", False),
        (FailKind.REFUSED, "WORKER_LOST", False),
        (FailKind.CANCELLED, "CANCELLED", False),
    ],
)
async def test_what_is_a_failure(queue: Queue, redis: Redis, kind: FailKind, reason: str, counted: bool) -> None:
    await add(queue, resolution=SIZE)
    claim = await take(queue)
    await queue.fail(claim, kind, reason, "x")
    counts = await counts_of(queue, redis)
    assert counts.failed_by_reason_size == ({(reason, SIZE): 1} if counted else {})
    assert (SIZE, "other") in counts.gpu_seconds_by_size_model, "the GPU was held all the same"


async def test_a_deadline_that_passed_in_line_counts_where_it_was_found(queue: Queue, redis: Redis) -> None:
    await add(queue, resolution=SIZE, deadline_seconds=0.01)
    await asyncio.sleep(0.05)
    await queue.tick("control-1")
    await add(queue, resolution=SIZE, deadline_seconds=0.01)
    await asyncio.sleep(0.05)
    await queue.claim("a/0", "n")
    for host in ("control-1", "a"):
        assert (await counts_of(queue, redis, host)).failed_by_reason_size == {("TIMEOUT", SIZE): 1}


async def test_a_job_of_another_life_waited_since_it_was_asked_for_again(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue, resolution=SIZE, deadline_seconds=1.0)
    await asyncio.sleep(1.1)
    await queue.tick()
    assert (await queue.requeue_dead(job_id)).status == "settled"
    await take(queue)
    assert (await counts_of(queue, redis)).waits[SIZE].sum_seconds < 0.9


async def test_hostile_labels_end_as_other(queue: Queue, redis: Redis, redis_server: RedisServer) -> None:
    """The usual ones keep their places, whoever came first."""
    link = RedisLink(redis_server.settings)
    await FigureBook(link, "a").put_rates({})
    for number in range(40):
        await add(queue, resolution=f"{64 + 8 * number}x72")
        assert await queue.commit(await take(queue), "{}", model=f"m\t{number}\n" + "x" * 500) is CommitAnswer.DONE
    await add(queue, resolution=USUAL_SIZES[-1])
    await queue.commit(await take(queue), "{}")
    counts = await counts_of(queue, redis)
    assert len(counts.sizes) <= 25
    assert {"other", USUAL_SIZES[-1]} <= counts.sizes
    models = {model for _, model in counts.done_by_size_model}
    assert len(models) <= 25
    assert "other" in models
    assert all("\t" not in model and len(model) <= 80 for model in models)
    assert sum(counts.done_by_size_model.values()) == 41
    assert await redis.hlen(keys.counts("a")) < 400
    await link.close()


async def test_broken_counts_cost_no_job(queue: Queue, redis: Redis) -> None:
    """Whatever lies in their place: jobs come before figures."""
    for key in (keys.counts("a"), keys.labels("size"), keys.labels("model"), keys.RATES):
        await redis.set(key, "no hash")
    for kind in (FailKind.RELEASE, FailKind.ERROR):
        await add(queue, resolution=SIZE)
        await queue.fail(await take(queue), kind, "UNKNOWN", "x")
        await asyncio.sleep(0.05)
    await queue.tick()
    assert not await redis.exists(keys.TALLY)
    await redis.set(keys.TALLY, "no list")
    await redis.delete(keys.READY)
    await add(queue, resolution=SIZE)
    assert await queue.commit(await take(queue), "{}", model="m", video_seconds=1) is CommitAnswer.DONE
    await queue.tick()


async def test_lines_that_nobody_understands_take_no_other_with_them(queue: Queue, redis: Redis) -> None:
    """Of another version, or broken; those around them count."""
    whole = f"end\ta/0\t{SIZE}\t5\tOOM"
    odd = [
        "",
        "\t\t\t",
        "end\ta/0",
        f"end\ta/0\t{SIZE}\t5",
        f"done\ta/0\t{SIZE}\tx\ty\tz",
        f"wait\ta/0\t{SIZE}",
        "new\ta/0\tx",
    ]
    await redis.rpush(keys.TALLY, whole, *odd, whole)
    assert (await counts_of(queue, redis)).failed_by_reason_size == {("OOM", SIZE): 2}
    assert not await redis.exists(keys.TALLY)


async def test_the_lines(queue: Queue) -> None:
    """All classes' ready sets; what runs or waits for another try is not in line."""
    empty = Line(0, 0, 0.0)
    assert await queue.lines() == {"default": empty, "special": empty}
    await add(queue)
    await take(queue, "a/0")
    for needs in (Needs(), Needs(), Needs(vram_mib=12288), Needs(frames=64)):
        await add(queue, needs=needs)
    await queue.fail(await take(queue, "b/0"), FailKind.ERROR, "UNKNOWN", "x")
    await asyncio.sleep(0.2)
    lines = await queue.lines()
    assert (lines["default"].waiting, lines["default"].running) == (1, 1)
    assert (lines["special"].waiting, lines["special"].running) == (2, 0)
    assert all(0.2 <= line.oldest_seconds < 5 for line in lines.values())


async def test_what_a_host_reads_of_itself(queue: Queue, redis: Redis, redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.settings)
    book = FigureBook(link, "a")
    await queue.register("a/0", boot_id="b", state="idle", engine="", fingerprint="", synthetic="0")
    await queue.nodes.put_view("a", {"at": 1, "nodes": {}})
    await add(queue)
    await take(queue)
    telling = asyncio.create_task(tell_process(link, "a", "api"))
    await asyncio.sleep(0.2)
    await queue.tick()
    figures = await book.read(("a/0", "a/1"))
    server_now = (await redis.time())[0]
    assert set(figures.heartbeats) == {"a/0", "a/1"}
    assert abs(figures.heartbeats["a/0"] - server_now) < 3
    assert figures.heartbeats["a/1"] == 0, "it never came"
    assert figures.view == {"at": 1, "nodes": {}}
    assert sum(parse_counts(figures.counts).waits["other"].counts) == 1
    told = ProcessFigures.parse(figures.processes["api"], own_figures().at)
    assert told is not None
    assert told.resident_bytes > 1 << 20
    assert 0 < told.cpu_seconds <= own_figures().cpu_seconds
    telling.cancel()
    await book.put_rates({"a/0": "1 cpu"})
    assert 0 < await redis.ttl(keys.counts("a")) <= 30 * 86400
    await link.close()


async def test_the_bounds_are_the_exporters(queue: Queue, redis: Redis) -> None:
    """The scripts get theirs from the same place: none is lost on its way through a field's name."""
    job = submission(resolution=SIZE)
    await queue.submit(job)
    await redis.hincrby(keys.job(job.job_id), "created", -50_000)
    await take(queue)
    spread = (await counts_of(queue, redis)).waits[SIZE]
    assert spread.counts[BOUNDS.index(60)] == 1


async def test_a_forgotten_worker_takes_its_rate_along(queue: Queue, redis: Redis) -> None:
    await queue.register("a/0", boot_id="b", state="idle", engine="", fingerprint="", synthetic="0")
    await redis.hset(keys.RATES, mapping={"a/0": "1 x", "b/0": "1 x"})
    await redis.zadd(keys.WORKERS, {"a/0": 1})
    await queue.tick()
    assert await redis.hkeys(keys.RATES) == ["b/0"]
