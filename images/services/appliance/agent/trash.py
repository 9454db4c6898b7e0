"""What is left on storage of jobs whose retention is over, removed by agents that have nothing better to do; where
there is always something better, a few at a time beside it, or a disk that is full would stay so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appliance import storage
from appliance.disk import Disk
from appliance.errors import QueueError, StorageError
from appliance.logs import fields
from appliance.queue import Queue

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
BUSY_SECONDS = 15.0
AT_ONCE = 10


class TrashCollector:
    """Forgets an id only after its folder is gone: an end in the middle leaves work for the next one, no more."""

    def __init__(
        self, queue: Queue, disk: Disk, may_work: Callable[[], bool], is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._queue = queue
        self._disk = disk
        self._may_work = may_work
        self._is_busy = is_busy
        self._last_round = time.monotonic()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                while self._may_work() and await self.collect():
                    pass
                if self._is_busy() and time.monotonic() - self._last_round > BUSY_SECONDS:
                    self._last_round = time.monotonic()
                    await self.collect(at_work=True)
            except QueueError as error:
                log.debug("no trash collected: %s", error)
            except Exception:
                log.exception("collecting trash failed")

    async def collect(self, *, at_work: bool = False) -> int:
        """One bounded round, which work ends unless it is `at_work` itself; answers how many jobs are gone for good."""
        ids = await self._queue.trash(AT_ONCE)
        if not ids:
            self._last_round = time.monotonic()
            return 0
        alive = await self._queue.get_many(ids)
        # An id that has a record again is a job again: its folder is not ours to remove.
        gone = [job_id for job_id, record in zip(ids, alive, strict=True) if record is not None]
        for job_id in (job_id for job_id, record in zip(ids, alive, strict=True) if record is None):
            if not at_work and not self._may_work():
                break
            if await self._remove(job_id):
                gone.append(job_id)
            elif at_work:
                break  # storage has enough to do, or hangs
        else:
            self._last_round = time.monotonic()
        await self._queue.untrash(gone)
        return len(gone)

    async def _remove(self, job_id: str) -> bool:
        try:
            await self._disk.do(lambda root: storage.remove_job(root, job_id))
        except StorageError as error:
            log.warning("job %s stays on storage for now: %s", job_id, error, extra=fields(job_id=job_id))
            return False
        return True
