"""The heartbeats of one attempt, and what the queue answers to them."""

from __future__ import annotations

import asyncio
import logging
import time

from async_timeout import timeout

from appliance.agent.ending import Ending, Failed, Fenced
from appliance.agent.watch import Progress
from appliance.errors import QueueError
from appliance.job import Reason
from appliance.logs import OnceUntilChanged
from appliance.queue import BeatAnswer, Claim, FailKind, Queue

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0


class Lease:
    """`told` is done as soon as the queue says that the work is not wanted any more."""

    def __init__(self, queue: Queue, claim: Claim, progress: Progress) -> None:
        self._queue = queue
        self._claim = claim
        self._progress = progress
        self._now = asyncio.Event()
        self._next_preview = 0.0
        self._redis = OnceUntilChanged(log)
        self.told: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    async def keep(self) -> None:
        """Beats until fenced. Without Redis the work goes on: the fence is what makes that safe."""
        about = {"job_id": self._claim.job_id, "attempt": self._claim.fence}
        while True:
            self._now.clear()
            try:
                answer = await self.beat()
            except QueueError as error:
                self._redis.failing(f"heartbeats do not reach Redis: {error}", **about)
            except Exception as error:
                # Whatever it was, a job must not lose its worker to it.
                self._redis.failing(f"heartbeats fail: {error!r}", **about)
            else:
                self._redis.fine("heartbeats reach Redis again", **about)
                self._hear(answer)
                if answer is BeatAnswer.FENCED:
                    return
            await self._pause()

    def beat_soon(self) -> None:
        self._now.set()

    async def beat(self) -> BeatAnswer:
        progress = self._progress
        answer = await self._queue.beat(
            self._claim,
            progress.step,
            progress.total_steps,
            progress.phase,
            memory=progress.memory,
            resumed_from=progress.resumed_from if progress.started else None,
            checkpoint_step=progress.checkpoint_step if progress.started else None,
            parameters=progress.parameters or None,
            preview=self._preview_to_show(),
        )
        progress.parameters = ""
        return answer

    def _preview_to_show(self) -> str | None:
        """Seldom: each is written to the disks of all Redis."""
        picture, now = self._progress.preview, time.monotonic()
        if not picture or now < self._next_preview:
            return None
        self._progress.preview, self._next_preview = "", now + PREVIEW_SECONDS
        return picture

    def _hear(self, answer: BeatAnswer) -> None:
        if answer is BeatAnswer.OK or self.told.done():
            return
        self.told.set_result(Fenced() if answer is BeatAnswer.FENCED else cancelled())

    async def _pause(self) -> None:
        try:
            async with timeout(self._queue.settings.beat_seconds):
                await self._now.wait()
        except asyncio.TimeoutError:
            return


def cancelled() -> Failed:
    return Failed(FailKind.CANCELLED, Reason.CANCELLED, "cancelled while running")
