"""The one `event: job_result` line per ended attempt: with successes and parameters, or nothing can be correlated."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from appliance.errors import QueueError
from appliance.job import JobState
from appliance.logs import fields
from appliance.parameters import describe_for_log
from appliance.queue import Outcome, Queue

log = logging.getLogger("appliance.job_result")


def log_job_result(
    job_id: str,
    state: JobState | None,
    *,
    kind: str,
    worker: str,
    attempt: int,
    body: str | None,
    reason: str | None = None,
    message: str | None = None,
    seconds: float | None = None,
) -> None:
    """`kind` is done, cancelled or the way the attempt failed; `state` is where the job went from there."""
    level = logging.INFO if kind in ("done", "cancelled", "release", "refused") else logging.WARNING
    extra = fields(
        worker=worker,
        job_id=job_id,
        attempt=attempt,
        event="job_result",
        reason=reason,
        result=kind,
        state=state.value if state else None,
        final=state.is_final if state else None,
        seconds=None if seconds is None else round(seconds, 3),
        detail=message,
        parameters=_parameters(body) if body else None,
    )
    log.log(level, "job %s: %s", job_id, kind, extra=extra)


def _parameters(body: str) -> dict[str, Any] | None:
    """A request that cannot be read is the job's failure, and must not become that of whoever logs it."""
    try:
        return describe_for_log(json.loads(body))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


async def log_outcomes(queue: Queue, outcomes: Iterable[Outcome]) -> None:
    """For attempts that a script ended on its own: leases that ran out, deadlines that passed. Nobody else will tell
    of them, so that a line without its parameters is better than none."""
    for outcome in outcomes:
        try:
            body = await queue.request_body(outcome.job_id)
        except QueueError:
            body = None
        log_job_result(
            outcome.job_id,
            outcome.state,
            kind=outcome.kind,
            worker=outcome.worker,
            attempt=outcome.fence,
            body=body,
            reason=outcome.reason,
        )
