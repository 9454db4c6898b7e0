"""Health, readiness, the cluster page's data, and the key check that the gateway asks for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from appliance.api.problems import documented, unavailable
from appliance.api.services import Caller, ServicesHere
from appliance.errors import QueueError

router = APIRouter(tags=["cluster"])


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


class ClusterView(BaseModel):
    workers: list[WorkerView]
    queue: dict[str, float]
    failures_last_hour: dict[str, int]


@router.get("/api/v1/cluster", response_model=ClusterView, responses=documented(401, 503))
async def read_cluster(services: ServicesHere, caller: Caller) -> ClusterView:
    queue = services.queue
    stats = await queue.stats()
    failures = Counter(e["reason"] for e in await queue.cluster_events(3600) if e["type"] == "failure")
    lease = queue.settings.lease_seconds
    workers = [
        WorkerView(
            name=worker.name,
            state=worker.state,
            alive=worker.heartbeat_age_seconds <= lease,
            # A job's id is its owner's business.
            job=worker.job_id if caller.is_operator else None,
            engine=worker.engine,
            synthetic=worker.synthetic,
            fingerprint=worker.fingerprint,
            boot_id=worker.boot_id,
            seq=worker.seq,
            heartbeat_age_seconds=worker.heartbeat_age_seconds,
        )
        for worker in await queue.workers()
    ]
    return ClusterView(workers=workers, queue=dict(vars(stats)), failures_last_hour=dict(failures))


@router.get("/healthz")
async def read_health() -> dict[str, str]:
    """This process answers; it says nothing about what it depends on."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(503))
async def read_readiness(services: ServicesHere) -> dict[str, Any]:
    if services.stopping.is_set():
        raise unavailable("shutting down")
    try:
        await services.queue.check_writable()
    except QueueError as error:
        raise unavailable("Redis is not writable") from error
    return {"status": "ok"}


@router.get("/internal/auth", status_code=204, include_in_schema=False)
async def check_key(caller: Caller, response: Response) -> None:
    """For nginx's auth_request; the 401 comes from the authentication in front of every route."""
    response.headers["X-Appliance-User"] = caller.name
    response.headers["X-Appliance-Role"] = caller.role
