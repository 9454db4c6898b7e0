"""NVML's one door: many threads may be inside, and it is opened anew only while none of them is.

NVML learns of GPUs that came back only by `nvmlShutdown` and `nvmlInit`, and nobody says what a call does whose library
is shut down under it. A thread that hangs inside keeps the door as it is, and nobody else out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DoorClosedError(Exception):
    """NVML is not there, or has been opened anew since the caller got its handle."""


class Door:
    def __init__(self, open_: Callable[[], None], close: Callable[[], None]) -> None:
        self._open, self._close = open_, close
        self._changed = threading.Condition()
        self._inside = 0
        self._is_opening = False
        self._is_open = False
        self._generation = 0

    @property
    def is_open(self) -> bool:
        return self._is_open

    @contextmanager
    def inside(self, generation: int | None = None) -> Iterator[int]:
        """Gives the generation, which handles belong to. Waits while the door is being opened."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_opening)
            if not self._is_open or generation not in (None, self._generation):
                raise DoorClosedError
            self._inside += 1
            current = self._generation
        try:
            yield current
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def open_anew(self, patience_seconds: float) -> bool:
        """False where somebody stayed inside for all of the patience. Raises what opening raises; closed then."""
        with self._changed:
            self._is_opening = True
            if not self._changed.wait_for(lambda: self._inside == 0, patience_seconds):
                self._is_opening = False
                self._changed.notify_all()
                return False
        try:
            if self._is_open:
                self._is_open = False
                self._close()
            self._open()
            self._is_open = True
            self._generation += 1
        finally:
            with self._changed:
                self._is_opening = False
                self._changed.notify_all()
        return True
