"""What happened to jobs, asked for by all who follow one together."""

from __future__ import annotations

import asyncio
import json
from typing import cast

from redis.asyncio import Redis

from appliance import keys
from appliance.queue.types import StreamEvent
from appliance.redis_link import RedisLink

StreamEntries = list[tuple[str, dict[str, str]]]
Question = tuple[str, str, int]
"""A job's id, the id of the last event that is known, and how many more may come."""


class EventReader:
    """Each follower asks four times a second. On their own some thousand of them would hold every place the link has,
    with submissions and readiness in line behind them; together they take one, and one question to the Sentinels."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._turn = asyncio.Lock()
        self._questions: list[Question] = []
        self._answers: asyncio.Task[list[StreamEntries]]

    async def after(self, job_id: str, last_id: str, limit: int) -> list[StreamEvent]:
        """With the round that begins next. Raises what `RedisLink.run` raises; `last_id` must be one Redis takes, since
        an error is everybody's."""
        number = len(self._questions)
        self._questions.append((job_id, last_id, limit))
        if number == 0:
            self._answers = asyncio.create_task(self._ask(self._questions), name="read events")
            self._answers.add_done_callback(_hear)
        # Shielded: who leaves must not take the others' answers with him.
        entries = (await asyncio.shield(self._answers))[number]
        return [StreamEvent(entry_id, values["type"], json.loads(values["data"])) for entry_id, values in entries]

    async def _ask(self, questions: list[Question]) -> list[StreamEntries]:
        async def read(client: Redis) -> list[StreamEntries]:
            pipeline = client.pipeline(transaction=False)
            for job_id, last_id, limit in questions:
                pipeline.xrange(keys.job_events(job_id), f"({last_id}", "+", limit)
            answers = cast("list[StreamEntries]", await pipeline.execute())
            await self._link.confirm(client)
            return answers

        # However many ask while Redis does not answer, they wait for one try and their own.
        async with self._turn:
            self._questions = []
            return await self._link.run(read)


def _hear(task: asyncio.Task[list[StreamEntries]]) -> None:
    if not task.cancelled():
        task.exception()  # all who asked may have gone
