"""The worker's own record in the queue: who it is, what it can do, and how its GPU is."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid

from async_timeout import timeout

from appliance.agent.webui import AnyWebui, Ping
from appliance.errors import QueueError
from appliance.job import Capabilities
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_outcomes
from appliance.queue import Queue
from appliance.settings import AgentSettings

log = logging.getLogger(__name__)

GPU_SECONDS = 2.0
LOOK_SECONDS = 2.0
LEFT_SECONDS = 10.0


class Presence:
    def __init__(self, settings: AgentSettings, queue: Queue, webui: AnyWebui) -> None:
        self._settings = settings
        self._queue = queue
        self._webui = webui
        self._name = OnceUntilChanged(log)
        self._can: Capabilities | None = None
        self.boot_id = uuid.uuid4().hex
        self.state = "unready"
        self._ping = Ping(ready=False, status="not asked yet")
        self.looked_at = time.monotonic()
        """When the webui was last asked whether it is ready."""
        self.accepted = False
        self.order = ""
        """What has been ordered about this worker: drain, quarantine, canary or nothing."""
        self.told = asyncio.Event()
        """Set whenever the order has changed."""
        self.replaced = False
        """By a younger process of the same name, which has the GPU now: in turns, they would take each other's jobs."""

    @property
    def ping(self) -> Ping:
        """What the webui said last."""
        return self._ping

    @ping.setter
    def ping(self, ping: Ping) -> None:
        self._ping = ping
        self.looked_at = time.monotonic()
        # A webui that starts again is out for a moment; what it can do is judged by what it was.
        if ping.ready or self._can is None:
            self._can = ping.capabilities

    async def keep(self) -> None:
        while True:
            try:
                await self._register()
            except QueueError as error:
                log.debug("not registered: %s", error)
            except Exception:
                log.exception("registering failed")
            await asyncio.sleep(self._queue.settings.beat_seconds)
            if self.replaced:
                await asyncio.sleep(LOOK_SECONDS)

    async def watch_gpu(self) -> None:
        """While a job runs nobody else asks the webui, and that is when its memory is worth knowing."""
        while True:
            await asyncio.sleep(GPU_SECONDS)
            if self.state in ("running", "draining"):
                later = await self._webui.ping()
                self._ping = self._ping.with_gpu_of(later)

    async def say_goodbye(self) -> None:
        self.state = "stopped"
        try:
            async with timeout(1.0):
                await self._register()
        except (QueueError, asyncio.TimeoutError) as error:
            log.debug("left without a word: %s", error)

    async def _register(self) -> None:
        ping, more = self.ping, {}
        if self._can is not None:
            more["capabilities"] = json.dumps(self._can.as_dict())
        answer = await self._queue.register(
            self._settings.worker,
            boot_id=self.boot_id,
            state=self.state,
            engine=ping.engine,
            fingerprint=ping.fingerprint,
            synthetic="1" if ping.synthetic else "0",
            gpu=json.dumps(ping.gpu),
            **more,
        )
        self.accepted, self.replaced = answer.number > 0, answer.number <= 0
        await log_outcomes(self._queue, answer.outcomes)
        if answer.order != self.order:
            log.info("ordered: %s", answer.order or "back to work", extra=fields(event="ordered"))
            self.order = answer.order
            self.told.set()
        if self.accepted:
            self._name.fine(f"this is the only agent called {self._settings.worker}")
            return
        self._name.failing(
            f"another agent is called {self._settings.worker} and started later: waiting until it is gone. "
            "Give each GPU's agent a name of its own",
            event="worker_replaced",
        )
        if await self._heir_has_left():
            self.boot_id = uuid.uuid4().hex  # the queue takes nobody back under an old one

    async def _heir_has_left(self) -> bool:
        heirs = [worker for worker in await self._queue.workers() if worker.name == self._settings.worker]
        return all(heir.state == "stopped" or heir.heartbeat_age_seconds > LEFT_SECONDS for heir in heirs)
