"""uvicorn, with an end that is ours: asked by a signal it tells its app at once, and exits 0."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """Sets `stopping` as soon as a signal comes, and exits 0: uvicorn itself would die of the signal again."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._stopping.set)
