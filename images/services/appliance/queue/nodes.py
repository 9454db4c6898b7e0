"""The cluster's nodes as Redis knows them: their workers, the orders about them, how each gateway sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueUnavailable
from appliance.queue.orders import Order
from appliance.queue.reader import read_workers
from appliance.queue.types import WorkerRecord
from appliance.redis_link import RedisLink

VIEW_SECONDS = 10
MOST_EVENTS = 5000
WAIT_MILLISECONDS = 500


@dataclass(frozen=True)
class Look:
    """`now` is the Redis server's clock in Unix seconds; orders whose time is over are left out."""

    now: float
    workers: tuple[WorkerRecord, ...]
    orders: Mapping[str, Order]


class NodeBook:
    def __init__(self, link: RedisLink, replicas: int = 0) -> None:
        self._link = link
        self._replicas = replicas

    async def look(self) -> Look:
        async def read(client: Redis) -> Look:
            now, workers = await read_workers(client)
            texts = cast("dict[str, str]", await client.hgetall(keys.ORDERS))
            parsed = {name: Order.parse(text) for name, text in texts.items()}
            orders = {name: order for name, order in parsed.items() if order and not order.is_over(now)}
            return Look(now, tuple(workers), orders)

        return await self._link.run(read)

    async def put_orders(self, orders: Mapping[str, Order], *, only_new: bool = False) -> None:
        """Answers only when the configured number of replicas has them too. `only_new`: where a
        node has an order already, that one stays."""

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            for name, order in orders.items():
                put = pipeline.hsetnx if only_new else pipeline.hset
                put(keys.ORDERS, name, order.to_json())
            await self._settle(pipeline)

        if orders:
            await self._link.run(write)

    async def drop_orders(self, names: Iterable[str]) -> None:
        """Its failures so far are forgotten with it: who takes a node back in means it."""
        wanted = list(names)

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.hdel(keys.ORDERS, *wanted)
            for name in wanted:
                pipeline.hdel(keys.worker(name), "fails", "fail_reason")
            await self._settle(pipeline)

        if wanted:
            await self._link.run(write)

    async def _settle(self, pipeline: Any) -> None:
        if self._replicas:
            pipeline.execute_command("WAIT", self._replicas, WAIT_MILLISECONDS)
        answers = await pipeline.execute()
        if self._replicas and int(answers[-1]) < self._replicas:
            raise QueueUnavailable(f"only {answers[-1]} of {self._replicas} replicas have the order")

    async def put_view(self, gateway: str, view: Mapping[str, Any]) -> None:
        """Gone after `VIEW_SECONDS` unless it is put again."""

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.set(keys.view(gateway), json.dumps(view), ex=VIEW_SECONDS)
            pipeline.sadd(keys.VIEWS, gateway)
            await pipeline.execute()

        await self._link.run(write)

    async def views(self) -> dict[str, Mapping[str, Any]]:
        """What each gateway's controller thinks now, by the gateway's name."""

        async def read(client: Redis) -> dict[str, Mapping[str, Any]]:
            gateways = sorted(cast("set[str]", await client.smembers(keys.VIEWS)))
            if not gateways:
                return {}
            texts = cast("list[str | None]", await client.mget([keys.view(gateway) for gateway in gateways]))
            gone = [gateway for gateway, text in zip(gateways, texts, strict=True) if text is None]
            if gone:  # one that is only late puts itself back
                await client.srem(keys.VIEWS, *gone)
            return {gateway: _parsed(text) for gateway, text in zip(gateways, texts, strict=True) if text is not None}

        return await self._link.run(read)

    async def tell(self, events: Iterable[Mapping[str, str]]) -> None:
        """Adds to the cluster's events, which are bounded."""
        entries = [dict(event) for event in events]

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            for entry in entries:
                pipeline.xadd(keys.EVENTS, cast("dict[Any, Any]", entry), maxlen=MOST_EVENTS, approximate=True)
            await pipeline.execute()

        if entries:
            await self._link.run(write)


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        view = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return view if isinstance(view, dict) else {}
