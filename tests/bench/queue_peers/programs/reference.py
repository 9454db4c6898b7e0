"""The plain reference: what a Redis Streams consumer group does by itself, with a hash per job and a heartbeat.

No priorities, fairness, retries, budgets, idempotency, cancels, events, deadlines or fencing.
"""

from __future__ import annotations

import asyncio
import sys
import uuid

import harness
import uvloop
from redis.asyncio import Redis

STREAM, GROUP = "ref:jobs", "g"
LEASE_MS, BEAT_SECONDS, BLOCK_MS = 3000, 0.75, 700


def connect() -> Redis:
    return Redis(host=harness.HOST, port=harness.PORT, password=harness.PASSWORD, decode_responses=True, protocol=2)


async def submit(redis: Redis, text: str) -> None:
    job = str(uuid.uuid4())
    pipeline = redis.pipeline(transaction=True)
    pipeline.hset(f"ref:job:{job}", mapping={"state": "queued", "body": text})
    pipeline.xadd(STREAM, {"job": job})
    await pipeline.execute()


async def next_entry(redis: Redis) -> tuple[str, dict[str, str]] | None:
    read = await redis.xreadgroup(GROUP, harness.NAME, {STREAM: ">"}, count=1, block=BLOCK_MS)
    if read:
        return read[0][1][0]
    claimed = await redis.xautoclaim(STREAM, GROUP, harness.NAME, LEASE_MS, "0", count=1)
    return claimed[1][0] if claimed[1] else None


async def beat(redis: Redis, entry: str) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        await redis.xclaim(STREAM, GROUP, harness.NAME, 0, [entry], justid=True)


async def work(redis: Redis) -> None:
    while True:
        found = await next_entry(redis)
        if found is None:
            continue
        entry, fields = found
        key = f"ref:job:{fields['job']}"
        pipeline = redis.pipeline(transaction=False)
        pipeline.hset(key, mapping={"state": "running", "owner": harness.NAME})
        pipeline.hget(key, "body")
        _, text = await pipeline.execute()
        beating = asyncio.create_task(beat(redis, entry))
        await harness.run_job(text)
        beating.cancel()
        pipeline = redis.pipeline(transaction=True)
        pipeline.hset(key, "state", "done")
        pipeline.xack(STREAM, GROUP, entry)
        pipeline.xdel(STREAM, entry)
        await pipeline.execute()


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
