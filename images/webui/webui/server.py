"""The HTTP side. It never imports torch, so it answers whatever the engine is doing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from webui.answers import problem, read_json
from webui.engine.base import Capabilities
from webui.guard import Guard
from webui.headers import SecurityHeaders
from webui.local import LocalRuns
from webui.local_routes import LocalRoutes
from webui.metrics import Named
from webui.page import Page
from webui.process import BusyError, EngineProcess, NotReadyError, Run
from webui.request import RequestError, check_supported, parse_interrupt, parse_order
from webui.sdapi_routes import SdapiRoutes
from webui.settings import Settings
from webui.volumes import Volumes

ALIVE_SECONDS = 0.5


class EventStream(Response):
    """Sends a run's events as NDJSON lines, and stops the run as soon as the client is gone."""

    def __init__(self, node: Node, run: Run) -> None:
        super().__init__(media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._node = node
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(work) for work in (self._pump(send), self._gone(receive), self._tick())]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self._run.told:
                self._node.stop_later(self._run, "the agent closed the connection")

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ended = False
        while not ended:
            event = await self._run.events.get()
            ended = event["event"] in ("done", "error")
            line = json.dumps(event).encode() + b"\n"
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            self._run.emit(self._run.alive())


class Node:
    """The handlers and what they share."""

    def __init__(self, settings: Settings, process: EngineProcess, volumes: Volumes, local: LocalRuns) -> None:
        self._settings = settings
        self._process = process
        self._local = local
        self._volumes = volumes
        self._metrics = Named({"node_name": settings.node_name, "worker": settings.worker})
        self._stopping: set[asyncio.Task[None]] = set()

    def stop_later(self, run: Run, message: str) -> None:
        task = asyncio.create_task(self._process.stop(run, "CANCELLED", message))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def state(self) -> dict[str, Any]:
        """What the ping tells everyone: nothing about the content of jobs."""
        process = self._process
        status, message = process.status, process.problem
        volume_problem = self._volumes.problem()
        if volume_problem and status != "draining":
            status, message = "error", volume_problem
        state: dict[str, Any] = {
            "status": status,
            "node": self._settings.node_name,
            "engine": f"{self._settings.engine.kind}-{self._settings.engine.device}",
            "fingerprint": None,
            "progress_age_seconds": process.progress_age(),
            "busy": process.current.order.owner if process.current else None,
            "load": (process.current is not None) + len(self._local.waiting),
            "capabilities": None,
            "gpu": process.gpu,
        }
        if process.capabilities is not None:
            state["capabilities"] = public_capabilities(process.capabilities)
            state |= {"engine": process.capabilities.engine, "fingerprint": process.capabilities.fingerprint}
        if self._settings.engine.kind == "synthetic":
            state |= {"engine": "synthetic", "synthetic": True}
        return state | ({"message": message} if message else {})

    async def ping(self, request: Request) -> Response:
        if "authorization" in request.headers:  # the agent; health checks ask as strangers
            self._local.note_agent()
        state = self.state()
        return JSONResponse(state, 200 if state["status"] == "ok" else 503, {"Cache-Control": "no-store"})

    async def show_state(self, request: Request) -> Response:
        return JSONResponse(self.full_state(), headers={"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        self._process.read_resident_memory()
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def generate(self, request: Request) -> Response:
        try:
            order = await asyncio.to_thread(parse_order, await read_json(request))  # pictures take their time
            capabilities = self._process.capabilities
            if self._volumes.problem() or capabilities is None:
                raise NotReadyError(self._volumes.problem() or f"the engine is {self._process.status}")
            check_supported(order.request, capabilities)
            run = self._process.submit(order)
        except RequestError as error:
            errors = [{"field": name, "message": message} for name, message in error.problems]
            return problem(422, "invalid-input", str(error), reason="INVALID_INPUT", errors=errors)
        except BusyError as error:
            self._local.note_agent(refused=True)
            return problem(409, "busy", str(error), job=error.job)
        except NotReadyError as error:
            return problem(503, "not-ready", str(error), {"Retry-After": "1"}, node_status=self.state()["status"])
        return EventStream(self, run)

    async def interrupt(self, request: Request) -> Response:
        asked = parse_interrupt(await read_json(request))
        run = self._process.current
        if run is None or not asked.means(run.order):
            return JSONResponse({"stopped": False, "job": None, "checkpoint_step": None})
        await self._process.stop(run, "CANCELLED", "interrupted", keep=asked.checkpoint)
        stopped, step = run.finished.is_set(), run.checkpoint_step
        return JSONResponse({"stopped": stopped, "job": run.order.job, "checkpoint_step": step})

    def full_state(self) -> dict[str, Any]:
        state, run, loaded = self.state(), self._process.current, self._process.capabilities
        state |= {"phase": run.phase if run else None, "step": run.step if run else None}
        state |= {"total_steps": run.order.request.total_steps if run else None}
        state |= {"checkpoint": loaded and loaded.checkpoint, "motion_module": loaded and loaded.motion_module}
        return state


def public_capabilities(loaded: Capabilities) -> dict[str, Any]:
    """What the queue needs to know to choose jobs that this node can do, and what clients may choose from. The names
    of what is used unless something else is asked for come first."""
    return {
        "models": list(dict.fromkeys((loaded.checkpoint, *loaded.checkpoints))),
        "motion_modules": list(dict.fromkeys((loaded.motion_module, *loaded.motion_modules))),
        "loras": list(loaded.loras),
        "vaes": list(loaded.vaes),
        "controlnets": list(loaded.controlnets),
        "samplers": list(loaded.samplers),
        "schedulers": list(loaded.schedulers),
        "vram_mib": loaded.vram_mib,
        "max_frames": loaded.max_frames,
    }


async def http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    slugs = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
    headers = dict(error.headers or {})
    return problem(error.status_code, slugs.get(error.status_code, "http-error"), error.detail, headers)


async def unreadable(request: Request, error: Exception) -> Response:
    return problem(422, "invalid-input", str(error), reason="INVALID_INPUT")


async def server_problem(request: Request, error: Exception) -> Response:
    return problem(500, "internal", "an unexpected error; see this node's log")


def create_app(settings: Settings, process: EngineProcess, volumes: Volumes, local: LocalRuns) -> ASGIApp:
    node = Node(settings, process, volumes, local)
    app = Starlette(
        routes=[
            *Page().routes(),
            Route("/metrics", node.metrics),
            Route("/internal/ping", node.ping),
            Route("/internal/state", node.show_state),
            Route("/internal/generate", node.generate, methods=["POST"]),
            Route("/internal/interrupt", node.interrupt, methods=["POST"]),
            *LocalRoutes(process, local, node.full_state).routes(),
            *SdapiRoutes(process, local, node.state).routes(),
        ],
        exception_handlers={HTTPException: http_problem, RequestError: unreadable, Exception: server_problem},
    )
    return SecurityHeaders(Guard(app, settings.cluster_token, settings.api_auth))
