"""Health, readiness, the cluster page's data, and the key check that the gateway asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, ValidationError

from appliance.api.auth import Identity
from appliance.api.problems import documented, unavailable
from appliance.api.services import Caller, ServicesHere
from appliance.queue.types import WorkerRecord

router = APIRouter(tags=["cluster"])

EVENT_SECONDS: Final = 3600
SHOWN_EVENTS: Final = 200


class CapabilitiesView(BaseModel):
    """What a worker can run; null stands for anything, 0 for no known limit."""

    models: list[str] | None
    motion_modules: list[str] | None
    vram_mib: int
    max_frames: int


class GpuView(BaseModel):
    name: str
    memory_total_mib: int
    memory_used_mib: int


class WorkerView(BaseModel):
    name: str
    state: str
    alive: bool
    job: str | None
    engine: str
    synthetic: bool
    fingerprint: str
    boot_id: str
    seq: int
    heartbeat_age_seconds: float
    capabilities: CapabilitiesView
    gpu: GpuView | None


class ClusterEvent(BaseModel):
    """`at` is a Unix time in seconds. What an event is not about is null."""

    id: str
    at: float
    type: str
    job: str | None
    worker: str | None
    reason: str | None


class ClusterView(BaseModel):
    """`events`: the last hour's, newest last, for operators only."""

    workers: list[WorkerView]
    queue: dict[str, float]
    failures_last_hour: dict[str, int]
    events: list[ClusterEvent] | None


@router.get("/api/v1/cluster", response_model=ClusterView, responses=documented(401, 503))
async def read_cluster(services: ServicesHere, caller: Caller) -> ClusterView:
    queue = services.queue
    stats = await queue.stats()
    events = await queue.cluster_events(EVENT_SECONDS)
    failures = Counter(event["reason"] for event in events if event["type"] == "failure")
    lease = queue.settings.lease_seconds
    return ClusterView(
        workers=[_view_worker(worker, lease, caller) for worker in await queue.workers()],
        queue=stats.numbers(),
        failures_last_hour=dict(failures),
        events=[view_event(event) for event in events[-SHOWN_EVENTS:]] if caller.is_operator else None,
    )


def _view_worker(worker: WorkerRecord, lease_seconds: float, caller: Identity) -> WorkerView:
    return WorkerView(
        name=worker.name,
        state=worker.state,
        alive=worker.heartbeat_age_seconds <= lease_seconds,
        # A job's id is its owner's business.
        job=worker.job_id if caller.is_operator else None,
        engine=worker.engine,
        synthetic=worker.synthetic,
        fingerprint=worker.fingerprint,
        boot_id=worker.boot_id,
        seq=worker.seq,
        heartbeat_age_seconds=worker.heartbeat_age_seconds,
        capabilities=CapabilitiesView.model_validate(worker.capabilities, from_attributes=True),
        gpu=_view_gpu(worker.gpu),
    )


def _view_gpu(gpu: Mapping[str, Any] | None) -> GpuView | None:
    """As the webui told it; nothing where that is not understood."""
    try:
        return None if gpu is None else GpuView.model_validate(dict(gpu))
    except ValidationError:
        return None


def view_event(event: Mapping[str, str]) -> ClusterEvent:
    milliseconds = event["id"].partition("-")[0]
    return ClusterEvent(
        id=event["id"],
        at=int(milliseconds) / 1000,
        type=event["type"],
        job=event.get("job") or None,
        worker=event.get("worker") or None,
        reason=event.get("reason") or None,
    )


@router.get("/healthz")
async def read_health() -> dict[str, str]:
    """This process answers; it says nothing about what it depends on."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(503))
async def read_readiness(services: ServicesHere) -> dict[str, Any]:
    if services.stopping.is_set():
        raise unavailable("shutting down")
    if problem := await services.readiness.problem():
        raise unavailable(problem)
    return {"status": "ok"}


@router.get("/internal/auth", status_code=204, include_in_schema=False)
async def check_key(caller: Caller, response: Response) -> None:
    """For nginx's auth_request; the 401 comes from the authentication in front of every route."""
    response.headers["X-Appliance-User"] = caller.name
    response.headers["X-Appliance-Role"] = caller.role
