"""Answers for the api what failures have in common: one study at a time, in bounded time, without holding others up.

The texts are read from Redis in slices; all that takes long is done in a thread, a slice at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from appliance.causes.outcome import outcomes_of
from appliance.causes.report import Report, report_of
from appliance.causes.study import Budget, Study
from appliance.causes.suggest import knowledge
from appliance.errors import ApplianceError
from appliance.lifecycle import cancel_tasks, start_task
from appliance.queue import Queue
from appliance.queue.past import PastJob, PastLine

log = logging.getLogger(__name__)

MOST_JOBS: Final = 100_000
SLICE: Final = 200
READ_SECONDS: Final = 20.0
COMPARE_SECONDS: Final = 10.0
CACHE_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 40.0
LINES: Final[tuple[PastLine, ...]] = ("delayed", "ready", "lease", "done")
READY_LIMIT: Final = 5000
"""Of those that wait: what was tried before has its old place, at the head."""


class BusyError(ApplianceError):
    """The answer is not ready yet; it goes on being worked out."""


class Desk:
    def __init__(self, queue: Queue, stopping: asyncio.Event, most_jobs: int = MOST_JOBS) -> None:
        self._queue = queue
        self._stopping = stopping
        self._most_jobs = most_jobs
        self._one_at_a_time = asyncio.Lock()
        self._running: dict[int, asyncio.Task[Report]] = {}
        self._newest: tuple[int, float, Report] | None = None

    async def report(self, days: int) -> Report:
        """At most `CACHE_SECONDS` old. Raises BusyError, and QueueUnavailable while Redis is."""
        if self._newest is not None:
            known_days, known_at, known = self._newest
            if known_days == days and time.monotonic() - known_at < CACHE_SECONDS:
                return known
        task = self._running.get(days)
        if task is None:
            task = self._running[days] = start_task(f"causes of {days} days", self._study(days))
            task.add_done_callback(lambda ended: self._end(days, ended))
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)  # whoever leaves leaves it to the others
        if not done or task.cancelled():
            raise BusyError("the failures are still being compared; ask again in some seconds")
        return task.result()

    async def close(self) -> None:
        await cancel_tasks(*self._running.values())

    def _end(self, days: int, task: asyncio.Task[Report]) -> None:
        del self._running[days]
        if not task.cancelled() and (error := task.exception()) is not None:  # those who wait for it see it as well
            log.warning("the failures could not be compared: %s", error)

    async def _study(self, days: int) -> Report:
        async with self._one_at_a_time:
            began, now = time.monotonic(), time.time()
            study = Study(Budget(READ_SECONDS + COMPARE_SECONDS, self._stopping.is_set))
            limit = await self._read(study, now - days * 86400)
            report = await asyncio.to_thread(report_of, study, knowledge(), at=now, days=days, limit=limit)
            self._newest = days, time.monotonic(), report
            log.info("%d attempts compared in %.1f s", study.attempts, time.monotonic() - began)
            return report

    async def _read(self, study: Study, since: float) -> str | None:
        """Jobs that are being tried again first, then the finished ones from the newest on. Answers what ended it
        before all that ended at `since` or later was read."""
        budget, read = Budget(READ_SECONDS, self._stopping.is_set), 0
        unfinished = set[str]()  # such a job may be in the next line as well by then
        for line in LINES:
            first, before, size = 0, set[str](), SLICE
            while size == SLICE and not (line == "ready" and first >= READY_LIMIT):
                size, jobs = await self._queue.past_jobs(line, first, SLICE)
                # The line moves on while it is read: what has come on top pushes others into the next slice.
                fresh = [job for job in jobs if job.job_id not in before and job.job_id not in unfinished]
                if jobs and all((job.finished_at or since) < since for job in jobs):
                    break
                if fresh and read >= self._most_jobs:
                    return f"only the newest {read} jobs were looked at, the most for one answer"
                if fresh and read and budget.over:
                    return f"only the newest {read} jobs were looked at, in {READ_SECONDS:g} s"
                await asyncio.to_thread(_add_all, study, fresh, since)
                before = {job.job_id for job in jobs}
                if line != "done":
                    unfinished |= before
                first, read = first + size, read + len(fresh)
        return None


def _add_all(study: Study, jobs: Sequence[PastJob], since: float) -> None:
    for job in jobs:
        study.add(outcomes_of(job, since))
