"""What failures have in common: from the queue's scripts in a real Redis to the api's answer."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import random
import statistics
import string
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys
from appliance.api.app import create_app
from appliance.causes import desk as desks
from appliance.causes.desk import Desk
from appliance.gpu import Gpu
from appliance.job import Capabilities, Needs, new_job_id
from appliance.parameters import parameters_to_keep
from appliance.queue import AttemptRecord, Claim, FailKind, Queue
from appliance.redis_link import RedisLink
from appliance.settings import Address, ApiSettings, Common
from tests.integration.api_process import KEYS, client_of, running_api, write_keys
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    RedisServer,
    add,
    closing,
    queue,
    redis,
    redis_server,
    take,
)

pytestmark = pytest.mark.docker
SMALL = Gpu("NVIDIA GeForce RTX 4090", 24_564)
LARGE = Gpu("NVIDIA A100-SXM4-80GB", 81_920)
ERRORS = "/api/v1/errors"
NO_FILES = '{"files": []}'
PLAIN = {"frames": 32, "context_batch_size": 16, "steps": 20}


@pytest_asyncio.fixture
async def api(redis_server: RedisServer, queue: Queue, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with operator_of(redis_server, queue, tmp_path) as client:
        yield client


def operator_of(redis_server: RedisServer, queue: Queue, folder: Path) -> httpx.AsyncClient:
    write_keys(folder / "api_keys")
    common, listen = Common("api", "test", "info", folder), Address("127.0.0.1", 0)
    settings = ApiSettings(common, redis_server.settings, FAST, listen, folder / "jobs", folder / "api_keys")
    transport = httpx.ASGITransport(create_app(settings, queue), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers={"X-Api-Key": KEYS["root"]})


async def begin(queue: Queue, asked: dict[str, Any], gpu: Gpu | None, worker: str = "gpu-01/0") -> Claim:
    await add(queue)
    claim = await queue.claim(worker, random.randbytes(8).hex(), gpu=gpu)
    assert isinstance(claim, Claim)
    await queue.beat(claim, 1, 20, "step", parameters=parameters_to_keep(asked))
    return claim


async def attempts_of(queue: Queue, job_id: str) -> tuple[AttemptRecord, ...]:
    job = await queue.get(job_id)
    assert job is not None
    return job.history


# --- what is kept ----------------------------------------------------------------------------------------------------


async def test_an_attempt_remembers_what_it_ran_on_and_where_it_failed(queue: Queue, redis: Redis) -> None:
    claim = await begin(queue, PLAIN, SMALL)
    await queue.fail(claim, FailKind.ERROR, "UNKNOWN", "x", where="webui.engine.decode:decode" + "é" * 200)
    await redis.zadd(keys.DELAYED, {claim.job_id: 0})
    without = await take(queue, "cpu/0")
    await queue.commit(without, "{}")
    one, two = await attempts_of(queue, claim.job_id)
    assert one.gpu == SMALL.label
    assert one.where is not None
    assert len(one.where) == 100
    assert one.started_at is not None
    assert one.started_at <= one.at
    assert (two.gpu, two.where, two.worker) == (None, None, "cpu/0")


async def test_a_worker_that_is_gone_has_told_its_gpu_before(queue: Queue, redis: Redis) -> None:
    claim = await begin(queue, PLAIN, LARGE)
    await redis.zadd(keys.LEASE, {claim.job_id: 1})
    await queue.tick()
    (attempt,) = await attempts_of(queue, claim.job_id)
    assert (attempt.kind, attempt.gpu) == ("crash", LARGE.label)


async def test_a_jobs_parameters_are_told_once_and_outlive_its_request(queue: Queue, redis: Redis) -> None:
    claim = await begin(queue, PLAIN, SMALL)
    await queue.beat(claim, 2, 20, "step", parameters='{"steps":99}')
    await queue.commit(claim, "{}")
    assert 0 < await redis.ttl(keys.request(claim.job_id)) <= 3600
    await redis.delete(keys.request(claim.job_id))
    _, (past,) = await queue.past_jobs("done", 0, 10)
    assert (past.job_id, past.state) == (claim.job_id, "done")
    assert json.loads(past.parameters)["steps"] == 20
    assert past.finished_at == pytest.approx(time.time(), abs=60)


async def test_past_jobs_come_in_slices_newest_first(queue: Queue, redis: Redis) -> None:
    finished = []
    for _ in range(5):
        claim = await begin(queue, PLAIN, None)
        await queue.commit(claim, "{}")
        finished.append(claim.job_id)
        await asyncio.sleep(0.002)
    assert (await queue.past_jobs("done", 0, 2))[0] == 2
    slices = [await queue.past_jobs("done", first, 2) for first in (0, 2, 4, 6)]
    assert [size for size, _ in slices] == [2, 2, 1, 0]
    assert [job.job_id for _, jobs in slices for job in jobs] == finished[::-1]
    await redis.delete(keys.job(finished[-1]))
    size, jobs = await queue.past_jobs("done", 0, 2)
    assert (size, [job.job_id for job in jobs]) == (2, [finished[-2]])


async def test_a_job_that_waits_for_another_try_is_among_the_past_ones(queue: Queue) -> None:
    claim = await begin(queue, PLAIN, SMALL)
    await queue.fail(claim, FailKind.ERROR, "UNKNOWN", "x")
    (_, [waiting]), (_, running) = await queue.past_jobs("delayed", 0, 9), await queue.past_jobs("lease", 0, 9)
    assert (waiting.job_id, waiting.finished_at, running) == (claim.job_id, None, [])


# --- the answer ------------------------------------------------------------------------------------------------------


async def make_history(queue: Queue) -> None:
    """Out of memory with 24 frames together on the small GPU; a dead GPU and two programs' mistakes besides."""
    for number in range(150):
        tight, gpu = number % 3 == 0, (SMALL, LARGE)[number % 2]
        claim = await begin(
            queue, {**PLAIN, "context_batch_size": 24 if tight else 16}, gpu, f"gpu-0{1 + number % 2}/0"
        )
        if tight and gpu is SMALL:
            await queue.fail(claim, FailKind.PERMANENT, "OOM", f"CUDA out of memory. Tried to allocate {number} MiB")
        else:
            await queue.commit(claim, "{}")
    for xid in (79, 13, 13):
        claim = await begin(queue, PLAIN, LARGE)
        await queue.fail(claim, FailKind.PERMANENT, "UNKNOWN", f"NVRM: Xid (PCI:0000:3b:00): {xid}, pid=77")
    claim = await begin(queue, PLAIN, LARGE)
    await queue.fail(claim, FailKind.RELEASE, "WORKER_LOST", "its worker is being stopped")


async def test_failures_are_grouped_explained_and_answered(queue: Queue, api: httpx.AsyncClient) -> None:
    await make_history(queue)
    response = await api.get(ERRORS)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [(one["reason"], one["xid"], one["failures"]) for one in answer["kinds"]] == [
        ("OOM", None, 25),
        ("CUDA_ERROR", 13, 2),
        ("GPU_LOST", 79, 1),
    ]
    oom, program, dead = answer["kinds"]
    (finding,) = oom["findings"]
    assert (finding["parameter"], finding["bucket"], finding["gpus"]) == (
        "context_batch_size",
        "above 16",
        [SMALL.label],
    )
    assert (finding["failures"], finding["attempts"]) == (25, 50)
    assert finding["lift"] >= 1.3
    assert finding["risk_ratio_low"] > 1.5
    assert finding["q"] < 0.01
    assert oom["suggestion"] == (
        "ask for a context_batch_size of 16 at most on GPUs with less than 40 GB "
        "(seen safe: 50 attempts, 0 of them failed like this)"
    )
    assert oom["gpus"] == [{"gpu": SMALL.label, "failures": 25, "attempts": 75}]
    assert "too few to compare" in program["verdict"]
    assert "fallen off the bus" in dead["suggestion"]
    looked = answer["looked_at"]
    assert (looked["jobs"], looked["failures"], looked["without_parameters"], looked["limit"]) == (153, 28, 0, None)


async def test_only_operators_are_told(api: httpx.AsyncClient, queue: Queue) -> None:
    job_id = await add(queue)
    for path in (ERRORS, f"/api/v1/jobs/{job_id}/trace", "/api/v1/jobs/none/trace"):
        refused = await api.get(path, headers={"X-Api-Key": KEYS["ada"]})
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
        assert (await api.get(path, headers={"X-Api-Key": "guess"})).status_code == 401
    assert (await api.get("/api/v1/jobs/none/trace")).status_code == 404
    assert (await api.get(ERRORS, params={"days": 0})).status_code == 422


async def test_nothing_has_failed_yet(api: httpx.AsyncClient) -> None:
    answer = (await api.get(ERRORS)).json()
    assert (answer["kinds"], answer["looked_at"]["jobs"]) == ([], 0)


async def test_older_failures_are_left_out(api: httpx.AsyncClient, queue: Queue, redis: Redis) -> None:
    await seed(redis, [record(f"old {number}", age_days=3) for number in range(300)])
    await seed(redis, [record("new", age_days=0.5)])
    assert (await api.get(ERRORS, params={"days": 1})).json()["looked_at"]["failures"] == 1
    assert (await api.get(ERRORS, params={"days": 7})).json()["looked_at"]["failures"] == 301


async def test_jobs_from_before_an_upgrade_count_but_are_not_compared(api: httpx.AsyncClient, queue: Queue) -> None:
    await queue.fail(await take_new(queue), FailKind.PERMANENT, "OOM", "CUDA out of memory")
    answer = (await api.get(ERRORS)).json()
    assert (answer["looked_at"]["without_parameters"], answer["kinds"][0]["failures"]) == (1, 1)
    assert "with known parameters" in answer["kinds"][0]["verdict"]


async def take_new(queue: Queue) -> Claim:
    await add(queue)
    return await take(queue)


# --- one at a time, in bounded time ----------------------------------------------------------------------------------


async def test_many_ask_and_one_study_answers(queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    await seed(redis, [record(f"x {number}") for number in range(500)])
    desk, studies = Desk(queue, asyncio.Event()), 0
    study = desk._study

    async def counted(days: int) -> Any:
        nonlocal studies
        studies += 1
        return await study(days)

    monkeypatch.setattr(desk, "_study", counted)
    reports = await asyncio.gather(*(desk.report(7) for _ in range(20)))
    assert len({id(report) for report in reports}) == studies == 1
    assert await desk.report(7) is reports[0]
    monkeypatch.setattr(desks, "CACHE_SECONDS", 0.0)
    assert await desk.report(7) is not reports[0]


async def test_who_leaves_leaves_the_answer_to_the_others(queue: Queue, redis: Redis) -> None:
    await seed(redis, [record(f"x {number}") for number in range(500)])
    desk = Desk(queue, asyncio.Event())
    leaving = asyncio.create_task(desk.report(7))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await desk.report(7)).looked_at.failures == 500
    await desk.close()


async def test_an_answer_that_takes_too_long_is_asked_for_again(
    queue: Queue, redis: Redis, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seed(redis, [record(f"x {number}") for number in range(5000)])
    monkeypatch.setattr(desks, "PATIENCE_SECONDS", 0.01)
    busy = await api.get(ERRORS)
    assert (busy.status_code, busy.json()["type"], busy.headers["retry-after"]) == (503, "busy", "5")
    monkeypatch.setattr(desks, "PATIENCE_SECONDS", 30.0)
    assert (await api.get(ERRORS)).json()["looked_at"]["failures"] == 5000


async def test_what_was_not_looked_at_is_said(queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    await seed(redis, [record(f"x {number}") for number in range(1000)])
    few = await Desk(queue, asyncio.Event(), most_jobs=400).report(7)
    assert few.looked_at.limit == "only the newest 400 jobs were looked at, the most for one answer"
    assert few.looked_at.jobs == 400
    monkeypatch.setattr(desks, "READ_SECONDS", 0.0)
    late = await Desk(queue, asyncio.Event()).report(7)
    assert late.looked_at.limit == "only the newest 200 jobs were looked at, in 0 s"


async def test_jobs_that_end_meanwhile_are_not_counted_twice(queue: Queue, redis: Redis) -> None:
    """Each slice is followed by new jobs, which push others into the next slice."""
    await seed(redis, [record(f"x {number}") for number in range(600)])
    past_jobs, seen = queue.past_jobs, []

    async def meddling(line: Any, first: int, count: int) -> Any:
        answer = await past_jobs(line, first, count)
        seen.extend(job.job_id for job in answer[1])
        await seed(redis, [record("more") for _ in range(30)])
        return answer

    queue.past_jobs = meddling  # type: ignore[method-assign]
    report = await Desk(queue, asyncio.Event()).report(7)
    assert len(seen) > len(set(seen)), "some were read twice"
    assert report.looked_at.jobs == len(set(seen))


async def test_what_failed_and_waits_to_be_tried_again_is_looked_at(queue: Queue) -> None:
    """While all workers are away, and that is when an operator asks."""
    needy = await add(queue, needs=Needs(frames=16))
    claims = [await queue.claim(worker, "n", Capabilities(max_frames=64)) for worker in ("a/0",)]
    for _ in range(3):
        await add(queue)
    claims += [await queue.claim("b/0", "n", Capabilities(max_frames=1))]
    for claim in claims:
        assert isinstance(claim, Claim)
        await queue.fail(claim, FailKind.CRASH, "WORKER_LOST", "the webui said nothing for 5 s")
    report = await Desk(queue, asyncio.Event()).report(7)
    assert (report.looked_at.jobs, report.looked_at.failures) == (2, 2)
    assert needy in {claim.job_id for claim in claims if isinstance(claim, Claim)}


async def test_of_a_long_waiting_line_the_head_is_looked_at(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "READY_LIMIT", 400)
    await redis.zadd(keys.READY, {f"j{number:04}": number for number in range(1000)})
    history = record("x")["history"]
    for number in (0, 150, 399, 999):
        await redis.hset(keys.job(f"j{number:04}"), mapping={"state": "queued", "history": history})
    assert (await Desk(queue, asyncio.Event()).report(7)).looked_at.jobs == 3


async def test_without_redis_the_answer_is_503(redis_server: RedisServer, tmp_path: Path) -> None:
    async with closing(
        Queue(RedisLink(replace(redis_server.settings, address=Address("127.0.0.1", 1))), FAST)
    ) as nobody:
        response = await operator_of(redis_server, nobody, tmp_path).get(ERRORS)
    assert (response.status_code, response.json()["type"]) == (503, "queue-unavailable")


# --- a flood ---------------------------------------------------------------------------------------------------------


def record(
    message: str, *, age_days: float = 0.01, parameters: str | None = None, ended: str = "dead"
) -> dict[str, Any]:
    """A job's hash as far as it is looked at, as the scripts write it."""
    at = round((time.time() - age_days * 86400) * 1000)
    kind, reason = ("done", "") if ended == "done" else ("permanent", "UNKNOWN")
    attempt = {"fence": "1", "worker": "gpu-01/0", "kind": kind, "reason": reason or None, "message": message or None}
    attempt |= {"memory": "", "step": 3, "resumed_from": 0, "at": at, "started": at - 5000, "gpu": SMALL.label}
    told = {"id": new_job_id(at), "user": "ada", "state": ended, "finished": at, "reason": reason, "message": message}
    kept = parameters_to_keep(PLAIN) if parameters is None else parameters
    return {**told, "params": kept, "history": json.dumps([attempt])}


async def seed(redis: Redis, records: list[dict[str, Any]]) -> None:
    for start in range(0, len(records), 1000):
        pipeline = redis.pipeline(transaction=False)
        for one in records[start : start + 1000]:
            pipeline.hset(keys.job(one["id"]), mapping=one)
            pipeline.zadd(keys.DONE, {one["id"]: one["finished"]})
        await pipeline.execute()


async def test_a_record_has_the_fields_that_the_scripts_write(queue: Queue, redis: Redis) -> None:
    """Else the floods below would be of something else."""
    claim = await begin(queue, PLAIN, SMALL)
    await queue.fail(claim, FailKind.PERMANENT, "UNKNOWN", "x")
    real = await redis.hgetall(keys.job(claim.job_id))
    made = record("x")
    assert made.keys() <= real.keys()
    (attempt,), (made_attempt,) = json.loads(real["history"]), json.loads(made["history"])
    assert attempt.keys() == made_attempt.keys()


def hostile(count: int) -> list[dict[str, Any]]:
    """All different: messages of 500 characters with control characters and markup, and parameters."""
    chance = random.Random(7)
    letters = string.ascii_letters + " <b>[red]{}\x00\x1b[31m\u202e\n\"'\\"
    pool = ["".join(chance.choices(letters, k=120)) for _ in range(500)]

    def asked() -> str:
        sizes = {name: 8 * chance.randrange(8, 128) for name in ("width", "height")}
        more = {"cfg_scale": chance.uniform(0, 30), "loras": [{"name": f"lora {chance.random()}"}]}
        return parameters_to_keep(
            {**sizes, **more, "frames": chance.randrange(1, 129), "steps": chance.randrange(1, 151)}
        )

    return [record(f"{n} {' '.join(chance.choices(pool, k=4))}"[:500], parameters=asked()) for n in range(count)]


def ordinary(count: int) -> list[dict[str, Any]]:
    """As a busy week may leave them: one of fifty has failed, and people ask for what they have asked for before."""
    chance = random.Random(8)
    presets = [
        parameters_to_keep({**PLAIN, "steps": steps, "width": width, "cfg_scale": cfg, "sampler": sampler})
        for steps in (10, 20, 30)
        for width in (256, 512, 768)
        for cfg in (5, 7.5, 9, 12)
        for sampler in ("DDIM", "LCM", "Euler a")
    ]
    ends = [("done", "")] * 98 + [
        ("dead", "CUDA error: device-side assert triggered"),
        ("dead", "shape 4 does not fit 5"),
    ]
    made = []
    for _ in range(count):
        ended, message = chance.choice(ends)
        made.append(record(message, parameters=chance.choice(presets), ended=ended, age_days=chance.uniform(0, 6.9)))
    return made


def memory_mib(pid: int, field: str) -> float:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


@pytest.mark.timeout(900)
@pytest.mark.parametrize("flood", [pytest.param(ordinary, marks=pytest.mark.long), hostile])
async def test_a_hundred_thousand_jobs_stay_bounded(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, flood: Callable[[int], list[dict[str, Any]]]
) -> None:
    """The api goes on answering meanwhile, and Redis is not held up."""
    await seed(redis, flood(100_000))
    await redis.config_resetstat()
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with running_api(tmp_path, where) as url, client_of(url, "root") as client:
        pid = int((tmp_path / "api.pid").read_text())
        before = memory_mib(pid, "VmRSS")
        quiet = await latencies(client, None)
        began = time.monotonic()
        asking = asyncio.create_task(client.get(ERRORS, timeout=60))
        busy = await latencies(client, asking)
        answer, seconds = await asking, time.monotonic() - began
        grown = memory_mib(pid, "VmHWM") - before
    assert answer.status_code == 200, answer.text
    told = answer.json()
    looked, stats = told["looked_at"], (await redis.info("commandstats"))["cmdstat_evalsha"]
    print(
        f"\n{flood.__name__}: {looked['jobs']} jobs in {seconds:.1f} s ({looked['limit'] or 'all'}), "
        f"{grown:.0f} MiB more at the most; answer of {len(answer.content)} bytes\n"
        f"another request meanwhile: {shown(busy)} ms; before: {shown(quiet)} ms (half, 95 %, all)\n"
        f"Redis: {stats['usec'] / 1e6:.1f} s in {stats['calls']} scripts, {stats['usec_per_call'] / 1000:.2f} ms each"
    )
    assert looked["jobs"] == 100_000 or f"newest {looked['jobs']} jobs" in looked["limit"]
    assert looked["jobs"] > 5_000
    assert len(told["kinds"]) <= 50
    assert len(answer.content) < 200_000
    assert all((one["title"] + one["example_message"] + one["where"]).isprintable() for one in told["kinds"])
    assert not any(one["findings"] for one in told["kinds"])
    assert grown < 200
    assert statistics.quantiles(busy, n=20)[-1] < 1.0, "another request's 95th percentile, in seconds"


async def test_an_api_that_is_stopped_does_not_end_its_study_first(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    await seed(redis, hostile(30_000))
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with running_api(tmp_path, where) as url, client_of(url, "root") as client:
        asking = asyncio.create_task(client.get(ERRORS, timeout=60))
        await asyncio.sleep(1.0)
        assert not asking.done()
        asking.cancel()
        stopped = time.monotonic()  # and asserted to end with 0 in time
    print(f"\nended {time.monotonic() - stopped:.1f} s after it was asked to")


async def latencies(client: httpx.AsyncClient, during: asyncio.Task[Any] | None) -> list[float]:
    """Of reading a job's list while `during` runs, or fifty times."""
    took: list[float] = []
    while not during.done() if during else len(took) < 50:
        began = time.monotonic()
        assert (await client.get("/api/v1/jobs", params={"limit": 1}, timeout=30)).status_code == 200
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.02)
    return took


def shown(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return " / ".join(f"{1000 * ordered[round(share * (len(ordered) - 1))]:.0f}" for share in (0.5, 0.95, 1))


# --- one job's life --------------------------------------------------------------------------------------------------


async def test_a_jobs_whole_life_is_told(api: httpx.AsyncClient, queue: Queue) -> None:
    about = {"boot_id": "b", "state": "idle", "engine": "synthetic", "fingerprint": "f", "synthetic": "1"}
    claim = await begin(queue, PLAIN, SMALL, "gpu-01/0")
    for worker in ("gpu-01/0", "gpu-09/9"):
        await queue.register(worker, **about)
    await queue.fail(claim, FailKind.CRASH, "GPU_LOST", "fell off the bus")
    again = await take(queue, "gpu-02/0")
    assert again.job_id == claim.job_id
    running = (await api.get(f"/api/v1/jobs/{claim.job_id}/trace")).json()
    assert (running["job"]["state"], running["missing"]) == ("running", [])
    await queue.commit(again, NO_FILES)
    told = (await api.get(f"/api/v1/jobs/{claim.job_id}/trace")).json()
    assert told["parameters"]["context_batch_size"] == 16
    about_it = [(event["type"], event["worker"], event["job"]) for event in told["cluster_events"]]
    assert about_it == [
        ("worker_up", "gpu-01/0", None),
        ("failure", "gpu-01/0", claim.job_id),
        ("done", "gpu-02/0", claim.job_id),
    ]
    assert [event["kind"] for event in told["events"]] == ["queued", "running", "progress", "queued", "running", "done"]
    assert told["job"]["attempts"]["history"][0]["gpu"] == SMALL.label
    assert told["missing"] == []


async def test_what_is_not_kept_any_more_is_said(api: httpx.AsyncClient, queue: Queue, redis: Redis) -> None:
    claim = await begin(queue, PLAIN, SMALL)
    await queue.commit(claim, NO_FILES)
    await redis.delete(keys.job_events(claim.job_id))
    await redis.hset(keys.job(claim.job_id), mapping={"created": 1000, "attempts": 25})
    pipeline = redis.pipeline(transaction=False)
    for _ in range(5000):
        pipeline.xadd(keys.EVENTS, {"type": "worker_up", "worker": "w/0"})
    await pipeline.execute()
    told = (await api.get(f"/api/v1/jobs/{claim.job_id}/trace")).json()
    own, cluster, attempts = told["missing"]
    assert own == "the job's own events: they are kept for an hour after its end"
    assert cluster == "some of the cluster's events: only the newest are kept"
    assert attempts == "24 of its 25 attempts: only the newest are kept"
