"""Puts the API together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from appliance.api import alerts, cluster, errors, events, jobs, nodes, results, trace
from appliance.api.auth import TASK_PATHS, Authenticate, KeyRing
from appliance.api.limits import BodyLimit
from appliance.api.openapi import install_openapi
from appliance.api.problems import install_handlers
from appliance.api.readiness import Readiness
from appliance.api.sdapi import PREFIX, SdapiRoutes
from appliance.api.services import Services
from appliance.api.ticker import Ticker
from appliance.causes.desk import Desk
from appliance.disk import Disk, Threads
from appliance.lifecycle import cancel_tasks, start_task
from appliance.queue import Queue
from appliance.settings import ApiSettings

STORAGE_SECONDS = 5.0
STORAGE_THREADS = 16
PARTS = (jobs, events, results, cluster, errors, trace, nodes, alerts)


def create_app(settings: ApiSettings, queue: Queue) -> FastAPI:
    stopping = asyncio.Event()
    services = Services(
        settings=settings,
        queue=queue,
        ticker=Ticker(queue, settings.common.node_name),
        causes=Desk(queue, stopping),
        readiness=Readiness(queue),
        disk=Disk(settings.jobs_dir, STORAGE_SECONDS, Threads(STORAGE_THREADS)),
        stopping=stopping,
    )
    app = FastAPI(
        title="AnimateDiff HA appliance",
        version="1",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(services),
    )
    app.state.services = services
    for part in PARTS:
        app.include_router(part.router)
    sdapi = SdapiRoutes(services)
    app.mount(PREFIX, sdapi.app())
    tasks = sdapi.tasks()
    app.router.routes.extend(Route(path, tasks) for path in TASK_PATHS)
    app.state.routes = [route for part in PARTS for route in part.router.routes]
    install_handlers(app)
    install_openapi(app)
    # The last one added runs first: who is asking comes before how much they send.
    app.add_middleware(BodyLimit)
    app.add_middleware(Authenticate, ring=KeyRing(settings.api_keys_file))
    return app


def _lifespan(services: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ticker = start_task("ticker", services.ticker.run())
        try:
            yield
        finally:
            services.stopping.set()
            await cancel_tasks(ticker)
            await services.causes.close()
            await services.readiness.close()
            await services.queue.close()

    return lifespan
