"""What clients see of a job. Times are Unix seconds."""

from __future__ import annotations

import math
import time

from pydantic import BaseModel

from appliance.job import JobState
from appliance.queue import JobRecord
from appliance.queue.types import QueueStats


class Accepted(BaseModel):
    id: str
    state: JobState
    position: int | None
    eta_seconds: float | None


class AttemptCounts(BaseModel):
    total: int
    crash: int
    error: int
    oom: int


class Progress(BaseModel):
    step: int
    total_steps: int
    phase: str


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
    attempts: AttemptCounts
    cancel_requested: bool
    progress: Progress | None
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
        attempts=AttemptCounts(total=job.attempts, crash=job.crashes, error=job.errors, oom=job.ooms),
        cancel_requested=job.cancel_requested,
        progress=Progress(step=job.step, total_steps=job.total_steps, phase=job.phase) if job.attempts else None,
        error=Failure(reason=job.reason, message=job.message) if job.reason else None,
        result=view_files(job),
    )


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
    """Seconds until the result, from the average run time; None while there is nothing to go by."""
    if stats is None or stats.average_run_ms <= 0:
        return None
    average = stats.average_run_ms / 1000
    if job.state is JobState.RUNNING and job.started_at is not None:
        elapsed = max(0.0, now - job.started_at)
        if job.step > 0 and job.total_steps >= job.step:
            return round(elapsed / job.step * (job.total_steps - job.step), 1)
        return round(max(0.0, average - elapsed), 1)
    if job.state is JobState.QUEUED and job.position is not None and stats.live_workers > 0:
        return round(math.ceil((job.position + stats.running) / stats.live_workers) * average, 1)
    return None
