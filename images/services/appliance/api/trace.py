"""One job's whole life, as far as the queue remembers it. For operators; the services' logs have the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel

from appliance.api.cluster import ClusterEvent, view_event
from appliance.api.problems import documented
from appliance.api.services import JobId, Operator, ServicesHere, find_job
from appliance.api.views import JobView, view_job
from appliance.queue import JobRecord

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

MOST_EVENTS: Final = 1000
AFTER_SECONDS: Final = 60.0
OF_ALL: Final = frozenset({"failover", "stall"})


class JobEvent(BaseModel):
    """`at` is a Unix time in seconds; `data` as in the job's event stream."""

    at: float
    kind: str
    data: dict[str, Any]


class TraceView(BaseModel):
    """`parameters` are those that failures are compared by, null before the first attempt. `cluster_events`: about the
    job, about its workers, and what happened to all. `missing` says what is not known any more."""

    job: JobView
    parameters: dict[str, Any] | None
    events: list[JobEvent]
    cluster_events: list[ClusterEvent]
    missing: list[str]


@router.get("/{job_id}/trace", response_model=TraceView, responses=documented(401, 403, 404, 422, 503))
async def trace_job(services: ServicesHere, caller: Operator, job_id: JobId) -> TraceView:
    job = await find_job(services, caller, job_id)
    missing = []
    events = await services.queue.events_after(job_id, "0-0", MOST_EVENTS)
    if not events and job.state.is_final:
        missing.append("the job's own events: they are kept for an hour after its end")
    end = float("inf") if job.finished_at is None else job.finished_at + AFTER_SECONDS
    kept, others = await services.queue.cluster_events_between(job.created_at, min(end, 2**40))
    if not kept:
        missing.append("some of the cluster's events: only the newest are kept")
    workers = {attempt.worker for attempt in job.history} | {job.worker or ""}
    about = [view_event(event) for event in others if _is_about(event, job, workers)]
    if len(job.history) < job.attempts - (not job.state.is_final):
        missing.append(f"{job.attempts - len(job.history)} of its {job.attempts} attempts: only the newest are kept")
    return TraceView(
        job=view_job(job, services.ticker.stats),
        parameters=_parameters(job.parameters),
        events=[JobEvent(at=_at(event.event_id), kind=event.kind, data=event.data) for event in events],
        cluster_events=about,
        missing=missing,
    )


def _is_about(event: Mapping[str, str], job: JobRecord, workers: set[str]) -> bool:
    if event.get("job"):
        return event["job"] == job.job_id
    return event["type"] in OF_ALL or event.get("worker", "") in workers - {""}


def _at(event_id: str) -> float:
    return int(event_id.partition("-")[0]) / 1000


def _parameters(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
