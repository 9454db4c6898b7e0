"""What clients see of a job. Times are Unix seconds."""

from __future__ import annotations

import math
import time
from typing import Final

from pydantic import BaseModel

from appliance.job import JobState
from appliance.queue import JobRecord
from appliance.queue.types import AttemptRecord, QueueStats

UNKNOWN_DRAIN_SECONDS: Final = 10
LONGEST_RETRY_SECONDS: Final = 300


class Accepted(BaseModel):
    id: str
    state: JobState
    position: int | None
    eta_seconds: float | None


class AttemptView(BaseModel):
    """One ended attempt. `memory` names the memory settings it ran with, `resumed_from` the step it went on from, `gpu`
    what it ran on, `where` the place in the engine's code that failed; null where that is not known."""

    fence: int
    worker: str
    kind: str
    reason: str | None
    message: str | None
    memory: str | None
    step: int
    resumed_from: int
    at: float
    started_at: float | None
    gpu: str | None
    where: str | None


class Attempts(BaseModel):
    """What counts against the budgets, and the newest ended attempts, newest last."""

    total: int
    crash: int
    error: int
    oom: int
    history: list[AttemptView]


class Progress(BaseModel):
    step: int
    total_steps: int
    phase: str
    memory: str | None


class Failure(BaseModel):
    reason: str
    message: str | None


class FileView(BaseModel):
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    url: str


class JobView(BaseModel):
    id: str
    user: str
    state: JobState
    priority: str
    position: int | None
    eta_seconds: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    fence: int
    attempts: Attempts
    cancel_requested: bool
    progress: Progress | None
    checkpoint_step: int
    resumed_from: int
    error: Failure | None
    result: list[FileView] | None


class JobList(BaseModel):
    jobs: list[JobView]
    cursor: str | None


def view_job(job: JobRecord, stats: QueueStats | None) -> JobView:
    return JobView(
        id=job.job_id,
        user=job.user,
        state=job.state,
        priority=job.priority,
        position=job.position,
        eta_seconds=estimate_eta(job, stats, time.time()),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        worker=job.worker,
        fence=job.fence,
        attempts=Attempts(
            total=job.attempts,
            crash=job.crashes,
            error=job.errors,
            oom=job.ooms,
            history=[_view_attempt(attempt) for attempt in job.history],
        ),
        cancel_requested=job.cancel_requested,
        progress=_view_progress(job) if job.attempts else None,
        checkpoint_step=job.checkpoint_step,
        resumed_from=job.resumed_from,
        error=Failure(reason=job.reason, message=job.message) if job.reason else None,
        result=view_files(job),
    )


def _view_progress(job: JobRecord) -> Progress:
    return Progress(step=job.step, total_steps=job.total_steps, phase=job.phase, memory=job.memory)


def _view_attempt(attempt: AttemptRecord) -> AttemptView:
    return AttemptView.model_validate(attempt, from_attributes=True)


def view_files(job: JobRecord) -> list[FileView] | None:
    if job.result is None:
        return None
    url = f"/api/v1/jobs/{job.job_id}/result?file="
    return [
        FileView(
            name=file["name"],
            media_type=file["media_type"],
            size_bytes=file["size_bytes"],
            sha256=file["sha256"],
            url=f"{url}{index}",
        )
        for index, file in enumerate(job.result["files"])
    ]


def estimate_eta(job: JobRecord, stats: QueueStats | None, now: float) -> float | None:
    """Seconds until the result, by what jobs of this resolution took before; None while there is nothing to go by."""
    if stats is None or stats.average_run_ms <= 0:
        return None
    average = stats.average_run_ms / 1000
    own = stats.estimate(job.cost_ms, job.resolution) or average
    if job.state is JobState.RUNNING and job.started_at is not None:
        elapsed = max(0.0, now - job.started_at)
        made = job.step - job.resumed_from  # steps of this attempt: it may have gone on from a checkpoint
        if made > 0 and job.total_steps >= job.step:
            return round(elapsed / made * (job.total_steps - job.step), 1)
        return round(max(0.0, own - elapsed), 1)
    if job.state is JobState.QUEUED and job.position is not None and stats.live_workers > 0:
        rounds = (job.position - 1 + stats.running) // stats.live_workers
        return round(rounds * average + own, 1)
    return None


def seconds_until_room(stats: QueueStats | None) -> int:
    """When a full queue may have a place again, for Retry-After: the workers end one job every average / workers."""
    if stats is None or stats.average_run_ms <= 0 or stats.live_workers <= 0:
        return UNKNOWN_DRAIN_SECONDS
    return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(stats.average_run_ms / 1000 / stats.live_workers)))
