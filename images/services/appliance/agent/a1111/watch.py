"""What A1111's progress tells, turned into the events of our own webui. Pure but for the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from appliance.agent.a1111.client import Unanswered
from appliance.agent.webui import WebuiBroke

ENGINE = "a1111"


@dataclass(frozen=True)
class State:
    """What /sdapi/v1/progress tells."""

    busy: bool
    step: int
    total_steps: int
    interrupted: bool

    @classmethod
    def parse(cls, raw: Any, steps: int = 0) -> State:
        facts = raw.get("state") if isinstance(raw, dict) else None
        if not isinstance(facts, dict):
            raise Unanswered("its progress cannot be understood")
        jobs, number, step, each = (
            _count(facts.get(name)) for name in ("job_count", "job_no", "sampling_step", "sampling_steps")
        )
        # It counts -1 from a run's begin until its models are there; the steps are the last run's until then.
        loads = facts.get("job_count") == -1
        each = steps if loads else each or steps
        broken_off = facts.get("interrupted") is True or facts.get("skipped") is True
        return cls(loads or jobs > 0, number * each + step, max(jobs, 1) * each, broken_off)


class Watch:
    """Turns what the polls see into events."""

    def __init__(self, steps: int, rounds: int, silence_seconds: float) -> None:
        self._steps = steps
        self._rounds = rounds
        self._round_step = self._before = 0
        self._silence = silence_seconds
        self._heard_at = time.monotonic()
        self._news: list[dict[str, Any]] = []
        self._step = 0
        self._total = 0
        self.started = False
        self.trouble = ""

    def hear(self, state: State) -> None:
        self._heard_at = time.monotonic()
        if not state.busy:
            return
        each = state.total_steps or self._steps
        if state.step < self._round_step:  # FreeInit counts each of its rounds from 0
            self._before += each
        self._round_step = state.step
        step = self._before + state.step
        self._total = max(each * self._rounds, step)
        if not self.started:
            self.started = True
            self._news.append({"event": "started", "engine": ENGINE, "total_steps": self._total})
        if step > self._step:
            self._step = step
            self._news.append({"event": "step", "step": self._step, "total_steps": self._total})

    def events(self) -> list[dict[str, Any]]:
        """Always a sign of life, as long as A1111 itself has given one lately; else WebuiBroke."""
        if time.monotonic() - self._heard_at > self._silence:
            raise WebuiBroke(f"the A1111 has not answered for {self._silence:g} s: {self.trouble}")
        news, self._news = self._news, []
        # All steps made, what is left is decoding and writing the video, of which A1111 tells nothing.
        phase = "load" if not self._step else "decode" if self._step >= self._total else "step"
        return [*news, {"event": "alive", "phase": phase, "progress_age_seconds": 0}]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
