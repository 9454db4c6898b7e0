"""Submit, list, read and cancel."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from appliance.api.auth import Identity
from appliance.api.limits import PLAIN_BODY_LIMIT_BYTES
from appliance.api.problems import Problem, documented
from appliance.api.services import Caller, JobId, Services, ServicesHere, find_job
from appliance.api.views import Accepted, JobList, JobView, view_job
from appliance.errors import QueueUnavailable
from appliance.job import JobRequest, JobState, estimate_cost_ms, is_job_id, new_job_id
from appliance.outcome_log import log_job_result
from appliance.queue import JobRecord, Submission
from appliance.queue import types as answers

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], responses=documented(401, 422, 503))

# Long enough for a failover of Redis: the client waits a little instead of seeing an error.
SUBMIT_PATIENCE_SECONDS = 3.0
SCAN_LIMIT = 2000
SCAN_PAGE = 200

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


@router.post("", status_code=202, response_model=Accepted, responses=documented(409, 413))
async def submit_job(
    services: ServicesHere,
    caller: Caller,
    request: Request,
    response: Response,
    job: JobRequest,
    idempotency_key: IdempotencyKey = None,
) -> Accepted:
    if job.init_image is None and len(await request.body()) > PLAIN_BODY_LIMIT_BYTES:
        raise Problem(413, "body-too-large", f"without init_image a body may have {PLAIN_BODY_LIMIT_BYTES} bytes")
    accepted = await submit_patiently(services, submission_of(job, caller, idempotency_key))
    if accepted.status == "full":
        raise Problem(503, "queue-full", "the queue is full; try again later", headers={"Retry-After": "10"})
    if accepted.status == "conflict":
        raise Problem(
            409,
            "idempotency-conflict",
            "this Idempotency-Key was used with another body; use a new key for a new request",
            job=accepted.job_id,
        )
    response.headers["Location"] = f"/api/v1/jobs/{accepted.job_id}"
    return await _describe_accepted(services, accepted)


def submission_of(job: JobRequest, caller: Identity, idempotency_key: str | None) -> Submission:
    body = job.canonical_json()
    return Submission(
        job_id=new_job_id(),
        user=caller.name,
        body=body,
        body_hash=hashlib.sha256(body.encode()).hexdigest(),
        priority=job.priority,
        cost_ms=estimate_cost_ms(job),
        idempotency_key=idempotency_key,
        deadline_seconds=job.deadline_seconds,
    )


async def submit_patiently(services: Services, submission: Submission) -> answers.Accepted:
    """Tries again with the same id while Redis fails over; the script makes that safe."""
    deadline = time.monotonic() + SUBMIT_PATIENCE_SECONDS
    while True:
        try:
            return await services.queue.submit(submission)
        except QueueUnavailable:
            if time.monotonic() >= deadline or services.stopping.is_set():
                raise
        await asyncio.sleep(0.25)


async def _describe_accepted(services: Services, accepted: answers.Accepted) -> Accepted:
    """The job is accepted already: failing to describe it must not turn the answer into an error."""
    try:
        job = await services.queue.get(accepted.job_id)
    except QueueUnavailable:
        job = None
    if job is None:
        state = accepted.state or JobState.QUEUED
        return Accepted(id=accepted.job_id, state=state, position=None, eta_seconds=None)
    view = view_job(job, services.ticker.stats)
    return Accepted(id=view.id, state=view.state, position=view.position, eta_seconds=view.eta_seconds)


@router.get("", response_model=JobList)
async def list_jobs(
    services: ServicesHere,
    caller: Caller,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> JobList:
    """Newest first. Go on with `cursor` until it is null; with a state filter a page may be short."""
    if cursor is not None and not is_job_id(cursor):
        raise Problem(422, "invalid-request", "cursor: is not one that this call returned")
    user = None if caller.is_operator else caller.name
    found, next_cursor = await _scan(services, user, state, limit, cursor)
    views = [view_job(job, services.ticker.stats) for job in found]
    return JobList(jobs=views, cursor=next_cursor)


async def _scan(
    services: Services, user: str | None, state: JobState | None, limit: int, cursor: str | None
) -> tuple[list[JobRecord], str | None]:
    found: list[JobRecord] = []
    for _ in range(SCAN_LIMIT // SCAN_PAGE):
        page = limit if state is None else SCAN_PAGE
        ids = await services.queue.list_ids(user, cursor, page)
        for job_id, job in zip(ids, await services.queue.get_many(ids), strict=True):
            cursor = job_id
            if job is not None and (state is None or job.state is state):
                found.append(job)
                if len(found) == limit:
                    return found, cursor
        if len(ids) < page:
            return found, None
    return found, cursor


@router.get("/{job_id}", response_model=JobView, responses=documented(404))
async def read_job(services: ServicesHere, caller: Caller, job_id: JobId) -> JobView:
    return view_job(await find_job(services, caller, job_id), services.ticker.stats)


@router.delete("/{job_id}", response_model=JobView, responses=documented(404, 409))
async def cancel_job(services: ServicesHere, caller: Caller, job_id: JobId) -> JobView:
    """A waiting job is cancelled at once, a running one within about 2 s; cancelling twice is fine."""
    job = await find_job(services, caller, job_id)
    answer = await services.queue.cancel(job_id)
    if answer.status == "final" and answer.state is not JobState.CANCELLED:
        state = answer.state.value if answer.state else "gone"
        raise Problem(409, "already-finished", f"the job is {state} already", state=state)
    if answer.status == "cancelled":
        body = await services.queue.request_body(job_id)
        log_job_result(
            job_id,
            JobState.CANCELLED,
            kind="cancelled",
            worker=job.worker or "",
            attempt=job.fence,
            body=body,
            reason="CANCELLED",
        )
    return view_job(await find_job(services, caller, job_id), services.ticker.stats)
