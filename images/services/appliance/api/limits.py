"""Bounds on request bodies, enforced while they stream in: a lying Content-Length or none at all does not help."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.problems import Problem, problem_response

BODY_LIMIT_BYTES: Final = 16 * 1024 * 1024
PLAIN_BODY_LIMIT_BYTES: Final = 1024 * 1024


class BodyLimit:
    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._limit:
            problem = Problem(413, "body-too-large", f"a body may have at most {self._limit} bytes")
            await problem_response(problem, scope["path"])(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, f"a body may have at most {self._limit} bytes")
            return message

        await self._app(scope, counted, send)
