"""How one attempt at a job ended, as what is kept in the queue tells it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance.job import Reason
from appliance.queue.past import PastJob

MESSAGE_CHARS: Final = 500
WORKER_CHARS: Final = 128
_CONTEXT = re.compile(r"context (\d{1,4})\b")
ENDS: Final = frozenset({"done", "error", "oom", "crash", "permanent"})
"""The kinds that speak for or against a job and its worker. A release, refusal or cancellation speaks of neither."""


@dataclass(frozen=True)
class Outcome:
    """`at` is a Unix time in seconds. `gpu` is a label as `Gpu` makes them, or empty; `context` the most frames
    that were looked at together, where that was limited to save memory. `reason` is None for a success."""

    at: float
    worker: str
    gpu: str
    context: int | None
    reason: Reason | None
    message: str = ""
    where: str = ""


@dataclass(frozen=True)
class JobOutcomes:
    """A job's attempts, oldest first. `parameters` as `describe_for_log` names them, without what was not set; None
    where they are not known."""

    job_id: str
    parameters: Mapping[str, Any] | None
    attempts: tuple[Outcome, ...]


def outcomes_of(job: PastJob, since: float) -> JobOutcomes:
    """The attempts that ended at `since` (Unix seconds) or later. What cannot be read is left out: one odd record must
    not hide all others."""
    history = _read(job.history, list) or []
    attempts = [
        attempt for item in history if isinstance(item, dict) for attempt in _parse(item) if attempt.at >= since
    ]
    if (late := _died_waiting(job)) is not None and late.at >= since:
        attempts.append(late)
    return JobOutcomes(job.job_id, _read(job.parameters, dict), tuple(attempts))


def _parse(item: Mapping[str, Any]) -> Iterator[Outcome]:
    kind, at = item.get("kind"), item.get("at")
    if not isinstance(kind, str) or kind not in ENDS or isinstance(at, bool) or not isinstance(at, (int, float)):
        return
    limited = _CONTEXT.search(_text(item.get("memory"), 100))
    yield Outcome(
        at=at / 1000,
        worker=_text(item.get("worker"), WORKER_CHARS),
        gpu=_text(item.get("gpu"), 64),
        context=int(limited[1]) if limited else None,
        reason=None if kind == "done" else Reason.parse(item.get("reason")),
        message=_text(item.get("message"), MESSAGE_CHARS),
        where=_text(item.get("where"), 100),
    )


def _died_waiting(job: PastJob) -> Outcome | None:
    """A job whose deadline passed in the line has no attempt that says so."""
    waited = job.state == "dead" and job.reason == Reason.TIMEOUT.value and job.finished_at is not None
    if not waited or job.finished_at is None or "before a worker was free" not in job.message:
        return None
    return Outcome(job.finished_at, "", "", None, Reason.TIMEOUT, _text(job.message, MESSAGE_CHARS))


def _read(text: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def _text(value: object, limit: int) -> str:
    return value[:limit] if isinstance(value, str) else ""


def plain(text: str, limit: int) -> str:
    """One line without anything that a terminal or a reader could take for more than text."""
    cut = text[: 2 * limit]
    words = " ".join((cut if cut.isprintable() else "".join(c if c.isprintable() else " " for c in cut)).split())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"
