"""`appliance agent`: settings in, exit code out."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import uvloop

from appliance.agent.a1111 import A1111
from appliance.agent.a1111.front import serve_ping
from appliance.agent.loop import Agent
from appliance.agent.webui import AnyWebui, Webui
from appliance.errors import QueueUnavailable
from appliance.lifecycle import cancel_tasks, start_task, stop_on_signals
from appliance.logs import configure_logging
from appliance.process_figures import tell_process
from appliance.queue import Queue
from appliance.redis_link import RedisLink
from appliance.redis_watchdog import EXIT_CODE, watch_redis
from appliance.settings import AgentSettings

log = logging.getLogger(__name__)


def run(settings: AgentSettings) -> int:
    configure_logging(settings.common, settings.worker)
    return uvloop.run(_serve(settings))


async def _serve(settings: AgentSettings) -> int:
    link = RedisLink(settings.redis)
    queue = Queue(link, settings.queue)
    webui = _make_webui(settings)
    stop = asyncio.Event()
    try:
        async with AsyncExitStack() as around:
            around.enter_context(stop_on_signals(stop))
            if isinstance(webui, A1111) and settings.a1111 and settings.a1111.listen:
                await around.enter_async_context(serve_ping(settings.a1111.listen, webui.facts))
            try:
                await queue.connect()
            except QueueUnavailable as error:
                log.warning("starting without Redis: %s", error)
            agent = Agent(settings, queue, webui)
            watchdog = start_task("redis watchdog", _watch(link, settings.redis.watchdog_seconds, agent, stop))
            service = f"agent-{settings.worker.rpartition('/')[2]}"
            telling = start_task("process figures", tell_process(link, settings.common.node_name, service))
            try:
                await agent.run(stop)
            finally:
                lost = watchdog.done()
                await cancel_tasks(watchdog, telling)
    finally:
        await webui.close()
        await queue.close()
    log.info("stopped")
    return EXIT_CODE if lost else 0


def _make_webui(settings: AgentSettings) -> AnyWebui:
    if settings.a1111 is not None:
        return A1111(settings.a1111, settings.jobs_dir, settings.no_progress_seconds)
    return Webui(settings.webui_url, settings.cluster_token)


async def _watch(link: RedisLink, seconds: float, agent: Agent, stop: asyncio.Event) -> None:
    await watch_redis(link, seconds, lambda: agent.busy)
    stop.set()
