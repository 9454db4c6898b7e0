"""Submit, list, read and cancel."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from appliance.api.auth import Identity
from appliance.api.limits import PLAIN_BODY_LIMIT_BYTES, no_worker_fits, require_affordable
from appliance.api.problems import Problem, described, documented, not_found
from appliance.api.services import Caller, JobId, Services, ServicesHere, find_job, patiently
from appliance.api.views import Accepted, JobList, JobView, seconds_until_room, view_job
from appliance.errors import QueueUnavailable
from appliance.job import JobRequest, JobState, estimate_cost_ms, needs_of, new_job_id, resolution_of
from appliance.outcome_log import log_job_result
from appliance.queue import JobRecord, Submission

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], responses=documented(401, 422, 503))

SCAN_LIMIT = 2000
JOB_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
SCAN_PAGE = 200

ACCEPTED = described(202, "Accepted", headers={"Location": {"required": True, "schema": {"type": "string"}}})
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


@router.post("", status_code=202, response_model=Accepted, responses=documented(400, 409, 413) | ACCEPTED)
async def submit_job(
    services: ServicesHere,
    caller: Caller,
    request: Request,
    response: Response,
    job: JobRequest,
    idempotency_key: IdempotencyKey = None,
) -> Accepted:
    if not job.carries_pictures and len(await request.body()) > PLAIN_BODY_LIMIT_BYTES:
        raise Problem(413, "body-too-large", f"without a picture a body may have {PLAIN_BODY_LIMIT_BYTES} bytes")
    require_affordable(job, services.settings.max_pixel_frames)
    submission = submission_of(job, caller, idempotency_key)
    accepted = await patiently(services, lambda: services.queue.submit(submission))
    if accepted.status == "full":
        seconds = str(seconds_until_room(services.ticker.stats))
        raise Problem(503, "queue-full", "the queue is full; try again later", headers={"Retry-After": seconds})
    if accepted.status == "unfit":
        raise no_worker_fits(submission.needs, accepted.missing)
    if accepted.status == "conflict":
        raise Problem(
            409,
            "idempotency-conflict",
            "this Idempotency-Key was used with another body; use a new key for a new request",
            job=accepted.job_id,
        )
    response.headers["Location"] = f"/api/v1/jobs/{accepted.job_id}"
    return await _describe_accepted(services, accepted.job_id, accepted.state)


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
        needs=needs_of(job),
        resolution=resolution_of(job),
    )


async def _describe_accepted(services: Services, job_id: str, state: JobState | None) -> Accepted:
    """The job is accepted already: failing to describe it must not turn the answer into an error."""
    try:
        job = await services.queue.get(job_id)
    except QueueUnavailable:
        job = None
    if job is None:
        return Accepted(id=job_id, state=state or JobState.QUEUED, position=None, eta_seconds=None)
    view = view_job(job, services.ticker.stats)
    return Accepted(id=view.id, state=view.state, position=view.position, eta_seconds=view.eta_seconds)


@router.get("", response_model=JobList)
async def list_jobs(
    services: ServicesHere,
    caller: Caller,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=JOB_ID)] = None,
) -> JobList:
    """Newest first. Go on with `cursor` until it is null; with a state filter a page may be short."""
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
    answer = await patiently(services, lambda: services.queue.cancel(job_id))
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


@router.post("/{job_id}/retry", status_code=202, response_model=Accepted, responses=documented(404, 409) | ACCEPTED)
async def retry_job(services: ServicesHere, caller: Caller, job_id: JobId, response: Response) -> Accepted:
    """A job that was given up runs again, with all its budgets; repeating the call while it waits is fine."""
    await find_job(services, caller, job_id)
    answer = await patiently(services, lambda: services.queue.requeue_dead(job_id))
    if answer.status == "missing":
        raise not_found(job_id)
    if answer.status == "gone":
        raise Problem(409, "request-gone", "the job's request is not kept any more; submit it anew")
    if answer.status == "final":
        state = answer.state.value if answer.state else "gone"
        raise Problem(409, "not-dead", f"only a dead job can be tried again; this one is {state}", state=state)
    response.headers["Location"] = f"/api/v1/jobs/{job_id}"
    return await _describe_accepted(services, job_id, answer.state)
