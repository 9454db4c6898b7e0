"""Writes checkpoints beside the generation, so that slow or hung storage costs no step and no interrupt."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from webui import checkpoint
from webui.engine.base import EngineError, Snapshot
from webui.folders import make_folder

# However short the interval, steps that take milliseconds must not flood the storage.
SHORTEST_SECONDS = 1.0
LAST_WRITE_SECONDS = 3.0

Told = Callable[[int], None]
log = logging.getLogger(__name__)


class Saver:
    """For one generation. `offer` is called by the engine's thread after each step, `demand` by any thread."""

    def __init__(
        self, root: Path, folder: str | None, fence: int, identity: checkpoint.Identity, interval: float, told: Told
    ) -> None:
        self._root = root
        self._folder = folder
        self._fence = fence
        self.identity = identity
        self._interval = interval
        self._on = folder is not None and interval > 0
        self._told = told
        self._lock = threading.Lock()
        self._writing: threading.Thread | None = None
        self._closed = False
        self._newest: Snapshot | None = None
        self._saved_step = 0
        self._saved_at = self._offered_at = time.monotonic()
        self._warned = False

    def begin_at(self, step: int) -> None:
        """The state after this step is on disk already."""
        self._saved_step = step

    def offer(self, snapshot: Snapshot) -> None:
        """Writes when the next step would come too late for the interval."""
        if not self._on:
            return
        now = time.monotonic()
        step_seconds, self._offered_at = now - self._offered_at, now
        self._newest = snapshot
        since = now - self._saved_at
        if since >= SHORTEST_SECONDS and since + step_seconds >= self._interval:
            self._start()

    def demand(self) -> int | None:
        """Writes what is newest now, while the engine is within a step or hangs; returns the newest durable step."""
        if self._on:
            self._wait()
            self._start()
            self._wait()
        return self._saved_step or None

    def close(self) -> None:
        """After this nothing is written any more; not even by a thread that hangs in the middle of it."""
        self._wait()
        with self._lock:
            self._closed, self._newest = True, None

    def _start(self) -> None:
        with self._lock:
            busy = self._writing is not None and self._writing.is_alive()
            if busy or self._closed or self._newest is None or self._newest.step <= self._saved_step:
                return
            self._saved_at = time.monotonic()
            self._writing = threading.Thread(target=self._write, args=[self._newest], name="checkpoint", daemon=True)
            self._writing.start()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join(LAST_WRITE_SECONDS)

    def _write(self, snapshot: Snapshot) -> None:
        assert self._folder is not None  # noqa: S101
        try:
            if (self._root / self._folder).with_name(checkpoint.COMMIT).exists():
                return  # only a zombie still works on this job: not even an empty folder may be left
            folder = make_folder(self._root, self._folder)
            if checkpoint.write(folder, self._fence, snapshot, self.identity, lambda: not self._closed):
                self._saved_step = snapshot.step
                self._told(snapshot.step)
                checkpoint.prune(folder, self._fence, snapshot.step)
        except (OSError, EngineError, MemoryError) as error:
            if not self._warned:
                self._warned = True
                log.warning("no checkpoint: %s", error, extra={"event": "checkpoint_failed"})
