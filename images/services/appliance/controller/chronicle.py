"""Tells the cluster what this controller has decided: events and its view of the nodes, in Redis. The gateway never
waits for it, and what Redis could not be told is told later, or, were it too much, in the log alone."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from async_timeout import timeout

from appliance.controller.policy import Standing
from appliance.errors import QueueError
from appliance.logs import OnceUntilChanged
from appliance.queue.nodes import NodeBook

log = logging.getLogger(__name__)
PUT_SECONDS = 2.0
MOST_WAITING = 1000


class Chronicle:
    def __init__(self, book: NodeBook, gateway: str) -> None:
        self._book = book
        self._gateway = gateway
        self._events: deque[Mapping[str, str]] = deque(maxlen=MOST_WAITING)
        self._news = asyncio.Event()
        self._trouble = OnceUntilChanged(log)

    def tell(self, standing: Standing) -> None:
        target, kind = standing.node.target, f"node_{standing.state.value.lower()}"
        self._events.append({"type": kind, "worker": target.name, "reason": standing.reason, "by": self._gateway})
        self._news.set()

    async def run(self, view: Callable[[], Mapping[str, Any]]) -> None:
        while True:
            self._news.clear()
            try:
                await self._write(view())
            except QueueError as error:
                self._trouble.failing(f"Redis cannot be told: {error}", event="chronicle_failed")
                await asyncio.sleep(PUT_SECONDS)
                continue
            self._trouble.fine("Redis can be told again", event="chronicle_works")
            try:
                async with timeout(PUT_SECONDS):
                    await self._news.wait()
            except asyncio.TimeoutError:
                continue

    async def _write(self, view: Mapping[str, Any]) -> None:
        events = list(self._events)
        self._events.clear()
        try:
            await self._book.tell(events)
        except QueueError:
            room = MOST_WAITING - len(self._events)
            self._events.extendleft(reversed(events[-room:] if room else []))
            raise
        await self._book.put_view(self._gateway, view)
