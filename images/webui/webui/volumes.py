"""Watches that the two volumes are really mounted, without ever waiting for storage that hangs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

MARKER = ".animatediff-ha"
STALE_SECONDS = 10.0


class Volumes:
    """A thread does the looking: a dead network mount may block it for ever, but nobody waits for it."""

    def __init__(self, readable: Path, writable: Path, interval: float = 1.0) -> None:
        self._readable = readable
        self._writable = writable
        self._interval = interval
        self._found: tuple[float, str | None] = (time.monotonic(), "storage was not looked at yet")

    def watch(self) -> None:
        threading.Thread(target=self._watch, name="volumes", daemon=True).start()

    def problem(self) -> str | None:
        looked_at, found = self._found
        age = time.monotonic() - looked_at
        return f"storage has not answered for {age:.0f} s" if age > STALE_SECONDS + self._interval else found

    def look(self) -> str | None:
        for folder, mode in ((self._readable, os.R_OK), (self._writable, os.R_OK | os.W_OK)):
            if not (folder / MARKER).is_file():
                return f"{folder / MARKER} is missing: the volume is not mounted, or storage-init has not run"
            if not os.access(folder, mode):
                return f"{folder} cannot be {'written' if mode & os.W_OK else 'read'} by uid {os.getuid()}"
        return None

    def _watch(self) -> None:
        while True:
            try:
                found = self.look()
            except OSError as error:
                found = f"storage failed: {error}"
            self._found = (time.monotonic(), found)
            time.sleep(self._interval)
