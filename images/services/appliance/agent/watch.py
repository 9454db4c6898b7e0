"""What a running attempt has shown so far, and when to stop believing in it."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

from appliance.agent.ending import Failed, crashed, too_late
from appliance.job import Reason
from appliance.queue import FailKind
from appliance.settings import AgentSettings

SAMPLE_SECONDS = 0.1
OWN_FREEZE_SECONDS = 0.5
PREVIEW_LIMIT = 64 * 1024


class Progress:
    """Fed with the webui's events. Times are monotonic seconds of this process."""

    def __init__(self) -> None:
        self.step = 0
        self.total_steps = 0
        self.phase = ""
        self.started = False
        self.resumed_from = 0
        self.checkpoint_step = 0
        self.memory = ""
        self.parameters = ""
        """Of the job, until the queue has heard them."""
        self.preview = ""
        """A JPEG in base64, likewise."""
        self.began = time.monotonic()
        self._part = 0
        self.order_sent()

    def order_sent(self) -> None:
        """What this side has taken until here (a slow disk) is not the webui's silence."""
        self.last_line = self.last_progress = time.monotonic()

    def heard(self) -> None:
        """It lives, which is no progress."""
        self.last_line = time.monotonic()

    def note(self, event: dict[str, Any]) -> None:
        self.last_line = time.monotonic()
        before = self._signs()
        kind = event.get("event")
        if kind in ("started", "step"):
            self.started = True
            self.step = _count(event.get("step"), self.step)
            self.total_steps = _count(event.get("total_steps"), self.total_steps)
        if kind == "started":
            self.resumed_from = _count(event.get("resumed_from"), 0)
            self.step = self.checkpoint_step = self.resumed_from
        elif kind == "step":
            self.phase = "step"
        elif kind == "alive":
            self.phase = str(event.get("phase") or self.phase)[:32]
            self._part = _count(event.get("part"), 0)
        elif kind == "preview":
            self.preview = _picture(event.get("image"))
        elif kind == "checkpoint":
            self.checkpoint_step = _count(event.get("step"), self.checkpoint_step)
        if before != self._signs():
            self.last_progress = self.last_line

    def _signs(self) -> tuple[object, ...]:
        return self.started, self.step, self.phase, self._part, self.checkpoint_step

    def forgive(self, seconds: float) -> None:
        """This process itself stood still: the webui's lines were there, unread."""
        self.last_line += seconds
        self.last_progress += seconds


class Watchdog:
    def __init__(self, progress: Progress, settings: AgentSettings, deadline_seconds: float | None) -> None:
        self._progress = progress
        self._settings = settings
        self._deadline = deadline_seconds

    async def run(self) -> Failed:
        """Returns when the attempt has to be given up."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = time.monotonic()
            late = now - last - SAMPLE_SECONDS
            if late > OWN_FREEZE_SECONDS:
                self._progress.forgive(late)
            last = now
            verdict = self.judge(now)
            if verdict is not None:
                return verdict

    def judge(self, now: float) -> Failed | None:
        progress, settings = self._progress, self._settings
        if now - progress.last_line > settings.stream_silence_seconds:
            return crashed(f"the webui said nothing for {settings.stream_silence_seconds:g} s")
        limit = phase_seconds(settings, progress.phase)
        if now - progress.last_progress > limit:
            where = progress.phase or "start"
            return crashed(f"no progress in phase {where} for {limit:g} s", Reason.TIMEOUT)
        ran = now - progress.began
        if ran > settings.queue.job_timeout_seconds:
            limit = settings.queue.job_timeout_seconds
            return Failed(FailKind.ERROR, Reason.TIMEOUT, f"the attempt took longer than {limit:g} s")
        if self._deadline is not None and ran > self._deadline:
            return too_late("the job's deadline passed while it was running")
        return None


def phase_seconds(settings: AgentSettings, phase: str) -> float:
    """How long a phase may go on without a sign of progress; a phase that this version does not know is a step's."""
    limits = {"load": settings.load_seconds, "decode": settings.decode_seconds, "encode": settings.encode_seconds}
    return limits.get(phase, settings.no_progress_seconds)


def _picture(value: object) -> str:
    if not isinstance(value, str) or len(value) > PREVIEW_LIMIT:
        return ""
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return ""
    return value


def _count(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else otherwise
