"""One node-local run: what was ordered, how far it is, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from webui.request import VideoRequest

State = Literal["queued", "running", "done", "error", "cancelled"]

NO_PICTURES: Final[dict[str, Any]] = {
    "init_image": None, "last_frame": None, "init_video": None, "controlnets": (), "sparse_control": None
}  # fmt: skip


@dataclass(frozen=True)
class LocalFile:
    """A result on the scratch disk, until newer runs push it out."""

    path: Path
    media_type: str
    size_bytes: int
    sha256: str


class LocalRun:
    """One order and what became of it. `position` is 1 for the next in line, and 0 once it runs or is over."""

    def __init__(self, cancel: Callable[[LocalRun], None], request: VideoRequest) -> None:
        self._cancel = cancel
        self._over = asyncio.Event()
        self._watchers: set[asyncio.Event] = set()
        self.id = secrets.token_hex(16)  # whoever knows it may see and cancel the run
        self.request = request  # without its pictures once the run is over: up to 16 MiB each
        self.described = request.described()
        self.state: State = "queued"
        self.position = 0
        self.phase: str | None = None
        self.part, self.parts = 0, 0
        self.step = 0
        self.total_steps = request.total_steps
        self.preview: bytes | None = None
        self.preview_step = 0
        self.files: list[LocalFile] = []
        self.error: tuple[str, str] | None = None
        self.parameters: dict[str, Any] = {}
        self.created_at = time.time()
        self.started_at: float | None = None
        self.finished_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def wait(self) -> None:
        """Returns when the run is done, failed or cancelled; always within bounds, also at shutdown."""
        await self._over.wait()

    def cancel(self) -> None:
        """In line: at once. Running: within one step, or the engine is replaced. Over: does nothing."""
        self._cancel(self)

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """An event that is set at every change; whoever waits for it clears it."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            yield changed
        finally:
            self._watchers.discard(changed)

    def changed(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def end(self, state: State, error: tuple[str, str] | None = None) -> None:
        if self.is_over:
            return
        self.state, self.error, self.position, self.phase = state, error, 0, None
        self.finished_at = time.time()
        self.request = replace(self.request, **NO_PICTURES)
        self._over.set()
        self.changed()
