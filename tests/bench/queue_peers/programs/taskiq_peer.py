"""taskiq with the Redis Streams broker (the one that acknowledges). Workers are `taskiq worker taskiq_peer:broker`.

Tuned is a shorter idle time. Nothing renews it: any job longer than that is run twice.
"""

from __future__ import annotations

import asyncio

import harness
from taskiq_redis import RedisStreamBroker

more = {"idle_timeout": 3000, "unacknowledged_lock_timeout": 3, "xread_block": 500} if harness.TUNED else {}
broker = RedisStreamBroker(url=harness.URL, consumer_id="0", xread_count=1, **more)


@broker.task(task_name="job")
async def job(text: str) -> None:
    await harness.run_job(text)


async def main() -> None:
    await broker.startup()
    await harness.submit_all(job.kiq)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
