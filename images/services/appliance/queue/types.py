"""What the queue is asked and what it answers, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from appliance.job import JobState, Priority


class FailKind(str, Enum):
    ERROR = "error"
    OOM = "oom"
    CRASH = "crash"
    RELEASE = "release"
    REFUSED = "refused"
    PERMANENT = "permanent"
    CANCELLED = "cancelled"


class BeatAnswer(str, Enum):
    OK = "ok"
    CANCEL = "cancel"
    FENCED = "fenced"


class CommitAnswer(str, Enum):
    DONE = "done"
    REPLAY = "replay"
    FENCED = "fenced"


@dataclass(frozen=True)
class Submission:
    """One job as handed to the queue; `body` is opaque to it."""

    job_id: str
    user: str
    body: str
    body_hash: str
    priority: Priority
    cost_ms: int
    idempotency_key: str | None = None
    deadline_seconds: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Accepted:
    """`status` is ok, duplicate, conflict or full; `job_id` is the existing job's for duplicate and conflict."""

    status: str
    job_id: str
    state: JobState | None


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended, when a script ended it (a lease that ran out, a deadline that passed)."""

    job_id: str
    state: JobState
    kind: str
    reason: str
    worker: str
    fence: int

    @classmethod
    def parse_all(cls, text: str) -> tuple[Outcome, ...]:
        return tuple(
            cls(o["id"], JobState(o["state"]), o["kind"], o["reason"], o["worker"], int(o["fence"]))
            for o in json.loads(text)
        )


@dataclass(frozen=True)
class Claim:
    """A leased job. `deadline_seconds` is the time left at the moment of claiming."""

    job_id: str
    nonce: str
    fence: int
    attempts: int
    deadline_seconds: float | None
    body: str
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Nothing:
    """No job now: wait behind `cursor` on the wake stream, at most until the next item is due."""

    cursor: str
    next_due_seconds: float | None
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Settlement:
    """`status` is settled, replay or fenced; `state` is where the job is now, if it exists."""

    status: str
    state: JobState | None


@dataclass(frozen=True)
class TickReport:
    grace: bool
    promoted: int
    reaped: int
    removed: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class QueueStats:
    waiting: int
    delayed: int
    running: int
    oldest_waiting_seconds: float
    live_workers: int
    submitted_total: int
    done_total: int
    dead_total: int
    cancelled_total: int
    average_run_ms: float


@dataclass(frozen=True)
class JobRecord:
    """A job's hash, typed. Times are Unix seconds by the Redis server's clock."""

    job_id: str
    user: str
    state: JobState
    priority: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    fence: int
    attempts: int
    crashes: int
    errors: int
    ooms: int
    step: int
    total_steps: int
    phase: str
    cancel_requested: bool
    reason: str | None
    message: str | None
    result: dict[str, Any] | None
    position: int | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, str], rank: int | None) -> JobRecord:
        return cls(
            job_id=raw["id"],
            user=raw["user"],
            state=JobState(raw["state"]),
            priority=raw["prio"],
            created_at=int(raw["created"]) / 1000,
            started_at=_seconds(raw.get("started")),
            finished_at=_seconds(raw.get("finished")),
            worker=raw.get("owner"),
            fence=int(raw.get("fence", 0)),
            attempts=int(raw.get("attempts", 0)),
            crashes=int(raw.get("crash", 0)),
            errors=int(raw.get("errs", 0)),
            ooms=int(raw.get("oom", 0)),
            step=int(raw.get("step", 0)),
            total_steps=int(raw.get("total", 0)),
            phase=raw.get("phase", ""),
            cancel_requested="cancel" in raw,
            reason=raw.get("reason") or None,
            message=raw.get("message") or None,
            result=json.loads(raw["result"]) if raw.get("result") else None,
            position=None if rank is None else rank + 1,
        )


@dataclass(frozen=True)
class WorkerRecord:
    name: str
    state: str
    job_id: str | None
    engine: str
    fingerprint: str
    synthetic: bool
    boot_id: str
    seq: int
    heartbeat_age_seconds: float


@dataclass(frozen=True)
class StreamEvent:
    event_id: str
    kind: str
    data: dict[str, Any]


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
