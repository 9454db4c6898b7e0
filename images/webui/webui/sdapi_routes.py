"""AUTOMATIC1111's API on this node: `/sdapi/v1/…`, `/internal/progress`, `/internal/pending-tasks`."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from sdapi import generation, listings, options, pnginfo, progress
from sdapi.errors import ApiError, Problem, failure, http_error, invalid_body
from sdapi.generation import Kind
from sdapi.offer import Offer
from sdapi.options import Chosen
from sdapi.origin import OwnPages
from webui.answers import read_json
from webui.local import LocalRuns
from webui.process import EngineProcess
from webui.request import RequestError
from webui.sdapi_calls import Calls

PREFIX = "/sdapi/v1"
NO_STORE = {"Cache-Control": "no-store"}


class SdapiRoutes:
    """`facts` is what the ping tells: its capabilities are what can be asked for."""

    def __init__(self, process: EngineProcess, runs: LocalRuns, facts: Callable[[], dict[str, Any]]) -> None:
        self._process = process
        self._facts = facts
        self._calls = Calls(runs)
        self._chosen = Chosen()

    def routes(self) -> list[BaseRoute]:
        inside = Starlette(
            routes=[
                Route("/txt2img", self.txt2img, methods=["POST"]),
                Route("/img2img", self.img2img, methods=["POST"]),
                Route("/progress", self.show_progress),
                Route("/interrupt", self.interrupt, methods=["POST"]),
                Route("/skip", self.skip, methods=["POST"]),
                Route("/options", self.set_options, methods=["POST"]),
                Route("/memory", self.show_memory),
                Route("/png-info", self.read_png, methods=["POST"]),
                *(Route(f"/{name}", self.do_nothing, methods=["POST"]) for name in listings.COMMANDS),
                Route("/{name}", self.show_list, methods=["GET", "POST"]),
            ],
            exception_handlers={
                ApiError: on_api_error,
                HTTPException: on_http,
                RequestError: on_broken,
                Exception: on_bug,
            },
            middleware=[Middleware(OwnPages)],
        )
        return [
            Mount(PREFIX, inside),
            Route("/internal/progress", self.show_task, methods=["POST"]),
            Route("/internal/pending-tasks", self.show_pending),
        ]

    def _offer(self) -> Offer:
        """Raises ApiError 503 until the engine has loaded for the first time."""
        capabilities = self._facts().get("capabilities")
        if capabilities is None:
            raise failure(503, "RuntimeError", f"the engine is {self._process.status}", {"Retry-After": "2"})
        return Offer.parse(capabilities)

    async def txt2img(self, request: Request) -> Response:
        return await self._generate("txt2img", request)

    async def img2img(self, request: Request) -> Response:
        return await self._generate("img2img", request)

    async def _generate(self, kind: Kind, request: Request) -> Response:
        body = await read_json(request)
        seed = secrets.randbits(32)
        asked = await asyncio.to_thread(generation.read, kind, body, self._offer(), self._chosen, seed)
        if body.get("override_settings_restore_afterwards") is False:
            # From now on, as upstream does: what is set while this call runs is newer.
            self._chosen = asked.chosen
        answer = await self._calls.answer(asked, partial(_gone, request))
        return JSONResponse(answer, headers=NO_STORE)

    async def show_progress(self, request: Request) -> Response:
        """Of the call that runs, or of the one that is asked for: `id_task` is a task's or a request's id."""
        wanted = request.query_params.get("id_task")
        call = self._calls.find(wanted) if wanted else self._calls.current
        skip = request.query_params.get("skip_current_image", "").lower() in ("true", "1")
        return JSONResponse(progress.show(call.progress() if call else None, skip_image=skip), headers=NO_STORE)

    async def interrupt(self, request: Request) -> Response:
        wanted = request.query_params.get("id_task")
        call = self._calls.find(wanted) if wanted else self._calls.current
        if call is not None:
            call.interrupt()
        return JSONResponse({})

    async def skip(self, request: Request) -> Response:
        if self._calls.current is not None:
            self._calls.current.skip()
        return JSONResponse(None)

    async def set_options(self, request: Request) -> Response:
        self._chosen = options.change(self._chosen, await read_json(request), self._offer())
        return JSONResponse(None)

    async def show_memory(self, request: Request) -> Response:
        return JSONResponse(listings.memory(_main_memory(), self._facts().get("gpu")), headers=NO_STORE)

    async def read_png(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(pnginfo.read, await read_json(request)))

    async def do_nothing(self, request: Request) -> Response:
        return JSONResponse(listings.COMMANDS[request.url.path.rpartition("/")[2]])

    async def show_list(self, request: Request) -> Response:
        told = listings.read(request.path_params["name"], self._offer(), self._chosen, request.method)
        return JSONResponse(told, headers=NO_STORE)

    async def show_task(self, request: Request) -> Response:
        body = await read_json(request)
        wanted = body.get("id_task") if isinstance(body, dict) else None
        if not isinstance(wanted, str):
            return await on_api_error(
                request, invalid_body([Problem(("id_task",), "field required", "value_error.missing")])
            )
        call = self._calls.find(wanted)
        completed = call is None and wanted in self._calls.ended
        told = progress.show_task(call.progress() if call else None, completed=completed, request=body)
        return JSONResponse(told, headers=NO_STORE)

    async def show_pending(self, request: Request) -> Response:
        tasks = [call.id for call in self._calls.waiting]
        return JSONResponse({"size": len(tasks), "tasks": tasks}, headers=NO_STORE)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _main_memory() -> dict[str, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return {"free": free, "used": total - free, "total": total}


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101
    return JSONResponse(error.body, error.status, error.headers)


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    shaped = http_error(error.status_code, error.detail, error.headers)
    return await on_api_error(request, shaped)


async def on_broken(request: Request, error: Exception) -> Response:
    return await on_api_error(request, invalid_body([Problem((), str(error), "value_error.jsondecode")]))


async def on_bug(request: Request, error: Exception) -> Response:
    return await on_api_error(request, failure(500, type(error).__name__, "an unexpected error; see this node's log"))
