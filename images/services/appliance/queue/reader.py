"""What can be read from the queue without a script."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from redis.asyncio import Redis

from appliance import keys
from appliance.job import DEFAULT_CLASS, JobState
from appliance.queue.events import EventReader, StreamEntries
from appliance.queue.hints import follow_hints
from appliance.queue.types import JobRecord, StreamEvent, WorkerRecord
from appliance.redis_link import RedisLink

NOTES_SECONDS = 7 * 86400
MOST_EVENTS = 5000
"""Of the cluster's, about: the scripts and `NodeBook.tell` let go of older ones."""


class Reader:
    """What users are told about jobs is confirmed by the Sentinels: a master that is being left behind would show ends,
    a cancelled job for one, that never come true."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._events = EventReader(link)

    async def get(self, job_id: str) -> JobRecord | None:
        return (await self.get_many([job_id]))[0]

    async def get_many(self, job_ids: list[str]) -> list[JobRecord | None]:
        """A waiting job's position is that among the jobs which the same workers can run."""

        async def read(client: Redis) -> list[JobRecord | None]:
            pipeline = client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hgetall(keys.job(job_id))
                pipeline.zrank(keys.ready(DEFAULT_CLASS), job_id)
            answers: list[Any] = await pipeline.execute()
            rows, ranks = answers[::2], answers[1::2]
            special = [index for index, row in enumerate(rows) if _waits_in_a_special_line(row)]
            for index in special:
                pipeline.zrank(keys.ready(rows[index]["class"]), job_ids[index])
            for index, rank in zip(special, await pipeline.execute() if special else [], strict=True):
                ranks[index] = rank
            await self._link.confirm(client)
            return [
                JobRecord.parse(row, rank) if row.get("state") else None for row, rank in zip(rows, ranks, strict=True)
            ]

        return await self._link.run(read)

    async def list_ids(self, user: str | None, before: str | None, limit: int) -> list[str]:
        """Newest first: ids sort by time. `before` is the last id of the previous page."""
        key = keys.ALL_JOBS if user is None else keys.user_jobs(user)
        top = f"({before}" if before else "+"

        async def read(client: Redis) -> list[str]:
            ids = cast("list[str]", await client.zrevrangebylex(key, top, "-", start=0, num=limit))
            await self._link.confirm(client)
            return ids

        return await self._link.run(read)

    async def request_body(self, job_id: str) -> str | None:
        async def read(client: Redis) -> str | None:
            return cast("str | None", await client.get(keys.request(job_id)))

        return await self._link.run(read)

    async def preview(self, job_id: str) -> str | None:
        """The newest, a JPEG in base64."""

        async def read(client: Redis) -> str | None:
            return cast("str | None", await client.get(keys.preview(job_id)))

        return await self._link.run(read)

    async def events_after(self, job_id: str, last_id: str, limit: int = 200) -> list[StreamEvent]:
        return await self._events.after(job_id, last_id, limit)

    async def cluster_events(self, seconds: float, limit: int = 5000) -> list[dict[str, str]]:
        """Cluster events of the last `seconds`, oldest first, by the server's clock."""

        async def read(client: Redis) -> list[dict[str, str]]:
            now, _ = await client.time()
            start = str(int((now - seconds) * 1000))
            entries = cast("StreamEntries", await client.xrange(keys.EVENTS, start, "+", limit))
            return [{"id": entry_id, **values} for entry_id, values in entries]

        return await self._link.run(read)

    async def cluster_events_between(self, start: float, end: float) -> tuple[bool, list[dict[str, str]]]:
        """Oldest first, by Unix times of the server; False where some of that time are not kept any more."""

        async def read(client: Redis) -> tuple[bool, list[dict[str, str]]]:
            first = cast("StreamEntries", await client.xrange(keys.EVENTS, count=1))
            kept = await client.xlen(keys.EVENTS) < MOST_EVENTS or int(first[0][0].partition("-")[0]) / 1000 <= start
            times = (str(max(0, int(start * 1000))), str(int(end * 1000)))
            entries = cast("StreamEntries", await client.xrange(keys.EVENTS, *times, count=2 * MOST_EVENTS))
            return kept, [{"id": entry_id, **values} for entry_id, values in entries]

        return await self._link.run(read)

    async def workers(self) -> list[WorkerRecord]:
        async def read(client: Redis) -> list[WorkerRecord]:
            return (await read_workers(client))[1]

        return await self._link.run(read)

    async def notes(self, user: str) -> dict[str, str]:
        """What the api's replicas remember for this user together; small texts by name."""

        async def read(client: Redis) -> dict[str, str]:
            return cast("dict[str, str]", await client.hgetall(keys.notes(user)))

        return await self._link.run(read)

    async def put_note(self, user: str, name: str, text: str) -> None:
        """All of a user's notes go `NOTES_SECONDS` after the last one was put."""

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.hset(keys.notes(user), name, text)
            pipeline.expire(keys.notes(user), NOTES_SECONDS)
            await pipeline.execute()

        await self._link.run(write)

    async def drop_notes(self, user: str, *names: str) -> None:
        async def write(client: Redis) -> None:
            await client.hdel(keys.notes(user), *names)

        if names:
            await self._link.run(write)

    async def trash(self, count: int) -> list[str]:
        """Some of the jobs whose retention is over: storage has what is left of them."""

        async def read(client: Redis) -> list[str]:
            return cast("list[str]", await client.srandmember(keys.TRASH, count))

        return await self._link.run(read)

    async def untrash(self, job_ids: list[str]) -> None:
        async def write(client: Redis) -> None:
            await client.srem(keys.TRASH, *job_ids)

        if job_ids:
            await self._link.run(write)

    def cancel_hints(self) -> AsyncGenerator[str, None]:
        """Ids of running jobs whose users want them stopped, as it happens; endless, on a connection of its own.

        Only a hint: what was missed (an outage, a restart) is told by the next heartbeat all the same.
        """
        return follow_hints(self._link)


async def read_workers(client: Redis) -> tuple[float, list[WorkerRecord]]:
    """All that have ever registered, and the server's clock in Unix seconds."""
    now, microseconds = await client.time()
    names = cast("list[str]", await client.zrange(keys.WORKERS, 0, -1))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.hgetall(keys.worker(name))
    rows = await pipeline.execute() if names else []
    moment = now + microseconds / 1e6
    return moment, [WorkerRecord.parse(name, row, moment) for name, row in zip(names, rows, strict=True) if row]


def _waits_in_a_special_line(row: dict[str, str]) -> bool:
    return row.get("state") == JobState.QUEUED.value and row.get("class", DEFAULT_CLASS) != DEFAULT_CLASS
