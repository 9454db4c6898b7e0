"""What the routes work with, put together once by `create_app`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Path
from starlette.requests import HTTPConnection

from appliance.api.auth import Identity, identity_of
from appliance.api.problems import not_found, operators_only
from appliance.api.readiness import Readiness
from appliance.api.ticker import Ticker
from appliance.causes.desk import Desk
from appliance.disk import Disk
from appliance.errors import QueueUnavailable
from appliance.job import is_job_id
from appliance.queue import JobRecord, Queue
from appliance.settings import ApiSettings

T = TypeVar("T")
# Long enough for a failover of Redis: the client waits a little instead of seeing an error.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Services:
    settings: ApiSettings
    queue: Queue
    ticker: Ticker
    causes: Desk
    readiness: Readiness
    disk: Disk
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


# All three `async`: FastAPI would ask plain ones in the few threads that also read videos, and a hung or slow storage,
# which holds those, would take every call with it, readiness and the judging of keys first.
async def get_services(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)  # noqa: S101 - set by create_app, for mypy
    return services


async def get_identity(connection: HTTPConnection) -> Identity:
    return identity_of(connection.state)


async def get_operator(connection: HTTPConnection) -> Identity:
    caller = identity_of(connection.state)
    if not caller.is_operator:
        raise operators_only()
    return caller


ServicesHere = Annotated[Services, Depends(get_services)]
Caller = Annotated[Identity, Depends(get_identity)]
Operator = Annotated[Identity, Depends(get_operator)]
JobId = Annotated[str, Path(description="a job's id", max_length=64)]


async def patiently(services: Services, move: Callable[[], Awaitable[T]]) -> T:
    """Tries the same move again while Redis fails over; its script makes that safe."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await move()
        except QueueUnavailable:
            if time.monotonic() >= deadline or services.stopping.is_set():
                raise
        await asyncio.sleep(0.25)


async def find_job(services: Services, caller: Identity, job_id: str) -> JobRecord:
    """The job, if the caller may see it; a stranger's job looks like none at all."""
    job = await patiently(services, lambda: services.queue.get(job_id)) if is_job_id(job_id) else None
    if job is None or (job.user != caller.name and not caller.is_operator):
        raise not_found(job_id)
    return job
