"""Whether jobs can be taken now. Says so at once, whatever Redis does: an api that keeps a probe waiting looks dead."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from appliance.errors import QueueError
from appliance.lifecycle import cancel_tasks, start_task
from appliance.queue import Queue

ANSWER_SECONDS: Final = 0.1
"""Half of what the most impatient controller waits for (`GatewayPlan.probe_timeout_seconds`)."""
RECENT_SECONDS: Final = 1.0
"""A write that takes longer says nothing as long as the last one is not older."""


class Readiness:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._trying: asyncio.Task[None] | None = None
        self._written_at = float("-inf")

    async def problem(self) -> str | None:
        """Why not; None where a job could be taken."""
        if self._trying is None or self._trying.done():
            self._trying = start_task("readiness", self._write())
            self._trying.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may ask again
        # Whoever asks next goes on waiting for the same try: its own deadlines end it, and tell the link what it met.
        await asyncio.wait({self._trying}, timeout=ANSWER_SECONDS)
        if not self._trying.done():
            return None if time.monotonic() - self._written_at < RECENT_SECONDS else "Redis does not answer"
        try:
            await self._trying
        except QueueError:
            return "Redis is not writable"
        return None

    async def close(self) -> None:
        if self._trying is not None:
            await cancel_tasks(self._trying)

    async def _write(self) -> None:
        await self._queue.check_writable()
        self._written_at = time.monotonic()
