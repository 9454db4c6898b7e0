"""One generation as the server sees it, whoever ordered it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from webui.engine.base import Reason
from webui.request import Order

Event = dict[str, Any]
MOST_UNREAD = 20
"""With so much before it a picture would be an old one, and pictures take memory."""


class Run:
    """One generation, from the order to the moment when the engine is free again."""

    def __init__(self, number: int, order: Order) -> None:
        self.number = number
        self.order = order
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.told = False  # the stream has had its last event
        self.finished = asyncio.Event()  # the engine is free
        self.kept = asyncio.Event()  # what was asked to be kept is on disk, or cannot be
        self.phase = "load"
        self.part, self.parts = 0, 0
        self.step = 0
        self.checkpoint_step: int | None = None  # the newest on disk
        self.stop_as: tuple[Reason, str] | None = None
        self._progress_at = time.monotonic()

    def progress_age(self) -> float:
        return round(time.monotonic() - self._progress_at, 3)

    def alive(self) -> Event:
        event: Event = {"event": "alive", "phase": self.phase, "progress_age_seconds": self.progress_age()}
        return event | ({"part": self.part, "parts": self.parts} if self.parts else {})

    def emit(self, event: Event) -> None:
        if self.told or (event["event"] == "preview" and self.events.qsize() >= MOST_UNREAD):
            return
        self.told = event["event"] in ("done", "error")
        self.events.put_nowait(event)

    def progress(self, phase: str, step: int | None = None, part: int = 0, parts: int = 0) -> None:
        self._progress_at = time.monotonic()
        self.phase = phase
        self.part, self.parts = part, parts
        self.step = self.step if step is None else step
