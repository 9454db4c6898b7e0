"""What Redis knows of the nodes, kept at hand: a decision must never wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from appliance.controller.judgement import NOTHING_KNOWN, Known, Worker
from appliance.errors import QueueError
from appliance.logs import OnceUntilChanged, fields
from appliance.queue.nodes import Look, NodeBook
from appliance.queue.orders import Order, OrderKind
from appliance.queue.types import WorkerRecord

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class _Heart:
    """The newest beat and when we first saw it: clocks of other machines say nothing."""

    boot_id: str
    seq: int
    since: float


class Facts:
    """`known` is what Redis said last. While it cannot be asked nothing changes and nobody grows silent."""

    def __init__(self, book: NodeBook) -> None:
        self.known: Known = NOTHING_KNOWN
        self._book = book
        self._hearts: dict[str, _Heart] = {}
        self._server_ahead = 0.0
        self._is_blind = False
        self._trouble = OnceUntilChanged(log)

    @property
    def server_now(self) -> float:
        """Unix seconds by the Redis server's clock, as far as the last look tells."""
        return time.monotonic() + self._server_ahead

    def remember(self, orders: Mapping[str, Order]) -> None:
        """From before this process: they hold until Redis tells others, also those that end by themselves, as all does
        while it cannot be asked. Its absence must not take a node back in."""
        self.known = replace(self.known, orders=orders)

    async def run(self) -> None:
        while True:
            try:
                look = await self._book.look()
            except QueueError as error:
                self._is_blind = True
                self._trouble.failing(f"Redis cannot be asked about the nodes: {error}", event="facts_frozen")
            else:
                self._trouble.fine("Redis tells about the nodes again", event="facts_fresh")
                self.take(look, time.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    def take(self, look: Look, now: float) -> None:
        self._server_ahead = look.now - now
        self._hearts = {record.name: self._heart_of(record, now) for record in look.workers}
        self._is_blind = False
        workers = {record.name: self._worker(record, now) for record in look.workers}
        self.known = Known(workers=workers, orders=look.orders)

    def _heart_of(self, record: WorkerRecord, now: float) -> _Heart:
        heart = self._hearts.get(record.name)
        if heart is None or self._is_blind or (heart.boot_id, heart.seq) != (record.boot_id, record.seq):
            return _Heart(record.boot_id, record.seq, now)
        return heart

    def _worker(self, record: WorkerRecord, now: float) -> Worker:
        return Worker(
            silent_seconds=now - self._hearts[record.name].since,
            failed_at=record.failed_at,
            failure=record.failure,
            done_at=record.done_at,
        )

    async def quarantine(self, due: Mapping[str, str], by: str, seconds: float) -> None:
        """Order it for these nodes, each with its reason; what an operator has ordered meanwhile stays."""
        at = self.server_now
        orders = {name: Order(OrderKind.QUARANTINE, by, at, reason, until=at + seconds) for name, reason in due.items()}
        for name, reason in due.items():
            log.warning(
                "quarantine of %s: %s", name, reason, extra=fields(event="quarantine", peer=name, reason=reason)
            )
        try:
            await self._book.put_orders(orders, only_new=True)
        except QueueError as error:
            log.error("the quarantine could not be ordered: %s", error, extra=fields(event="quarantine_failed"))
