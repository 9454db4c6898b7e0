"""`appliance api`: the app on uvicorn, with a bounded shutdown."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import NoReturn

import uvicorn
import uvloop

from appliance.api.app import create_app
from appliance.errors import QueueUnavailable
from appliance.http_server import Server
from appliance.lifecycle import cancel_tasks, leave, start_task
from appliance.logs import configure_logging
from appliance.process_figures import tell_process
from appliance.queue import Queue
from appliance.redis_link import RedisLink
from appliance.redis_watchdog import EXIT_CODE, watch_redis
from appliance.settings import ApiSettings

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 8
PATIENCE = (5, 10)
"""How many times longer than the others an api waits for a lost Redis before it starts afresh: until then it judges
keys and shows videos, and its replicas, which lost Redis with it, should not all be away at once."""


class WithoutDenials(logging.Filter):
    """uvicorn takes a WebSocket that was answered with a status (a wrong key: 401) for an app that forgot to answer.
    Where an app fails instead, uvicorn says so with another message."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.getMessage() != "ASGI callable returned without completing handshake."


def run(settings: ApiSettings) -> int:
    configure_logging(settings.common)
    logging.getLogger("uvicorn.error").addFilter(WithoutDenials())
    return uvloop.run(_serve_and_leave(settings))


async def _serve_and_leave(settings: ApiSettings) -> NoReturn:
    code = 1
    try:
        code = await _serve(settings)
    except Exception:
        log.exception("the api ends by a defect")
    finally:
        leave(code)


async def _serve(settings: ApiSettings) -> int:
    link = RedisLink(settings.redis)
    queue = Queue(link, settings.queue, settings.redis.replicas)
    try:
        await queue.connect()
    except QueueUnavailable as error:
        log.warning("starting without Redis, submissions answer 503 until it is there: %s", error)
    app = create_app(settings, queue)
    config = uvicorn.Config(
        app,
        host=settings.listen.host,
        port=settings.listen.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ws="websockets-sansio",
        ws_max_size=65536,
        # The gateway is the only client and tells where a request came from.
        proxy_headers=True,
        forwarded_allow_ips="*",
    )
    server = Server(config, app.state.services.stopping)
    serving = start_task("serve", server.serve())
    patience = settings.redis.watchdog_seconds * random.uniform(*PATIENCE)  # noqa: S311 - no secret
    watchdog = start_task("redis watchdog", watch_redis(link, patience))
    telling = start_task("process figures", tell_process(link, settings.common.node_name, "api"))
    await asyncio.wait({serving, watchdog}, return_when=asyncio.FIRST_COMPLETED)
    lost = not serving.done()
    server.stop()
    await serving
    await cancel_tasks(watchdog, telling)
    return EXIT_CODE if lost else 0 if server.started else 1
