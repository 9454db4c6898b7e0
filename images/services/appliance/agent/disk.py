"""Storage from the event loop: in threads of its own, and never waited for without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from appliance.errors import StorageError

T = TypeVar("T")

# Not asyncio's own threads: those look up host names, and a hung mount must not keep a heartbeat from reconnecting.
_THREADS = ThreadPoolExecutor(4, "storage")


class Disk:
    def __init__(self, jobs_dir: Path, seconds: float) -> None:
        self._jobs_dir = jobs_dir
        self._seconds = seconds

    async def do(self, operation: Callable[[Path], T]) -> T:
        """Raises StorageError where `operation` does, and when it does not answer in time."""
        work = asyncio.get_running_loop().run_in_executor(_THREADS, operation, self._jobs_dir)
        try:
            return await asyncio.wait_for(work, self._seconds)
        except asyncio.TimeoutError as error:
            raise StorageError(f"no answer for {self._seconds:g} s") from error
