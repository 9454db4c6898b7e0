"""Storage from the event loop: in threads of its own, and never waited for without a bound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from async_timeout import timeout

from appliance.errors import StorageError
from appliance.storage import reason_of

T = TypeVar("T")


class Threads:
    """Not asyncio's own: those look up host names, and a hung mount must not keep a heartbeat from reconnecting. Nor
    an executor's: those are waited for at the end of the process, for as long as the mount hangs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = 0
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, operation: Callable[[], T]) -> Future[T]:
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._serve, name="storage", daemon=True).start()
        future: Future[T] = Future()
        self._work.put((future, operation))
        return future

    def _serve(self) -> None:
        while True:
            future, operation = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(operation())
            except BaseException as error:
                future.set_exception(error)


_THREADS = Threads(4)


class Disk:
    def __init__(self, jobs_dir: Path, seconds: float, threads: Threads = _THREADS) -> None:
        self._jobs_dir = jobs_dir
        self._seconds = seconds
        self._threads = threads

    async def do(self, operation: Callable[[Path], T]) -> T:
        """Raises what `operation` does, an OSError as StorageError, and StorageError when it does not answer in
        time."""
        work = self._threads.submit(partial(operation, self._jobs_dir))
        try:
            async with timeout(self._seconds):
                return await asyncio.wrap_future(work)
        except asyncio.TimeoutError as error:
            raise StorageError(f"no answer for {self._seconds:g} s") from error
        except OSError as error:
            raise StorageError(reason_of(error)) from error
