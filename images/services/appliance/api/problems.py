"""Errors as `application/problem+json` (RFC 9457): a stable `type` slug, no stack traces, no echo of secrets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from appliance.errors import ApplianceError, QueueUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "2"
SLUGS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    416: "range-not-satisfiable",
}


class Problem(ApplianceError):  # noqa: N818 - reads as what happened
    def __init__(
        self, status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members


def problem_response(problem: Problem, instance: str) -> JSONResponse:
    body = {
        "type": problem.slug,
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        **problem.members,
    }
    return JSONResponse(body, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def not_found(job_id: str) -> Problem:
    return Problem(404, "no-such-job", f"there is no job {job_id[:64]!r}, or it belongs to somebody else")


def operators_only() -> Problem:
    return Problem(403, "forbidden", "this needs an operator's key")


def unavailable(detail: str) -> Problem:
    return Problem(503, "queue-unavailable", detail, headers={"Retry-After": RETRY_SECONDS})


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(QueueUnavailable, _on_unavailable)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for exactly this class
    return problem_response(error, request.url.path)


async def _on_unavailable(request: Request, error: Exception) -> Response:
    log.warning("%s: %s", request.url.path, error)
    return problem_response(unavailable("the queue cannot be reached now; nothing was lost"), request.url.path)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for exactly this class
    errors = [{"field": _field(item["loc"]), "message": str(item["msg"])} for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors[:10])
    return problem_response(Problem(422, "invalid-request", detail, errors=errors[:50]), request.url.path)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for exactly this class
    slug = SLUGS.get(error.status_code, "http-error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_at(request))) or headers.get("Allow", "")
    problem = Problem(error.status_code, slug, str(error.detail), headers=headers)
    return problem_response(problem, request.url.path)


def _methods_at(request: Request) -> set[str]:
    """Starlette names the methods of the first route of this path only."""
    matching = (route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so uvicorn logs it with its stack.
    return problem_response(Problem(500, "internal-error", "an internal error; see the api's log"), request.url.path)


def _field(location: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return ".".join(parts) or "body"


PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "description": "a stable slug"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "of a refused request: which field, and why",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
RETRY_AFTER: Final = {
    "Retry-After": {"required": True, "description": "seconds", "schema": {"type": "integer", "minimum": 1}}
}
HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    503: RETRY_AFTER,
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems a route may answer; `Problem` is added to the components by `openapi`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": content,
            **({"headers": HEADERS[status]} if status in HEADERS else {}),
        }
        for status in statuses
    }


def described(status: int, description: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """An OpenAPI entry for an answer that is no problem: `content`, `headers`, `model`."""
    return {status: {"description": description, **more}}
