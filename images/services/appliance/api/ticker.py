"""The housekeeping every api replica does beside its requests, and the newest queue counts for estimates."""

from __future__ import annotations

import asyncio
import logging
import time

from appliance.errors import QueueError
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_outcomes
from appliance.queue import Queue
from appliance.queue.types import QueueStats, RepairReport, TickReport

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5
REPAIR_REST_SECONDS = 5.0  # between two passes over all records, of which each replica makes its own


class Ticker:
    def __init__(self, queue: Queue, host: str = "") -> None:
        self._queue = queue
        self._host = host
        self._condition = OnceUntilChanged(log)
        self.stats: QueueStats | None = None
        self._cursor = ""
        self._pass_ended: float | None = None
        self._since: int | None = None
        self._in_haste = False

    async def run(self) -> None:
        while True:
            await self.tick_once()
            await asyncio.sleep(TICK_SECONDS)

    async def tick_once(self) -> None:
        try:
            report = await self._queue.tick(self._host)
            await log_outcomes(self._queue, report.outcomes)
            self.stats = await self._queue.stats()
            await self._repair(in_haste=self._was_away(report))
        except QueueError as error:
            self.stats = None
            self._condition.failing(f"queue housekeeping fails: {error}", event="queue_unavailable")
            return
        except Exception:
            # A bug here must not end the reaping of lost jobs for the life of the process.
            log.exception("queue housekeeping failed")
            return
        self._condition.fine("queue housekeeping works again", event="queue_available")

    def _was_away(self, report: TickReport) -> bool:
        """Whether Redis was, since the last look; a heartbeat or another replica may have been the first to notice."""
        before, self._since = self._since, report.since
        if not report.grace and before in (None, report.since):
            return False
        log.warning("Redis restarted or stood still: leases got their grace", extra=fields(event="epoch"))
        return True

    async def _repair(self, *, in_haste: bool) -> None:
        """One slice. After a failover, which may have cut a script's writes from their records, a whole pass: as much
        of it at a time as lets the ticks go on."""
        if in_haste:
            self._cursor, self._in_haste = "", True
        rested = self._pass_ended is None or time.monotonic() - self._pass_ended >= REPAIR_REST_SECONDS
        if not (self._cursor or self._in_haste or rested):
            return
        until = time.monotonic() + TICK_SECONDS
        await self._repair_one()
        while self._in_haste and time.monotonic() < until:
            await self._repair_one()

    async def _repair_one(self) -> None:
        self._cursor, report = await self._queue.repair(self._cursor)
        if self._cursor == "":
            self._pass_ended = time.monotonic()
            self._in_haste = False
        if report.repaired:
            log.warning("records of the queue repaired: %s", _counts(report), extra=fields(event="repaired"))


def _counts(report: RepairReport) -> str:
    return ", ".join(f"{name} {count}" for name, count in vars(report).items() if count and name != "checked")
