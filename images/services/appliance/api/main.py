"""`appliance api`: the app on uvicorn, with a bounded shutdown."""

from __future__ import annotations

import asyncio
import logging
from types import FrameType

import uvicorn

from appliance.api.app import create_app
from appliance.errors import QueueUnavailable
from appliance.logs import configure_logging
from appliance.queue import Queue
from appliance.redis_link import RedisLink
from appliance.settings import ApiSettings

log = logging.getLogger(__name__)
SHUTDOWN_SECONDS = 8


class Server(uvicorn.Server):
    """Ends event streams as soon as a signal comes, and exits 0: uvicorn itself would die of the signal again."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._stopping.set)


def run(settings: ApiSettings) -> int:
    configure_logging(settings.common)
    return asyncio.run(_serve(settings))


async def _serve(settings: ApiSettings) -> int:
    queue = Queue(RedisLink(settings.redis), settings.queue, settings.redis.replicas)
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
    await server.serve()
    return 0 if server.started else 1
