"""The plain reference that also writes down what this queue has to for every job, in plain pipelines.

Like the reference it decides nothing: no priorities, fairness, retries, budgets, idempotency, cancels or fencing. What
this costs is what their records cost, whoever writes them; what ours costs beyond (or below) that is its own doing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid

import harness
import uvloop
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

STREAM, GROUP, LINE, LEASE, STATS, TALLY = "rec:jobs", "g", "rec:ready", "rec:lease", "rec:stats", "rec:tally"
LEASE_MS, BEAT_SECONDS, BLOCK_MS = 3000, 0.75, 700
WORKER = f"rec:w:{harness.NAME}"


def connect() -> Redis:
    return Redis(host=harness.HOST, port=harness.PORT, password=harness.PASSWORD, decode_responses=True, protocol=2)


def now_ms() -> int:
    return round(time.time() * 1000)


def tell(pipeline: Pipeline, job: str, state: str, **more: object) -> None:
    pipeline.xadd(f"rec:jev:{job}", {"type": state, "data": json.dumps({"state": state, **more})})


async def submit(redis: Redis, text: str) -> None:
    job, now = str(uuid.uuid4()), now_ms()
    record = {"id": job, "user": "ada", "prio": "normal", "class": "default", "cost": 1000, "res": "", "score": now}
    pipeline = redis.pipeline(transaction=True)
    pipeline.hset(f"rec:job:{job}", mapping={**record, "created": now, "state": "queued"})
    pipeline.set(f"rec:body:{job}", text)
    pipeline.zadd("rec:all", {job: 0})
    pipeline.zadd("rec:user:ada", {job: 0})
    pipeline.zadd("rec:vft", {"ada": now + 1000})
    pipeline.zadd(LINE, {job: now})
    pipeline.hincrby(STATS, "submitted", 1)
    pipeline.xadd(STREAM, {"job": job})
    await pipeline.execute()


async def next_entry(redis: Redis) -> tuple[str, str] | None:
    read = await redis.xreadgroup(GROUP, harness.NAME, {STREAM: ">"}, count=1, block=BLOCK_MS)
    entries = read[0][1] if read else (await redis.xautoclaim(STREAM, GROUP, harness.NAME, LEASE_MS, "0", count=1))[1]
    return (entries[0][0], entries[0][1]["job"]) if entries else None


async def begin(redis: Redis, entry: str, job: str) -> str:
    now = now_ms()
    lease = {"nonce": uuid.uuid4().hex, "fence": now, "entry": entry, "started": now, "attempts": 1, "gpu": ""}
    pipeline = redis.pipeline(transaction=True)
    pipeline.zrem(LINE, job)
    pipeline.zadd(LEASE, {job: now + LEASE_MS})
    pipeline.hset(f"rec:job:{job}", mapping={"state": "running", "owner": harness.NAME, **lease})
    pipeline.hset(WORKER, "job", job)
    tell(pipeline, job, "queued")
    tell(pipeline, job, "running", worker=harness.NAME, fence=now)
    pipeline.rpush(TALLY, f"wait\t{harness.NAME}\t\t1")
    pipeline.get(f"rec:body:{job}")
    return str((await pipeline.execute())[-1])


async def beat(redis: Redis, entry: str, job: str) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        await redis.xclaim(STREAM, GROUP, harness.NAME, 0, [entry], justid=True)
        await redis.zadd(LEASE, {job: now_ms() + LEASE_MS})


async def end(redis: Redis, entry: str, job: str) -> None:
    now = now_ms()
    attempt = {"fence": now, "worker": harness.NAME, "kind": "done", "step": 0, "at": now, "started": now}
    texts = {"reason": "", "message": "", "result": '{"fence": 1, "files": []}', "history": json.dumps([attempt])}
    pipeline = redis.pipeline(transaction=True)
    pipeline.xack(STREAM, GROUP, entry)
    pipeline.xdel(STREAM, entry)
    pipeline.zrem(LEASE, job)
    pipeline.hset(WORKER, mapping={"job": "", "done_at": now, "fails": "", "done": 1, "pace": "0.1"})
    pipeline.hset(STATS, mapping={"average_run_ms": 1, "average_ratio": "0.1"})
    pipeline.hincrby(STATS, "done", 1)
    pipeline.rpush(TALLY, f"done\t{harness.NAME}\t\t1\t1\t\t")
    pipeline.hset(f"rec:job:{job}", mapping={"state": "done", "finished": now, **texts})
    pipeline.zadd("rec:done", {job: now})
    pipeline.expire(f"rec:body:{job}", 3600)
    tell(pipeline, job, "done", worker=harness.NAME, fence=now)
    pipeline.expire(f"rec:jev:{job}", 3600)
    pipeline.xadd("rec:ev", {"type": "done", "job": job, "worker": harness.NAME}, maxlen=5000, approximate=True)
    await pipeline.execute()


async def work(redis: Redis) -> None:
    while True:
        found = await next_entry(redis)
        if found is None:
            continue
        text = await begin(redis, *found)
        beating = asyncio.create_task(beat(redis, *found))
        await harness.run_job(text)
        beating.cancel()
        await end(redis, *found)


async def main() -> None:
    redis = connect()
    await redis.ping()
    if sys.argv[1] == "prepare":
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    elif sys.argv[1] == "submit":
        await harness.submit_all(lambda text: submit(redis, text))
    else:
        await work(redis)


uvloop.run(main())
