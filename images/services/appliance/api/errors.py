"""Failures of the last days: which are alike, what they have in common, what to do. For operators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from appliance.api.problems import Problem, documented
from appliance.api.services import Operator, ServicesHere
from appliance.causes.desk import BusyError

router = APIRouter(tags=["errors"])

RETRY_SECONDS = "5"


class LookedView(BaseModel):
    """What the answer rests on. `limit` says why not all was looked at; null: it was."""

    days: int
    jobs: int
    attempts: int
    failures: int
    without_parameters: int
    limit: str | None


class GpuCountView(BaseModel):
    """`gpu` is empty for attempts without a GPU."""

    gpu: str
    failures: int
    attempts: int


class FindingView(BaseModel):
    """A range of a parameter, or a name, that failures have in common; each job counts once. `lift`: how many times
    more of them failed than their GPU models let expect; the risk ratio, with the lower end of its 95 % interval; `q`:
    the share of false ones to expect among such findings. The jobs cannot tell it from those in `alike`."""

    parameter: str
    bucket: str
    failures: int
    attempts: int
    other_failures: int
    other_attempts: int
    lift: float
    risk_ratio: float
    risk_ratio_low: float
    p: float
    q: float
    gpus: list[str]
    alike: list[str]
    suggestion: str | None


class KindView(BaseModel):
    """One kind of failure. Times are Unix seconds; `verdict` says in words what was found, or that nothing was."""

    fingerprint: str
    reason: str
    xid: int | None
    where: str
    title: str
    failures: int
    jobs: int
    first_at: float
    last_at: float
    example_job: str
    example_message: str
    gpus: list[GpuCountView]
    workers: dict[str, int]
    findings: list[FindingView]
    verdict: str
    suggestion: str | None


class ErrorsView(BaseModel):
    """The most frequent kinds first; `more_kinds` are not told, with `more_failures` in all."""

    at: float
    looked_at: LookedView
    kinds: list[KindView]
    more_kinds: int
    more_failures: int


@router.get("/api/v1/errors", response_model=ErrorsView, responses=documented(401, 403, 422, 503))
async def read_errors(services: ServicesHere, _: Operator, days: Annotated[int, Query(ge=1, le=31)] = 7) -> ErrorsView:
    """At most 30 seconds old. It may take as long to work out; who asks meanwhile gets the same answer."""
    try:
        report = await services.causes.report(days)
    except BusyError as error:
        raise Problem(503, "busy", str(error), headers={"Retry-After": RETRY_SECONDS}) from error
    return ErrorsView.model_validate(report, from_attributes=True)
