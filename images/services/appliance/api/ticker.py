"""The housekeeping every api replica does beside its requests, and the newest queue counts for estimates."""

from __future__ import annotations

import asyncio
import logging
import time

from appliance.errors import QueueError
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_outcomes
from appliance.queue import Queue
from appliance.queue.types import QueueStats, RepairReport

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5
REPAIR_REST_SECONDS = 5.0  # between two passes over all records, of which each replica makes its own
REPAIR_PASS_LIMIT = 2000  # slices of one whole pass: a bound against a cursor that never ends


class Ticker:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._condition = OnceUntilChanged(log)
        self.stats: QueueStats | None = None
        self._cursor = ""
        self._pass_ended: float | None = None

    async def run(self) -> None:
        while True:
            await self.tick_once()
            await asyncio.sleep(TICK_SECONDS)

    async def tick_once(self) -> None:
        try:
            report = await self._queue.tick()
            self.stats = await self._queue.stats()
            await log_outcomes(self._queue, report.outcomes)
            if report.grace:
                log.warning("Redis restarted or stood still: leases got their grace", extra=fields(event="epoch"))
                await self._repair_all()
            else:
                await self._repair_slice()
        except QueueError as error:
            self.stats = None
            self._condition.failing(f"queue housekeeping fails: {error}", event="queue_unavailable")
            return
        except Exception:
            # A bug here must not end the reaping of lost jobs for the life of the process.
            log.exception("queue housekeeping failed")
            return
        self._condition.fine("queue housekeeping works again", event="queue_available")

    async def _repair_all(self) -> None:
        """A failover may have cut a script's writes from their records: look at all of them at once."""
        self._cursor = ""
        for _ in range(REPAIR_PASS_LIMIT):
            await self._repair_one()
            if self._cursor == "":
                return

    async def _repair_slice(self) -> None:
        rested = self._pass_ended is None or time.monotonic() - self._pass_ended >= REPAIR_REST_SECONDS
        if self._cursor or rested:
            await self._repair_one()

    async def _repair_one(self) -> None:
        self._cursor, report = await self._queue.repair(self._cursor)
        if self._cursor == "":
            self._pass_ended = time.monotonic()
        if report.repaired:
            log.warning("records of the queue repaired: %s", _counts(report), extra=fields(event="repaired"))


def _counts(report: RepairReport) -> str:
    return ", ".join(f"{name} {count}" for name, count in vars(report).items() if count and name != "checked")
