"""Errors in A1111's shapes: `{"error", "detail", "body", "errors"}`, but `{"detail": […]}` for a body that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROBLEMS_TOLD = 50
INTERRUPTED = "the generation was interrupted"


class ApiError(Exception):
    """`body` is the answer's JSON as it is to be sent."""

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = dict(body)
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a body; `where` leads to it, without the leading `body`."""

    where: tuple[str | int, ...]
    message: str
    kind: str = "value_error"


def http_error(status: int, detail: str, headers: Mapping[str, str] | None = None) -> ApiError:
    return ApiError(status, {"error": "HTTPException", "detail": detail, "body": "", "errors": ""}, headers)


def failure(status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> ApiError:
    """`kind` is the class of exception that upstream would have raised."""
    return ApiError(status, {"error": kind, "detail": "", "body": "", "errors": text}, headers)


def invalid_body(problems: Sequence[Problem]) -> ApiError:
    told = problems[:PROBLEMS_TOLD]
    detail = [{"loc": ["body", *item.where], "msg": item.message, "type": item.kind} for item in told]
    return ApiError(422, {"detail": detail})


def unauthorized() -> ApiError:
    return http_error(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def script_not_found(name: str) -> ApiError:
    return http_error(422, f"Script '{name}' not found")


def model_not_found(name: str) -> ApiError:
    """Upstream answers 500 here; but it is the client's mistake."""
    return failure(422, "RuntimeError", f"model {name!r} not found")


def of_reason(reason: str, message: str) -> ApiError:
    """Why a generation failed, by the reason that queue and engine have for it."""
    if reason in ("OOM", "HOST_OOM"):
        text = message if message.startswith("CUDA out of memory") else f"CUDA out of memory. {message}"
        return failure(500, "OutOfMemoryError", text)
    if reason == "INVALID_INPUT":
        return http_error(422, message)
    if reason == "CANCELLED":
        return failure(409, "InterruptedError", message or INTERRUPTED)
    if reason == "TIMEOUT":
        return failure(504, "TimeoutError", message)
    if reason == "WORKER_LOST":
        return failure(503, "ConnectionError", message, {"Retry-After": "2"})
    return failure(500, "RuntimeError", f"{reason}: {message}")
