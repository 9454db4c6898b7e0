"""AUTOMATIC1111's API in front of the queue, `/sdapi/v1/…`: old clients gain waiting, retries and failover."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.api.auth import TASK_PATHS, Identity, identity_of
from appliance.api.limits import release_body
from appliance.api.problems import RETRY_SECONDS, Problem
from appliance.api.sdapi_book import Book
from appliance.api.sdapi_calls import Asked, Calls
from appliance.api.services import Services, patiently
from appliance.errors import QueueUnavailable
from sdapi import generation, listings, options, pnginfo, progress
from sdapi.errors import ApiError, failure, http_error, invalid_body
from sdapi.errors import Problem as BodyProblem
from sdapi.generation import Kind
from sdapi.offer import Offer
from sdapi.origin import OwnPages
from sdapi.reader import require_tellable

PREFIX: Final = "/sdapi/v1"
NO_STORE: Final = {"Cache-Control": "no-store"}
THINKERS: Final = 2
SEEN_SECONDS: Final = 60.0  # a worker that was there so lately will be there again


T = TypeVar("T")


class SdapiRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._book = Book(services)
        self._calls = Calls(services, self._book)
        # Of its own: those that everyone shares may all hang on a storage that does.
        self._thinking = ThreadPoolExecutor(THINKERS, "sdapi")

    def app(self) -> Starlette:
        """What is behind `PREFIX`."""
        return _shaped(
            [
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
            ]
        )

    def tasks(self) -> Starlette:
        """What upstream has outside of `PREFIX`."""
        return _shaped(
            [
                Route(TASK_PATHS[0], self.show_task, methods=["POST"]),
                Route(TASK_PATHS[1], self.show_pending),
            ]
        )

    async def _offer(self) -> Offer:
        """Of all workers together; with none there, nothing is known, and whatever is asked for waits for one."""
        workers = await patiently(self._services, self._services.queue.workers)
        seen = [worker for worker in workers if worker.heartbeat_age_seconds <= SEEN_SECONDS]
        return Offer.union([Offer.parse(worker.capabilities.as_dict()) for worker in seen])

    async def txt2img(self, request: Request) -> Response:
        return await self._generate("txt2img", request)

    async def img2img(self, request: Request) -> Response:
        return await self._generate("img2img", request)

    async def _generate(self, kind: Kind, request: Request) -> Response:
        caller = _caller(request)
        asked = await self._read(request)
        offer, chosen = await self._offer(), await self._book.options(caller.name)
        wanted = await self._think(generation.read, kind, asked.body, offer, chosen, asked.seed(caller))
        keeps, chosen = asked.body.get("override_settings_restore_afterwards") is False, wanted.chosen
        call = await self._think(self._calls.prepare, caller, wanted, f"{kind}:{asked.digest}")
        del asked, wanted  # their pictures would lie in memory for as long as the call waits
        if keeps:  # from now on, as upstream does: what is set while this call runs is newer
            await self._book.set_options(caller.name, chosen)
        answer = await self._calls.answer(call, partial(_gone, request), partial(release_body, request.state))
        headers = {"Content-Length": str(answer.size_bytes), **NO_STORE}
        return StreamingResponse(answer.chunks(self._services.disk), media_type="application/json", headers=headers)

    async def _read(self, request: Request) -> Asked:
        """Not by `request.body()`, which keeps it for as long as the request lasts."""
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
        return await self._think(_parse, content)

    async def _think(self, work: Callable[..., T], *arguments: object) -> T:
        """Off the loop: a large body takes its time."""
        return await asyncio.get_running_loop().run_in_executor(self._thinking, partial(work, *arguments))

    async def show_progress(self, request: Request) -> Response:
        """Of the caller's own call that runs, or of the one asked for: `id_task` is a task's or request's id."""
        call = await self._book.find(_caller(request).name, request.query_params.get("id_task"))
        now = await self._book.progress(call)
        skip = request.query_params.get("skip_current_image", "").lower() in ("true", "1")
        return JSONResponse(progress.show(now, skip_image=skip), headers=NO_STORE)

    async def interrupt(self, request: Request) -> Response:
        user = _caller(request).name
        call = await self._book.find(user, request.query_params.get("id_task"))
        if call is not None:
            await self._book.interrupted(user, call.note)
            for job in call.open_jobs:
                await self._cancel(job.job_id)
        return JSONResponse({})

    async def skip(self, request: Request) -> Response:
        user = _caller(request).name
        call = await self._book.find(user, None)
        if call is not None and call.running is not None:
            await self._cancel(call.running.job_id)
        return JSONResponse(None)

    async def _cancel(self, job_id: str) -> None:
        await patiently(self._services, lambda: self._services.queue.cancel(job_id))

    async def set_options(self, request: Request) -> Response:
        user, body = _caller(request).name, (await self._read(request)).body
        chosen = options.change(await self._book.options(user), body, await self._offer())
        await self._book.set_options(user, chosen)
        return JSONResponse(None)

    async def show_memory(self, request: Request) -> Response:
        """Of the worker with the most GPU memory left: what the next call may get."""
        workers = await patiently(self._services, self._services.queue.workers)
        gpus = [worker.gpu for worker in workers if worker.gpu and worker.heartbeat_age_seconds <= SEEN_SECONDS]
        best = max(gpus, key=_free_mib, default=None)
        return JSONResponse(listings.memory(None, best), headers=NO_STORE)

    async def read_png(self, request: Request) -> Response:
        return JSONResponse(await self._think(pnginfo.read, (await self._read(request)).body))

    async def do_nothing(self, request: Request) -> Response:
        return JSONResponse(listings.COMMANDS[request.url.path.rpartition("/")[2]])

    async def show_list(self, request: Request) -> Response:
        chosen = await self._book.options(_caller(request).name)
        told = listings.read(request.path_params["name"], await self._offer(), chosen, request.method)
        return JSONResponse(told, headers=NO_STORE)

    async def show_task(self, request: Request) -> Response:
        user, body = _caller(request).name, (await self._read(request)).body
        wanted = body.get("id_task") if isinstance(body, dict) else None
        if not isinstance(wanted, str):
            raise invalid_body([BodyProblem(("id_task",), "field required", "value_error.missing")])
        call = await self._book.find(user, wanted) if wanted else None
        completed = call is None and wanted in await self._book.ended(user)
        told = progress.show_task(await self._book.progress(call), completed=completed, request=body)
        return JSONResponse(told, headers=NO_STORE)

    async def show_pending(self, request: Request) -> Response:
        """Of the caller's own tasks."""
        waiting = [call.note.id for call in await self._book.calls(_caller(request).name) if call.running is None]
        return JSONResponse({"size": len(waiting), "tasks": waiting}, headers=NO_STORE)


def _shaped(routes: list[Route]) -> Starlette:
    return Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _on_api_error,
            Problem: _on_problem,
            QueueUnavailable: _on_unavailable,
            HTTPException: _on_http,
            Exception: _on_bug,
        },
        middleware=[Middleware(OwnPages)],
    )


def _caller(request: Request) -> Identity:
    return identity_of(request.state)


def _free_mib(gpu: Mapping[str, Any]) -> float:
    total, used = gpu.get("memory_total_mib"), gpu.get("memory_used_mib")
    return total - used if isinstance(total, (int, float)) and isinstance(used, (int, float)) else 0.0


def _parse(content: bytearray) -> Asked:
    """Empties `content`."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        text = content.decode()
        content.clear()
        body = json.loads(text)
        require_tellable(body)
    except (ValueError, RecursionError) as error:
        problem = BodyProblem((), f"is not JSON: {type(error).__name__}", "value_error.jsondecode")
        raise invalid_body([problem]) from error
    return Asked(body, digest)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for exactly this class
    return JSONResponse(error.body, error.status, error.headers)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for exactly this class
    return await _on_api_error(request, http_error(error.status, error.detail, error.headers))


async def _on_unavailable(request: Request, error: Exception) -> Response:
    text = "the queue cannot be reached now; nothing was lost"
    return await _on_api_error(request, failure(503, "ConnectionError", text, {"Retry-After": RETRY_SECONDS}))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for exactly this class
    return await _on_api_error(request, http_error(error.status_code, error.detail, error.headers))


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, so uvicorn logs it with its stack.
    return await _on_api_error(request, failure(500, type(error).__name__, "an internal error; see the api's log"))
