"""What an exporter reads of its own host in Redis, and what it writes there for the scripts that count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from appliance import keys
from appliance.queue.counts import USUAL_SIZES, whole_numbers
from appliance.redis_link import RedisLink

COUNTS_DAYS = 30


@dataclass(frozen=True)
class Line:
    """Of the plain jobs, or of all that need special workers."""

    waiting: int
    running: int
    oldest_seconds: float


@dataclass(frozen=True)
class HostFigures:
    """`heartbeats`: worker → Unix seconds by the Redis server's clock, 0 for one never seen. `processes` are texts of
    `ProcessFigures`; `view`: what the host's own controller thinks of the nodes."""

    counts: Mapping[str, int]
    heartbeats: Mapping[str, float]
    processes: Mapping[str, str]
    view: Mapping[str, Any] | None


class FigureBook:
    def __init__(self, link: RedisLink, host: str) -> None:
        self._link = link
        self._host = host

    async def read(self, workers: Sequence[str]) -> HostFigures:
        async def read(client: Redis) -> HostFigures:
            pipeline = client.pipeline(transaction=False)
            pipeline.hgetall(keys.counts(self._host))
            pipeline.hgetall(keys.processes(self._host))
            pipeline.get(keys.view(self._host))
            for worker in workers:
                pipeline.hget(keys.worker(worker), "seen")
            counts, processes, view, *seen = await pipeline.execute()
            heartbeats = {worker: int(moment or 0) / 1000 for worker, moment in zip(workers, seen, strict=True)}
            return HostFigures(whole_numbers(counts), heartbeats, processes, _parsed(view))

        return await self._link.run(read)

    async def put_rates(self, rates: Mapping[str, str]) -> None:
        """Worker → `<USD per hour> <GPU model>`, by which its attempts are counted. The usual resolutions get their
        places, and the host's counts another `COUNTS_DAYS`."""

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            if rates:
                pipeline.hset(keys.RATES, mapping=cast("Mapping[Any, Any]", rates))
            pipeline.sadd(keys.labels("size"), *USUAL_SIZES)
            pipeline.expire(keys.counts(self._host), COUNTS_DAYS * 86400)
            await pipeline.execute()

        await self._link.run(write)


def _parsed(text: str | None) -> Mapping[str, Any] | None:
    try:
        view = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return view if isinstance(view, dict) else None
