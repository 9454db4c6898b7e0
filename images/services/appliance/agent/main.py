"""`appliance agent`: settings in, exit code out."""

from __future__ import annotations

import asyncio
import logging

from appliance.agent.loop import Agent
from appliance.agent.webui import Webui
from appliance.errors import QueueUnavailable
from appliance.lifecycle import stop_on_signals
from appliance.logs import configure_logging
from appliance.queue import Queue
from appliance.redis_link import RedisLink
from appliance.settings import AgentSettings

log = logging.getLogger(__name__)


def run(settings: AgentSettings) -> int:
    configure_logging(settings.common, settings.worker)
    return asyncio.run(_serve(settings))


async def _serve(settings: AgentSettings) -> int:
    queue = Queue(RedisLink(settings.redis), settings.queue)
    webui = Webui(settings.webui_url, settings.cluster_token)
    stop = asyncio.Event()
    try:
        with stop_on_signals(stop):
            try:
                await queue.connect()
            except QueueUnavailable as error:
                log.warning("starting without Redis: %s", error)
            await Agent(settings, queue, webui).run(stop)
    finally:
        await webui.close()
        await queue.close()
    log.info("stopped")
    return 0
