"""Bounds on what is asked for. On bodies while they stream in: a lying Content-Length or none at all does not help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api.problems import Problem, problem_response
from appliance.job import JobRequest, Needs, pixel_frames

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
