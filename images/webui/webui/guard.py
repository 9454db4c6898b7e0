"""Who may ask: whoever has the cluster token, or one of this node's own users (A1111's `--api-auth`)."""

from __future__ import annotations

import base64
import binascii
import hmac

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sdapi.errors import unauthorized
from webui.answers import problem
from webui.settings import Secret

OPEN_PATHS = ("/internal/ping",)
# What only the agent asks: it writes into the cluster's storage.
AGENT_PATHS = ("/internal/generate", "/internal/interrupt")
BASIC = 'Basic realm="AnimateDiff", charset="UTF-8"'
SDAPI_PATHS = ("/sdapi/", "/internal/progress", "/internal/pending-tasks")


class Guard:
    """On every path but the open ones, unknown paths included."""

    def __init__(self, app: ASGIApp, token: Secret, users: Secret) -> None:
        self._app = app
        self._token = f"Bearer {token.value}".encode()
        self._users = [line.encode() for line in users.value.splitlines()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN_PATHS and not self._admits(scope):
            if scope["type"] == "websocket":
                # A 403 instead of the handshake; uvicorn logs an error for every other answer.
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._refusal(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        admitted = hmac.compare_digest(given, self._token)
        if scope["path"] in AGENT_PATHS:
            return admitted
        pair = _basic(given)
        for user in self._users:  # no early exit: the time must not tell which one matched
            admitted = hmac.compare_digest(pair, user) or admitted
        return admitted

    def _refusal(self, path: str) -> Response:
        if path.startswith(SDAPI_PATHS):
            error = unauthorized()
            return JSONResponse(error.body, error.status, error.headers)
        refusal = problem(401, "unauthorized", "the cluster token is missing or wrong")
        # A browser asks its user for a password only when it is told Basic.
        asks_user = self._users and path not in AGENT_PATHS
        refusal.headers["WWW-Authenticate"] = BASIC if asks_user else "Bearer"
        return refusal


def _basic(authorization: bytes) -> bytes:
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
