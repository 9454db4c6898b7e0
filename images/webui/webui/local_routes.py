"""Node-local runs over HTTP: `/local/…`. What the page uses, and any program that wants this very node."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from sdapi.origin import is_own_origin
from webui.answers import problem, read_json
from webui.engine.base import Capabilities
from webui.local import LineFullError, LocalRun, LocalRuns
from webui.local_socket import LocalSockets
from webui.local_view import blocked_by, view_run
from webui.process import EngineProcess, NotReadyError
from webui.request import FORMATS, RequestError, request_problems, video_request

NO_STORE: Final = {"Cache-Control": "no-store"}
# A browser that opens a video by itself makes a page around it, which must be allowed to ask for the video, as who it
# is; and for nothing else, and to run nothing.
FILE_POLICY: Final = (
    "default-src 'none'; media-src 'self'; img-src 'self'; frame-ancestors 'self'; sandbox allow-same-origin"
)
ASKED_LIMIT = 64
# As request.py checks them; a test holds the two together.
LIMITS: Final[dict[str, dict[str, float]]] = {
    "width": {"min": 64, "max": 1024, "step": 8},
    "height": {"min": 64, "max": 1024, "step": 8},
    "frames": {"min": 1, "max": 128, "step": 1},
    "fps": {"min": 1, "max": 60, "step": 1},
    "steps": {"min": 1, "max": 150, "step": 1},
    "cfg_scale": {"min": 0, "max": 30, "step": 0.1},
    "denoising_strength": {"min": 0, "max": 1, "step": 0.01},
    "clip_skip": {"min": 1, "max": 4, "step": 1},
    "loop_number": {"min": 0, "max": 65535, "step": 1},
    "context_batch_size": {"min": 1, "max": 128, "step": 1},
    "context_overlap": {"min": -1, "max": 127, "step": 1},
}
MENUS: Final = ("checkpoints", "motion_modules", "loras", "vaes", "controlnets", "samplers", "schedulers")


class LocalRoutes:
    def __init__(self, process: EngineProcess, runs: LocalRuns, facts: Callable[[], dict[str, Any]]) -> None:
        self._process = process
        self._runs = runs
        self._facts = facts
        self._sockets = LocalSockets(runs, self._view)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/local/node", self.show_node),
            Route("/local/choices", self.show_choices),
            Route("/local/runs", self.list_runs),
            Route("/local/runs", self.submit, methods=["POST"]),
            Route("/local/runs/{run_id}", self.show_run),
            Route("/local/runs/{run_id}", self.delete_run, methods=["DELETE"]),
            Route("/local/runs/{run_id}/files/{number:int}", self.send_file),
            WebSocketRoute("/local/runs/{run_id}/ws", self._sockets.serve),
        ]

    async def show_node(self, request: Request) -> Response:
        """As `/internal/state`, which the gateway keeps to itself, but without the id of a job of somebody else's."""
        facts, current = self._facts(), self._process.current
        facts["busy"] = blocked_by(current)
        line = {"waiting": len(self._runs.waiting), "running": self._runs.current is not None}
        return JSONResponse(facts | {"line": line}, headers=NO_STORE)

    async def show_choices(self, request: Request) -> Response:
        loaded = self._process.capabilities
        if loaded is None:
            return problem(503, "not-ready", f"the engine is {self._process.status}", {"Retry-After": "1"})
        return JSONResponse(choices(loaded), headers=NO_STORE)

    async def submit(self, request: Request) -> Response:
        refuse_foreign(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send the run as application/json")
        try:
            body = await read_json(request)
            if not isinstance(body, dict):
                raise RequestError([("body", "must be a JSON object")])
            if problems := await asyncio.to_thread(request_problems, body):  # pictures take their time
                raise RequestError(problems)
            run = self._runs.submit(video_request(body))
        except RequestError as error:
            errors = [{"field": name.removeprefix("request."), "message": text} for name, text in error.problems]
            return problem(422, "invalid-input", str(error), reason="INVALID_INPUT", errors=errors)
        except LineFullError as error:
            return problem(503, "line-full", str(error), {"Retry-After": "5"})
        except NotReadyError as error:
            return problem(503, "not-ready", str(error), {"Retry-After": "1"})
        answer = {"id": run.id, "position": run.position, "url": f"local/runs/{run.id}"}
        return JSONResponse(answer, 202, NO_STORE)

    async def list_runs(self, request: Request) -> Response:
        """Of the runs whose ids are asked for everything; of the others only that they are there: ids are keys."""
        asked = request.query_params.get("ids", "").split(",")[:ASKED_LIMIT]
        found = [run for run_id in asked if (run := self._runs.get(run_id)) is not None]
        line = {"waiting": len(self._runs.waiting), "running": self._runs.current is not None}
        return JSONResponse({"line": line, "runs": [self._view(run) for run in found]}, headers=NO_STORE)

    async def show_run(self, request: Request) -> Response:
        return JSONResponse(self._view(self._find(request)), headers=NO_STORE)

    async def delete_run(self, request: Request) -> Response:
        """Cancels a run that is not over, and removes one that is."""
        refuse_foreign(request)
        run = self._find(request)
        if run.is_over:
            self._runs.forget(run)
            return Response(status_code=204)
        run.cancel()
        return JSONResponse(self._view(run), 202, NO_STORE)

    async def send_file(self, request: Request) -> Response:
        run, number = self._find(request), request.path_params["number"]
        if number >= len(run.files):
            raise HTTPException(404, "this run has no such file")
        file = run.files[number]
        if not file.path.is_file():
            raise HTTPException(404, "this file is gone")
        # A file never changes, but its run may be forgotten; asking the browser's own copy costs nothing.
        headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": FILE_POLICY}
        name = f"{run.id[:8]}-{file.path.name}"
        kind = "attachment" if "download" in request.query_params else "inline"
        return FileResponse(
            file.path, media_type=file.media_type, filename=name, headers=headers, content_disposition_type=kind
        )

    def _find(self, request: Request) -> LocalRun:
        run = self._runs.get(request.path_params["run_id"])
        if run is None:
            raise HTTPException(404, "there is no such run here, or not any more")
        return run

    def _view(self, run: LocalRun) -> dict[str, Any]:
        return view_run(run, self._process.current)


def choices(loaded: Capabilities) -> dict[str, Any]:
    """What a request may name on this node now, and within which numbers."""
    menus = {name: list(getattr(loaded, name, ())) for name in MENUS}
    menus["checkpoints"] = menus["checkpoints"] or [loaded.checkpoint]
    menus["motion_modules"] = menus["motion_modules"] or [loaded.motion_module]
    limits = LIMITS | {"context_frames": {"min": 1, "max": loaded.max_frames, "step": 1}}
    return {
        "engine": loaded.engine,
        "synthetic": loaded.synthetic,
        "defaults": defaults(loaded),
        "limits": limits,
        "formats": list(FORMATS),
        **menus,
    }


def defaults(loaded: Capabilities) -> dict[str, Any]:
    fields = dataclasses.fields(video_request({"prompt": ""}))
    values = {
        field.name: field.default
        for field in fields
        if field.default is not dataclasses.MISSING and isinstance(field.default, str | int | float | None)
    }
    return values | {"model": loaded.checkpoint, "motion_module": loaded.motion_module}


def refuse_foreign(request: Request) -> None:
    if not is_own_origin(request.headers):
        raise HTTPException(403, "asked by a page of another origin")
