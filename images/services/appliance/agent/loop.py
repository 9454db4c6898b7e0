"""The agent's life: wait until its webui is ready, claim one job, run it, again; drain when asked to stop."""

from __future__ import annotations

import asyncio
import logging

from appliance.agent.attempt import Attempt
from appliance.agent.ending import Failed
from appliance.agent.presence import Presence
from appliance.agent.trash import TrashCollector
from appliance.agent.webui import LOCAL_RUN, AnyWebui, WebuiError
from appliance.disk import Disk
from appliance.errors import QueueError, StorageError
from appliance.gpu import Gpu
from appliance.lifecycle import cancel_tasks, keep_heartbeat, start_task, wait_or_stop
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_outcomes
from appliance.queue import Asker, Claim, Nothing, Queue, Taker
from appliance.settings import AgentSettings
from appliance.storage import MARKER, has_marker

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
NOT_READY_SECONDS = 0.5
NOT_KNOWN_SECONDS = 0.05
PAUSE_MOST_SECONDS = 10.0
MARKER_SECONDS = 2.0
HINTS_SECONDS = 5.0
ORDER_SECONDS = 0.25
OUT_OF_SERVICE = {"drain": "drained", "quarantine": "quarantined"}
"""The orders that keep a worker from claiming jobs, and what it calls itself then."""


class Agent:
    def __init__(self, settings: AgentSettings, queue: Queue, webui: AnyWebui) -> None:
        self._settings = settings
        self._queue = queue
        self._webui = webui
        self._presence = Presence(settings, queue, webui)
        self._disk = Disk(settings.jobs_dir, settings.no_progress_seconds)
        self._taker = Taker(queue)
        self._next: Claim | Nothing | None = None
        """What came with the commit of the job before."""
        self._failures = 0
        self._attempt: Attempt | None = None
        self._marker: asyncio.Future[bool] | None = None
        self._drain_over = asyncio.Event()
        self._hand_back = asyncio.Event()
        self._readiness = OnceUntilChanged(log)
        self._redis = OnceUntilChanged(log)

    @property
    def busy(self) -> bool:
        """It holds a job, whose work would be lost with this process."""
        return self._attempt is not None

    async def run(self, stop: asyncio.Event) -> None:
        trash = TrashCollector(
            self._queue,
            self._disk,
            lambda: self._state == "idle" and not stop.is_set(),
            lambda: self._state == "running",
        )
        beside = [
            start_task("alive", keep_heartbeat("agent")),
            start_task("register", self._presence.keep()),
            start_task("gpu", self._presence.watch_gpu()),
            start_task("hints", self._follow_hints()),
            start_task("trash", trash.run()),
            start_task("drain", self._drain(stop)),
            start_task("orders", self._obey()),
        ]
        try:
            while not stop.is_set() or self._next is not None:
                await self._turn(stop)
        finally:
            await cancel_tasks(*beside)
            await self._presence.say_goodbye()

    @property
    def _state(self) -> str:
        return self._presence.state

    @_state.setter
    def _state(self, state: str) -> None:
        self._presence.state = state

    async def _turn(self, stop: asyncio.Event) -> None:
        answer, self._next = self._next, None
        if answer is None:
            answer = await self._ask(stop)
        if answer is None:
            return
        next_move = [self._work(answer, stop)] if isinstance(answer, Claim) else []
        await asyncio.gather(log_outcomes(self._queue, answer.outcomes), *next_move)

    async def _ask(self, stop: asyncio.Event) -> Claim | Nothing | None:
        """None after a pause, where this worker should have no job, or Redis does not answer."""
        if not self._presence.accepted:  # another agent of this name may be using the webui
            self._state = "unready"
            await wait_or_stop(stop, NOT_KNOWN_SECONDS)
            return None
        if self._presence.order in OUT_OF_SERVICE:
            self._state = OUT_OF_SERVICE[self._presence.order]
            await wait_or_stop(stop, ORDER_SECONDS)
            return None
        if not await self._is_ready():
            self._state = "unready"
            await wait_or_stop(stop, NOT_READY_SECONDS)
            return None
        self._state = "idle"
        try:
            answer = await self._taker.take(self._asker())
        except QueueError as error:
            self._redis.failing(f"cannot claim: {error}", event="queue_unavailable")
            await wait_or_stop(stop, RETRY_SECONDS)
            return None
        self._redis.fine("claiming works again", event="queue_available")
        return answer

    def _asker(self) -> Asker:
        ping = self._presence.ping
        return Asker(self._settings.worker, self._presence.boot_id, ping.capabilities, Gpu.of_ping(ping.gpu))

    async def _look_ahead(self) -> bool:
        """As good as `_is_ready` where storage is about to take a result."""
        ping = self._presence.ping = await self._webui.ping()
        return ping.ready and ping.busy is None

    def _next_asker(self) -> Asker | None:
        """None where the job that ends is to be the last one for now."""
        if self._state != "running" or self._presence.order in OUT_OF_SERVICE:
            return None
        return self._asker()

    async def _work(self, claim: Claim, stop: asyncio.Event) -> None:
        # Told so between asking and the answer: give the job back before anything has begun.
        if stop.is_set():
            self._stop_working()
        elif self._presence.order in OUT_OF_SERVICE:
            self._hand_back.set()
        self._state = "draining" if stop.is_set() else "running"
        about = fields(job_id=claim.job_id, attempt=claim.fence, event="claimed")
        log.info("job %s claimed", claim.job_id, extra=about)
        self._attempt = Attempt(
            self._settings,
            self._queue,
            self._webui,
            self._taker,
            claim,
            ping=self._presence.ping,
            looked_at=self._presence.looked_at,
            look_ahead=self._look_ahead,
            next_asker=self._next_asker,
            drain_over=self._drain_over,
            hand_back=self._hand_back,
        )
        try:
            ending = await self._attempt.run()
            self._next = self._attempt.following
        finally:
            self._attempt = None
        if isinstance(ending, Failed) and ending.worker_in_doubt:
            await self._pause_after(ending, stop)
        else:
            self._failures = 0

    async def _pause_after(self, ending: Failed, stop: asyncio.Event) -> None:
        """One failure may be the job's fault. Several in a row are this worker's: a sick one fails within
        milliseconds, always has a free hand, and would burn the whole queue past its healthy neighbours."""
        self._failures += 1
        if not ending.refused and self._failures == 1:
            return
        pause = min(PAUSE_MOST_SECONDS, 0.5 * 2 ** min(self._failures, 10))
        log.warning("%d attempts failed here in a row, waiting %g s: %s", self._failures, pause, ending.message)
        self._state = "unready"
        await wait_or_stop(stop, pause)

    async def _is_ready(self) -> bool:
        if not await self._has_storage():
            self._readiness.failing(f"no {MARKER} in {self._settings.jobs_dir}: storage is not mounted or not prepared")
            return False
        ping = self._presence.ping = await self._webui.ping()
        if not ping.ready:
            self._readiness.failing(f"the webui is not ready: {ping.status}", event="webui_not_ready")
            return False
        if ping.busy == LOCAL_RUN:  # of its own page or A1111 API: somebody waits for it there
            self._readiness.failing("the webui works on a run of its own", event="webui_busy")
            return False
        if ping.busy is not None:
            await self._free_webui(ping.busy)
            return False
        self._readiness.fine("the webui is ready", event="webui_ready")
        return True

    async def _has_storage(self) -> bool:
        """One look at a time: on a mount that hangs, each would keep a thread."""
        if self._marker is None or self._marker.done():
            self._marker = start_task("marker", self._disk.do(has_marker))
        await asyncio.wait({self._marker}, timeout=MARKER_SECONDS)
        try:
            return self._marker.done() and self._marker.result()
        except StorageError:
            return False

    async def _free_webui(self, job_id: str) -> None:
        """This agent holds no job, so whatever its webui works on is a leftover that nobody waits for."""
        log.warning("the webui still works on %s: interrupting it", job_id, extra=fields(job_id=job_id))
        try:
            await self._webui.interrupt(job_id)
        except WebuiError as error:
            self._readiness.failing(f"the webui cannot be freed: {error}")

    async def _drain(self, stop: asyncio.Event) -> None:
        await stop.wait()
        if self._state == "running":
            self._state = "draining"
            log.info("draining: the running job gets %g s", self._settings.drain_seconds)
        await asyncio.sleep(self._settings.drain_seconds)
        self._stop_working()

    def _stop_working(self) -> None:
        self._drain_over.set()
        self._hand_back.set()

    async def _obey(self) -> None:
        """A drained worker ends the job it has, a quarantined one hands it back."""
        while True:
            await self._presence.told.wait()
            self._presence.told.clear()
            if self._presence.order == "quarantine":
                self._hand_back.set()
            elif self._presence.order not in OUT_OF_SERVICE and not self._drain_over.is_set():
                self._hand_back.clear()

    async def _follow_hints(self) -> None:
        """Only makes the next heartbeat come sooner; without it a cancelled job is stopped all the same."""
        while True:
            try:
                async for job_id in self._queue.cancel_hints():
                    if self._attempt is not None and self._attempt.job_id == job_id:
                        self._attempt.beat_soon()
            except Exception:
                log.exception("following the cancel hints failed")
            await asyncio.sleep(HINTS_SECONDS)
