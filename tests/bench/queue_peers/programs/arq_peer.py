"""arq: one job at a time. Its poll of 0.5 s would make that two jobs a second: it gets 0.01 s.

Tuned is a shorter job timeout, which is what bounds the lock of a job whose worker is gone: a longer job is ended.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import harness
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

settings = RedisSettings(host=harness.HOST, port=harness.PORT, database=harness.DATABASE, password=harness.PASSWORD)


async def job(_context: dict[str, object], text: str) -> None:
    await harness.run_job(text)


async def submit_all() -> None:
    pool = await create_pool(settings)
    await harness.submit_all(lambda text: pool.enqueue_job("job", text))


logging.getLogger("arq").setLevel(logging.WARNING)
if sys.argv[1] == "submit":
    asyncio.run(submit_all())
else:
    asyncio.set_event_loop(asyncio.new_event_loop())
    Worker([job], redis_settings=settings, max_jobs=1, poll_delay=0.01, job_timeout=3 if harness.TUNED else 300).run()
