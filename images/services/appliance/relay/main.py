"""`appliance relay`: the app on uvicorn, which ends by itself on a signal."""

from __future__ import annotations

import logging
from types import FrameType

import httpx
import uvicorn
import uvloop

from appliance.logs import configure_logging
from appliance.relay.app import SEND_SECONDS, create_app
from appliance.relay.settings import RelaySettings

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Exits 0 on a signal; uvicorn's own would die of it again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def run(settings: RelaySettings) -> int:
    configure_logging(settings.common)
    return uvloop.run(_serve(settings))


async def _serve(settings: RelaySettings) -> int:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=16)) as client:
        config = uvicorn.Config(
            create_app(settings, client),
            host=settings.listen.host,
            port=settings.listen.port,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=round(SEND_SECONDS),
        )
        server = Server(config)
        log.info("telling %s", ", ".join(settings.robots) or "nobody")
        await server.serve()
    return 0 if server.started else 1
