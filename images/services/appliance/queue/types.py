"""What the queue is asked and what it answers, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from appliance.gpu import Gpu
from appliance.job import DEFAULT_CLASS, Capabilities, JobState, Needs, Priority


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
    """One job as handed to the queue; `body` is opaque to it. Without `weight` its user's from the settings counts."""

    job_id: str
    user: str
    body: str
    body_hash: str
    priority: Priority
    cost_ms: int
    idempotency_key: str | None = None
    deadline_seconds: float | None = None
    weight: float | None = None
    needs: Needs = field(default_factory=Needs)
    resolution: str = ""


@dataclass(frozen=True)
class Accepted:
    """`status` is ok, duplicate, conflict, full or unfit; `job_id` is the existing job's for duplicate and conflict.

    `missing` (when unfit): the names of the needs that no worker meets; empty when each is met, but by no worker all.
    """

    status: str
    job_id: str
    state: JobState | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asker:
    """Who claims a job. `boot_id` as in `register`: a process that was replaced under its worker's name gets nothing.
    Without `capabilities` it can run anything; `gpu` is what the attempt's record says that it ran on."""

    worker: str
    boot_id: str = ""
    capabilities: Capabilities | None = None
    gpu: Gpu | None = None


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
    """A leased job. `deadline_seconds` is the time left at the moment of claiming, `ooms` how often it ran out of
    memory before, `more` says that others wait behind it that its worker may have."""

    job_id: str
    nonce: str
    fence: int
    attempts: int
    deadline_seconds: float | None
    body: str
    outcomes: tuple[Outcome, ...] = ()
    ooms: int = 0
    user: str = ""
    more: bool = False


@dataclass(frozen=True)
class Nothing:
    """No job now: wait in line, at most until the next item is due."""

    next_due_seconds: float | None
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Settlement:
    """`state` is where the job is now, if it exists. `status`:

    fail: settled, replay (answered before) or fenced
    cancel: cancelled, requested (it runs; its worker will hear), final or missing
    requeue_dead: settled, replay, final (it is not dead), gone (its request is not kept any more) or missing
    """

    status: str
    state: JobState | None


@dataclass(frozen=True)
class TickReport:
    """`grace`: this call has noticed that Redis was away; `since`: when any call last did, by Redis, in ms."""

    grace: bool
    since: int
    promoted: int
    reaped: int
    removed: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class RepairReport:
    """What one slice of the cross-check has looked at and put right."""

    checked: int = 0
    relet: int = 0  # running without a lease
    requeued: int = 0  # queued, but in no line
    promoted: int = 0  # delayed, but never due
    removed: int = 0  # in a line or among the leases, but elsewhere by its own record
    unledgered: int = 0  # entries of the ledger that no running job has
    ledgered: int = 0  # running, but not in the ledger

    @property
    def repaired(self) -> int:
        counts: dict[str, int] = vars(self)
        return sum(counts.values()) - self.checked


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
    replayed_total: int = 0
    average_ratio: float = 0.0
    averages: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if isinstance(value, (int, float))}

    def estimate(self, cost_ms: int, resolution: str) -> float | None:
        """Seconds that a job of this cost runs: by what its resolution took before, else by what all did."""
        ratio = self.ratios.get(resolution) or self.average_ratio
        return ratio * cost_ms / 1000 if ratio > 0 else None


@dataclass(frozen=True)
class AttemptRecord:
    """One ended attempt. `memory` names the memory settings it ran with, `gpu` what it ran on, `where` the place in the
    engine's code that failed; times are Unix seconds."""

    fence: int
    worker: str
    kind: str
    reason: str | None
    message: str | None
    memory: str | None
    step: int
    resumed_from: int
    at: float
    started_at: float | None = None
    gpu: str | None = None
    where: str | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> AttemptRecord:
        return cls(
            fence=int(raw["fence"]),
            worker=raw["worker"],
            kind=raw["kind"],
            reason=raw.get("reason") or None,
            message=raw.get("message") or None,
            memory=raw.get("memory") or None,
            step=int(raw.get("step") or 0),
            resumed_from=int(raw.get("resumed_from") or 0),
            at=raw["at"] / 1000,
            started_at=raw["started"] / 1000 if raw.get("started") else None,
            gpu=raw.get("gpu") or None,
            where=raw.get("where") or None,
        )


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
    worker_class: str = DEFAULT_CLASS
    cost_ms: int = 0
    resolution: str = ""
    checkpoint_step: int = 0
    memory: str | None = None
    resumed_from: int = 0
    parameters: str = ""
    """JSON, as told by the first attempt; empty before."""
    history: tuple[AttemptRecord, ...] = ()

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
            worker_class=raw.get("class", DEFAULT_CLASS),
            cost_ms=int(raw.get("cost", 0)),
            resolution=raw.get("res", ""),
            checkpoint_step=int(raw.get("checkpoint", 0)),
            memory=raw.get("memory") or None,
            resumed_from=int(raw.get("resumed", 0)),
            parameters=raw.get("params", ""),
            history=tuple(AttemptRecord.parse(item) for item in json.loads(raw.get("history") or "[]")),
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
    capabilities: Capabilities = field(default_factory=Capabilities)
    gpu: Mapping[str, Any] | None = None
    failed_at: tuple[float, ...] = ()
    """When its last attempts in a row failed by its engine's fault, oldest first; `failure`: the last one's reason."""
    failure: str = ""
    done_at: float = 0.0
    done: int = 0
    failed: int = 0
    """Attempts, since this Redis knows the worker."""
    pace_sum: float = 0.0
    """Of those that were done: how long each took, in units of its estimate."""

    @classmethod
    def parse(cls, name: str, row: Mapping[str, str], now: float) -> WorkerRecord:
        gpu = json.loads(row.get("gpu") or "null")
        return cls(
            name=name,
            state=row.get("state", ""),
            job_id=row.get("job"),
            engine=row.get("engine", ""),
            fingerprint=row.get("fingerprint", ""),
            synthetic=row.get("synthetic") == "1",
            boot_id=row.get("boot_id", ""),
            seq=int(row.get("seq", 0)),
            heartbeat_age_seconds=round(max(0.0, now - int(row.get("seen", 0)) / 1000), 3),
            capabilities=Capabilities.parse(json.loads(row.get("capabilities") or "null")),
            gpu=gpu if isinstance(gpu, dict) else None,
            failed_at=tuple(int(moment) / 1000 for moment in row.get("fails", "").split()),
            failure=row.get("fail_reason", ""),
            done_at=int(row.get("done_at", 0)) / 1000,
            done=int(row.get("done", 0)),
            failed=int(row.get("failed", 0)),
            pace_sum=float(row.get("pace", 0)),
        )


@dataclass(frozen=True)
class Registration:
    """`number` counts the worker's heartbeats; 0 to a process that another one has replaced under this name. `order`
    is the kind of the order about it, or empty; `outcomes` that of what its former process has left."""

    number: int
    order: str = ""
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class StreamEvent:
    event_id: str
    kind: str
    data: dict[str, Any]


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
