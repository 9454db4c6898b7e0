"""streaq: one task at a time; tuned is a shorter idle time (which its workers renew)."""

from __future__ import annotations

import asyncio
import sys

import harness
from streaq import Worker

worker = Worker(redis_url=harness.URL, concurrency=1, prefetch=1, idle_timeout=3 if harness.TUNED else 60)


@worker.task(silent=True)
async def job(text: str) -> None:
    await harness.run_job(text)


async def submit(text: str) -> None:
    await job.enqueue(text)


async def main() -> None:
    async with worker:
        await harness.submit_all(submit)


if sys.argv[1] == "submit":
    asyncio.run(main())
else:
    worker.run_sync()
