"""Bounds on what is asked for. On bodies while they stream in: a lying Content-Length or none at all does not help."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from async_timeout import timeout
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.auth import SDAPI_PATHS
from appliance.api.problems import RETRY_SECONDS, Problem, problem_response
from appliance.job import JobRequest, Needs, pixel_frames
from sdapi.errors import http_error

BODY_LIMIT_BYTES: Final = 24 * 1024 * 1024
PLAIN_BODY_LIMIT_BYTES: Final = 1024 * 1024


# Of large bodies that are being read and submitted at the same time: each takes about five times its size in memory.
ROOM_BYTES: Final = 48 * 1024 * 1024
LARGE_BYTES: Final = 256 * 1024
ROOM_SECONDS: Final = 30.0


class Room:
    """Memory that is shared out, first come, first served."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int) -> None:
        if not self._line and amount <= self._free:
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            else:
                with suppress(ValueError):  # whoever left in the same moment may have passed it by
                    self._line.remove((amount, turn))
                self._serve()
            raise

    def give(self, amount: int) -> None:
        self._free += amount
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._free:
            amount, turn = self._line.popleft()
            if not turn.cancelled():
                self._free -= amount
                turn.set_result(None)


class Hold:
    """What one body has of the room, until the request is over, or before: when nothing of it is kept any more."""

    def __init__(self, room: Room, amount: int) -> None:
        self._room = room
        self._amount = amount

    def release(self) -> None:
        amount, self._amount = self._amount, 0
        if amount:
            self._room.give(amount)


def release_body(state: Any) -> None:
    """Of a request that goes on for long after its body is done with."""
    hold = getattr(state, "body_hold", None)
    if isinstance(hold, Hold):
        hold.release()


class BodyLimit:
    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT_BYTES, room: int = ROOM_BYTES) -> None:
        self._app = app
        self._limit = limit
        self._room = Room(room)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._limit:
            await _too_large(scope, f"a body may have at most {self._limit} bytes")(scope, receive, send)
            return
        size = self._limit if "transfer-encoding" in Headers(scope=scope) else int(announced)
        if size <= LARGE_BYTES:
            await self._pass(scope, receive, send)
            return
        try:
            async with timeout(ROOM_SECONDS):
                await self._room.take(size)
        except asyncio.TimeoutError:
            await _no_room(scope)(scope, receive, send)
            return
        hold = Hold(self._room, size)
        scope.setdefault("state", {})["body_hold"] = hold
        try:
            await self._pass(scope, receive, send)
        finally:
            hold.release()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, f"a body may have at most {self._limit} bytes")
            return message

        await self._app(scope, counted, send)


def _too_large(scope: Scope, detail: str) -> Response:
    if scope["path"].startswith(SDAPI_PATHS):
        error = http_error(413, detail)
        return JSONResponse(error.body, error.status)
    return problem_response(Problem(413, "body-too-large", detail), scope["path"])


def _no_room(scope: Scope) -> Response:
    detail, headers = "too many large requests at once; try again", {"Retry-After": RETRY_SECONDS}
    if scope["path"].startswith(SDAPI_PATHS):
        error = http_error(503, detail)
        return JSONResponse(error.body, error.status, headers)
    return problem_response(Problem(503, "busy", detail, headers=headers), scope["path"])


def require_affordable(job: JobRequest, max_pixel_frames: int) -> None:
    """Each of width, height and frames may be high, but not all of them in one job."""
    if pixel_frames(job) <= max_pixel_frames:
        return
    frames = max_pixel_frames // (job.width * job.height)
    less = f"at most {frames} frames" if frames else "a smaller width or height"
    message = (
        f"{job.width} x {job.height} pixels x {job.frames} frames are {pixel_frames(job)} pixel-frames; "
        f"at most {max_pixel_frames} are allowed: ask for {less}"
    )
    raise Problem(
        422,
        "job-too-large",
        message,
        errors=[{"field": "frames", "message": message}],
        pixel_frames=pixel_frames(job),
        max_pixel_frames=max_pixel_frames,
    )


def no_worker_fits(needs: Needs, missing: Sequence[str]) -> Problem:
    """For a job that would wait for ever: none of the cluster's workers can run it."""
    wanted = {
        "model": f"model {needs.model!r}",
        "motion_module": f"motion module {needs.motion_module!r}",
        "vram_mib": f"about {needs.vram_mib} MiB of GPU memory (less with a smaller size or context_batch_size)",
        "frames": f"up to {needs.frames} frames",
    }
    names = [name for name in wanted if name in missing]
    if names:
        detail = f"no worker of this cluster has {', nor '.join(wanted[name] for name in names)}"
    else:
        both = " and ".join(text for name, text in wanted.items() if getattr(needs, name))
        detail = f"no single worker of this cluster has {both}"
    return Problem(422, "no-worker-fits", detail, missing=names, needs={k: v for k, v in vars(needs).items() if v})
