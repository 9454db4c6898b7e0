"""This queue, by its own client and with its shipped settings; the worker's loop is the agent's without a webui."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import harness
import uvloop

from appliance.errors import QueueError
from appliance.job import Priority, new_job_id
from appliance.queue import Asker, Claim, Nothing, Queue, Submission, Taker
from appliance.redis_link import RedisLink
from appliance.settings import Address, QueueSettings, RedisSettings, Secret

T = TypeVar("T")
RETRY_SECONDS = 0.25
BOOT_ID = uuid.uuid4().hex


def connect() -> Queue:
    redis = RedisSettings(Address(harness.HOST, harness.PORT), (), "queue", "default", Secret(harness.PASSWORD), 0)
    return Queue(RedisLink(redis), QueueSettings(queue_limit=1_000_000))


async def submit(queue: Queue, text: str) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    answer = await queue.submit(Submission(new_job_id(), "ada", text, digest, Priority.NORMAL, 1000))
    if answer.status != "ok":
        raise SystemExit(f"submit: {answer}")


async def keep_registered(queue: Queue) -> None:
    while True:
        with contextlib.suppress(QueueError):
            await queue.register(
                harness.NAME, boot_id=BOOT_ID, state="idle", engine="bench", fingerprint="", synthetic="1"
            )
        await asyncio.sleep(queue.settings.beat_seconds)


async def keep_lease(queue: Queue, claim: Claim) -> None:
    while True:
        await asyncio.sleep(queue.settings.beat_seconds)
        with contextlib.suppress(QueueError):
            await queue.beat(claim, 1, 20, "step")


async def ask(question: Callable[[], Awaitable[T]]) -> T:
    """Until there is an answer, with the same nonce: as the agent does."""
    while True:
        try:
            return await question()
        except QueueError:
            await asyncio.sleep(RETRY_SECONDS)


async def work(queue: Queue) -> None:
    registering = asyncio.create_task(keep_registered(queue))
    taker, asker = Taker(queue), Asker(harness.NAME, BOOT_ID)
    answer: Claim | Nothing | None = None
    while not registering.done():
        if not isinstance(answer, Claim):
            answer = await ask(lambda: taker.take(asker))
            continue
        beating = asyncio.create_task(keep_lease(queue, answer))
        await harness.run_job(answer.body)
        beating.cancel()
        result = json.dumps({"fence": answer.fence, "files": []})
        _, answer = await ask(lambda claim=answer, result=result: taker.commit(claim, result, asker))
    registering.result()


async def main() -> None:
    queue = connect()
    await queue.connect()
    if sys.argv[1] == "submit":
        await harness.submit_all(lambda text: submit(queue, text))
    else:
        await work(queue)


uvloop.run(main())
