"""`python -m appliance controller`: one watching task per target, one that keeps the gateway informed."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import uvloop

from appliance.controller.chronicle import Chronicle
from appliance.controller.facts import Facts
from appliance.controller.gateway import Gateway, PushError
from appliance.controller.policy import Rules, Target
from appliance.controller.probe import Pace, Prober
from appliance.controller.reconcile import Reconciler
from appliance.controller.settings import ControllerSettings, read_controller_settings
from appliance.lifecycle import cancel_tasks, start_task, stop_on_signals
from appliance.logs import configure_logging, fields
from appliance.process_figures import tell_process
from appliance.queue.nodes import NodeBook
from appliance.redis_link import RedisLink

log = logging.getLogger(__name__)
ORDER_TRIES, ORDER_PAUSE_SECONDS = 5, 0.2


def run() -> None:
    settings = read_controller_settings(os.environ)
    configure_logging(settings.common)
    uvloop.run(control(settings))


async def control(settings: ControllerSettings) -> None:
    """Works until a signal asks to stop. A task that fails ends the process: Docker starts it afresh, and the gateway
    keeps the last state meanwhile."""
    stop = asyncio.Event()
    name = settings.common.node_name
    link = RedisLink(settings.redis)
    book = NodeBook(link, settings.redis.replicas)
    facts, chronicle = Facts(book), Chronicle(book, name)
    gateway = Gateway(settings.gateway_socket)
    await remember_orders(facts, gateway)
    reconciler = Reconciler(settings.targets, Rules(), gateway, facts, name=name, on_change=chronicle.tell)
    log.info("watching %d targets", len(settings.targets))
    with stop_on_signals(stop):
        stopping = start_task("stop", stop.wait())
        tasks = [
            start_task("reconcile", reconciler.run()),
            start_task("facts", facts.run()),
            start_task("chronicle", chronicle.run(reconciler.view)),
            start_task("process figures", tell_process(link, name, "controller")),
        ]
        for position, target in enumerate(settings.targets):
            delay = settings.pace.interval_seconds * position / len(settings.targets)
            tasks.append(start_task(f"watch-{target.name}", watch(target, settings.pace, reconciler, delay)))
        done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        await cancel_tasks(stopping, *tasks)
        await link.close()
    for task in done - {stopping}:
        task.result()
    log.info("stopped")


async def remember_orders(facts: Facts, gateway: Gateway) -> None:
    """Before anything is pushed, which would make the gateway forget them."""
    for _ in range(ORDER_TRIES):
        try:
            return facts.remember(await gateway.orders())
        except PushError as error:
            why = error
        await asyncio.sleep(ORDER_PAUSE_SECONDS)
    log.warning("the gateway does not tell what was ordered before: %s", why, extra=fields(event="orders_unknown"))


async def watch(target: Target, pace: Pace, reconciler: Reconciler, delay: float) -> None:
    """Probes at a fixed pace; one that took longer than the interval is followed at once. The targets start spread
    over the interval."""
    prober = Prober(target, pace)
    due = time.monotonic() + delay
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + pace.interval_seconds, time.monotonic())
        seen = await prober.probe()
        if seen is not None:
            reconciler.note(target, seen)
