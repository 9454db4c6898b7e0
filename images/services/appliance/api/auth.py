"""API keys: a file of `name:role:sha256hex` lines, re-read when it changes, compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.api.problems import Problem, problem_response
from sdapi.errors import unauthorized

log = logging.getLogger(__name__)

LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63}):(?P<role>user|operator):(?P<digest>[0-9a-f]{64})")
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
TASK_PATHS = ("/internal/progress", "/internal/pending-tasks")
SDAPI_PATHS = ("/sdapi/", *TASK_PATHS)
RECHECK_SECONDS = 1.0
SETTLED_NS = 1_000_000_000
UNSETTLED = (-1, -1)


@dataclass(frozen=True)
class Identity:
    name: str
    role: str

    @property
    def is_operator(self) -> bool:
        return self.role == "operator"


class KeyRing:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: tuple[tuple[Identity, str], ...] = ()
        self._stamp: tuple[int, int] | None = None
        self._checked = 0.0
        self._refresh()

    def identify(self, headers: Headers) -> Identity | None:
        key = presented_key(headers)
        if key is None:
            return None
        self._refresh()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found: Identity | None = None
        for identity, expected in self._entries:  # no early exit: the time must not tell which entry matched
            if hmac.compare_digest(digest, expected):
                found = identity
        return found

    def _refresh(self) -> None:
        if self._stamp is not None and time.monotonic() - self._checked < RECHECK_SECONDS:
            return
        self._checked = time.monotonic()
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            log.error("%s cannot be read, keeping the %d keys known so far: %s", self._path, len(self._entries), error)
            return
        entries = tuple(parse_keys(text, self._path))
        if entries != self._entries or self._stamp is None:
            log.info("%d API keys read from %s", len(entries), self._path)
        self._entries = entries
        # The file is written in place: one so young may have been read half-way, and its time may not change again.
        self._stamp = stamp if time.time_ns() - status.st_mtime_ns > SETTLED_NS else UNSETTLED


def parse_keys(text: str, path: Path) -> list[tuple[Identity, str]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        match = LINE.fullmatch(line)
        if match:
            entries.append((Identity(match["name"], match["role"]), match["digest"]))
        elif line:
            log.error("%s:%d: ignored: not `name:user|operator:sha256hex`", path, number)
    return entries


def presented_key(headers: Headers) -> str | None:
    """The key of a request: X-Api-Key, a Bearer token, or the password of Basic (for browsers)."""
    if "x-api-key" in headers:
        return headers["x-api-key"]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return decoded.partition(":")[2]
    return None


class Authenticate:
    """Answers 401 before a body is read; puts the identity into the request's state."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        identity = self._ring.identify(Headers(scope=scope))
        if identity is None:
            await self._refuse(scope, receive, send)
            return
        scope.setdefault("state", {})["identity"] = identity
        await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(SDAPI_PATHS):
            error = unauthorized()
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        # A browser asks its user for a password only when it is told Basic.
        scheme = "Basic" if scope["path"] == "/internal/auth" else "Bearer"
        problem = Problem(
            401,
            "unauthorized",
            "a valid API key is needed: `Authorization: Bearer KEY` or `X-Api-Key: KEY`",
            headers={"WWW-Authenticate": f'{scheme} realm="animatediff-ha"'},
        )
        await problem_response(problem, scope["path"])(scope, receive, send)


def identity_of(state: Any) -> Identity:
    identity = state.identity
    if not isinstance(identity, Identity):
        raise TypeError("a protected route was reached without authentication")
    return identity
