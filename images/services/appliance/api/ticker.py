"""The housekeeping every api replica does beside its requests, and the newest queue counts for estimates."""

from __future__ import annotations

import asyncio
import logging

from appliance.errors import QueueError
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_outcomes
from appliance.queue import Queue
from appliance.queue.types import QueueStats

log = logging.getLogger(__name__)
TICK_SECONDS = 0.5


class Ticker:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._condition = OnceUntilChanged(log)
        self.stats: QueueStats | None = None

    async def run(self) -> None:
        while True:
            await self.tick_once()
            await asyncio.sleep(TICK_SECONDS)

    async def tick_once(self) -> None:
        try:
            report = await self._queue.tick()
            self.stats = await self._queue.stats()
            await log_outcomes(self._queue, report.outcomes)
        except QueueError as error:
            self.stats = None
            self._condition.failing(f"queue housekeeping fails: {error}", event="queue_unavailable")
            return
        except Exception:
            # A bug here must not end the reaping of lost jobs for the life of the process.
            log.exception("queue housekeeping failed")
            return
        self._condition.fine("queue housekeeping works again", event="queue_available")
        if report.grace:
            log.warning("Redis restarted or stood still: leases got their grace", extra=fields(event="epoch"))
