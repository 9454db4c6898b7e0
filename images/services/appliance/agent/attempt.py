"""One attempt at one job, from the lease to the commit.

The order is the promise: COMMIT is looked for before any work; a beat confirms the lease before COMMIT is created;
COMMIT is created exclusively; Redis is told last, again and again. A zombie finds either COMMIT or its fence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from async_timeout import timeout

from appliance import storage
from appliance.agent.ending import (
    Ending,
    Failed,
    Fenced,
    Finished,
    crashed,
    of_done_event,
    of_error_event,
    of_webui_error,
    refused,
    released,
    too_late,
)
from appliance.agent.lease import Lease, cancelled
from appliance.agent.made import Made, made_of
from appliance.agent.memory import after_oom
from appliance.agent.order import Order, make_order
from appliance.agent.patience import GaveUp, ask_until_answered
from appliance.agent.watch import Progress, Watchdog
from appliance.agent.webui import AnyWebui, Ping, WebuiBroke, WebuiError, WebuiRefused
from appliance.disk import Disk
from appliance.errors import QueueError, StorageError
from appliance.job import JobState, Reason
from appliance.lifecycle import cancel_tasks, start_task
from appliance.logs import fields
from appliance.outcome_log import log_job_result
from appliance.queue import Asker, BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue, Taker
from appliance.settings import AgentSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

# Until an engine that does not obey has been killed: nothing else can be done here before that.
STOP_SECONDS = 15.0
LAST_EVENT_SECONDS = 1.0
# The job came at once. After a wait for it, what the webui said before may not be true any more.
FRESH_SECONDS = 0.05
ASK_SECONDS = 1.0
READING_SECONDS = 0.25
TIDY_SECONDS = 0.5  # nobody renews the lease of the job that came with the commit meanwhile


class Attempt:
    """`run` never raises for anything a job, a webui, storage or Redis can do. `ping` is what the webui said before
    the claim, at `looked_at`; `hand_back` asks for the job to go on elsewhere, `drain_over` says that this process is
    about to end. Where `look_ahead` says that the webui could go on, `next_asker` gets the next job with this one's
    commit, if it wants one: `following`."""

    def __init__(
        self,
        settings: AgentSettings,
        queue: Queue,
        webui: AnyWebui,
        taker: Taker,
        claim: Claim,
        *,
        ping: Ping,
        looked_at: float,
        look_ahead: Callable[[], Coroutine[Any, Any, bool]],
        next_asker: Callable[[], Asker | None],
        drain_over: asyncio.Event,
        hand_back: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._webui = webui
        self._taker = taker
        self._claim = claim
        self._ping = ping
        self._looked_at = looked_at
        self._look_ahead = look_ahead
        self._next_asker = next_asker
        self.following: Claim | Nothing | None = None
        self._drain_over = drain_over
        self._hand_back_now = hand_back
        self._disk = Disk(settings.jobs_dir, settings.no_progress_seconds)
        self._progress = Progress()
        self._made = Made()
        self._lease = Lease(queue, claim, self._progress)

    @property
    def job_id(self) -> str:
        return self._claim.job_id

    def beat_soon(self) -> None:
        self._lease.beat_soon()

    async def run(self) -> Ending:
        order = self._make_order()
        beat = start_task("beat", self._lease.keep())
        try:
            ending = await self._begin(order)
            return await self._settle(ending)
        except GaveUp as error:
            log.error("job %s: %s", self._claim.job_id, error, extra=self._fields())
            return released(str(error))
        except Exception as error:
            # A defect that one job brings out must not cost the queue this worker, and with the job's next attempts
            # every other. Untold, the job goes on with the next claim: it says that this one is forgotten.
            log.exception("job %s: the attempt failed by a defect", self._claim.job_id, extra=self._fields())
            return crashed(f"the agent failed: {error!r}", Reason.UNKNOWN)
        finally:
            await cancel_tasks(beat)

    # --- the work ------------------------------------------------------------------------------------------------

    def _make_order(self) -> Order | Failed:
        try:
            order = make_order(self._claim, plain=self._ping.capabilities is None)
        except (ValueError, RecursionError) as error:
            return crashed(f"the job's request cannot be read: {error}", Reason.UNKNOWN)
        self._progress.memory, self._progress.parameters = order.memory.label, order.parameters
        self._made = made_of(order.request, self._ping.capabilities)
        return order

    async def _begin(self, order: Order | Failed) -> Ending:
        """A disk that hangs must hold up neither a drain nor a cancel."""
        look: asyncio.Task[Ending | None] = start_task("look", self._look())
        drain = start_task("drain", self._hand_back_now.wait())
        try:
            await asyncio.wait({look, drain, self._lease.told}, return_when=asyncio.FIRST_COMPLETED)
            found = look.result() if look.done() else None
            if found is not None:
                return found
            if self._lease.told.done():
                return self._lease.told.result()
            if self._hand_back_now.is_set():
                return self._released()
            if self._claim.deadline_seconds is not None and self._claim.deadline_seconds <= 0:
                return too_late("its deadline passed before it was made")  # handed out for the look alone
        finally:
            await cancel_tasks(look, drain)
        return order if isinstance(order, Failed) else await self._work(order)

    async def _look(self) -> Ending | None:
        job_id, fence = self._claim.job_id, self._claim.fence
        waited = time.monotonic() - self._looked_at > FRESH_SECONDS
        asking = start_task("ask", self._webui.ping()) if waited else None
        try:
            winner = await self._disk.do(lambda root: storage.read_commit(root, job_id))
            if winner is not None:
                return Finished(winner.files)  # its own COMMIT, or another attempt's: _commit sorts it out
            await self._disk.do(lambda root: storage.make_attempt_folder(root, job_id, fence))
            if asking is not None:
                await asyncio.wait({asking}, timeout=ASK_SECONDS)
                if not asking.done():
                    return refused("the webui does not answer any more")
                if not (now := asking.result()).ready or now.busy is not None:
                    return refused(f"the webui is not ready any more: {now.busy or now.status}")
        except StorageError as error:
            return refused(f"storage: {error}")
        finally:
            if asking is not None:
                await cancel_tasks(asking)
        return None

    async def _work(self, order: Order) -> Ending:
        stream: asyncio.Task[Ending] = start_task("stream", self._stream(order))
        watchdog = Watchdog(self._progress, self._settings, self._claim.deadline_seconds)
        watch: asyncio.Task[Ending] = start_task("watch", watchdog.run())
        drain = start_task("drain", self._hand_back_now.wait())
        try:
            await asyncio.wait({stream, watch, drain, self._lease.told}, return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                return stream.result()
            if self._lease.told.done():
                return self._lease.told.result()
            if watch.done():
                return watch.result()
            return await self._hand_back(stream)
        finally:
            await cancel_tasks(stream, watch, drain)

    async def _hear_it_read(self) -> None:
        """An order full of pictures takes seconds to read, and only then its stream begins."""
        while True:
            await asyncio.sleep(READING_SECONDS)
            if (await self._webui.ping()).ready:
                self._progress.heard()

    async def _hand_back(self, stream: asyncio.Task[Ending]) -> Ending:
        """The next worker goes on from the step that this one has reached; a result that is just ready counts."""
        claim, progress = self._claim, self._progress
        try:
            step = await self._webui.interrupt(claim.job_id, claim.fence, checkpoint=True, seconds=STOP_SECONDS)
            progress.checkpoint_step = max(step or 0, progress.checkpoint_step)
            log.info("job %s handed back at step %d", claim.job_id, progress.checkpoint_step, extra=self._fields())
        except WebuiError as error:
            log.warning("job %s: no checkpoint at the end: %s", claim.job_id, error, extra=self._fields())
        told = self._lease.told
        await asyncio.wait({stream, told}, timeout=LAST_EVENT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if stream.done() and isinstance(stream.result(), Finished):
            return stream.result()
        if told.done():
            return told.result()
        await self._say_where()
        return self._released()

    def _released(self) -> Failed:
        return released(f"its worker is being {'stopped' if self._drain_over.is_set() else 'taken out of service'}")

    async def _say_where(self) -> None:
        try:
            await self._lease.beat()
        except QueueError as error:
            log.debug("the last step was not told: %s", error)

    async def _stream(self, order: Order) -> Ending:
        self._progress.order_sent()
        reading = start_task("reading", self._hear_it_read())
        try:
            async with self._webui.generate(order.body) as events:
                await cancel_tasks(reading)
                async for event in events:
                    self._progress.note(event)
                    kind = event.get("event")
                    if kind == "started":
                        self._lease.beat_soon()  # short attempts, too, leave in the history where they began
                    elif kind == "done":
                        return of_done_event(event)
                    elif kind == "error":
                        return after_oom(of_error_event(event), order.request, order.memory)
                raise WebuiBroke("the webui's stream ended without a result")
        except WebuiRefused as error:
            return await self._judge_refusal(error)
        except WebuiError as error:
            return of_webui_error(error, started=self._progress.started)
        except Exception as error:
            log.exception("reading the webui's stream failed", extra=self._fields())
            return crashed(f"reading the webui's stream failed: {error!r}", Reason.UNKNOWN)
        finally:
            await cancel_tasks(reading)

    async def _judge_refusal(self, error: WebuiRefused) -> Ending:
        """A webui that was started again with other models since the claim speaks about itself, not about the job."""
        ending = of_webui_error(error, started=self._progress.started)
        if ending.kind is not FailKind.PERMANENT:
            return ending
        now = await self._webui.ping()
        if now.ready and now.fingerprint == self._ping.fingerprint:
            return ending
        return refused(f"the webui has changed since the claim: {error.detail}")

    # --- the end -------------------------------------------------------------------------------------------------

    async def _settle(self, ending: Ending) -> Ending:
        if isinstance(ending, Finished):
            ending = await self._finish(ending)
        if isinstance(ending, Finished):
            return ending
        if isinstance(ending, Fenced):
            log.warning("job %s is somebody else's now", self._claim.job_id, extra=self._fields(event="fenced"))
        if isinstance(ending, Failed) and ending.kind is FailKind.ERROR and ending.reason is Reason.UNKNOWN:
            await self._distrust_checkpoint()
        state = await self._report(ending) if isinstance(ending, Failed) else None
        await self._clean_up(ending, state)
        return ending

    async def _distrust_checkpoint(self) -> None:
        """The steps themselves may be what fails (NaN, for one): the next attempt, or a replay, begins anew. Before the
        queue is told: the next worker reads the folder as soon as it has the job."""
        try:
            if await self._lease.beat() is BeatAnswer.FENCED:
                return  # a newer attempt may go on from it
        except QueueError as error:
            log.debug("not asked whose the checkpoint is: %s", error)
        try:
            await self._disk.do(lambda root: storage.remove_checkpoint(root, self._claim.job_id, self._claim.fence))
        except StorageError as error:
            log.info("the checkpoint stays: %s", error, extra=self._fields())

    async def _report(self, failed: Failed) -> JobState | None:
        """Where the job went from here, or None where this attempt has no say any more."""
        claim = self._claim
        answer = await self._until_answered(
            lambda: self._queue.fail(claim, failed.kind, failed.reason.value, failed.message, where=failed.where)
        )
        if answer.status == "fenced":
            log.warning("job %s was taken away before its failure was told", claim.job_id, extra=self._fields())
            return None
        kind = "cancelled" if answer.state is JobState.CANCELLED else failed.kind.value
        self._log_result(kind, answer.state, failed)
        return answer.state

    async def _finish(self, finished: Finished) -> Ending:
        """The webui's next look and this job's last steps go side by side."""
        ahead = start_task("look ahead", self._look_ahead()) if self._claim.more else None
        try:
            return await self._commit(finished, ahead)
        finally:
            if ahead is not None:
                await cancel_tasks(ahead)

    async def _commit(self, finished: Finished, ahead: asyncio.Task[bool] | None) -> Ending:
        claim = self._claim
        try:
            winner = await self._disk.do(lambda root: storage.read_commit(root, claim.job_id))
            if winner is None:
                if wrong := await self._find_wrong_file(finished):
                    return wrong
                # Tells the queue, too: losing this worker from here on says nothing against the job.
                self._progress.phase = "commit"
                answer = await self._until_answered(self._lease.beat)
                if answer is BeatAnswer.FENCED:
                    return Fenced()
                if answer is BeatAnswer.CANCEL:
                    return cancelled()
                mine = storage.new_commit(claim.job_id, claim.fence, self._settings.worker, finished.files)
                winner = await self._disk.do(lambda root: storage.write_commit(root, mine))
        except StorageError as error:
            # Perhaps COMMIT is there all the same, or will be when a hung disk moves again: this attempt's files stay,
            # and the next attempt looks for COMMIT first.
            return refused(f"storage: {error}")
        goes_on = ahead is not None and ahead.done() and ahead.exception() is None and ahead.result()
        return await self._tell_commit(winner, self._next_asker() if goes_on else None)

    async def _find_wrong_file(self, finished: Finished) -> Failed | None:
        claim = self._claim
        try:
            await self._disk.do(lambda root: storage.verify_files(root, claim.job_id, claim.fence, finished.files))
        except storage.WrongFileError as error:
            return Failed(FailKind.ERROR, Reason.UNKNOWN, f"storage: {error}")
        return None

    async def _tell_commit(self, winner: storage.Commit, asker: Asker | None) -> Ending:
        claim, made = self._claim, self._made
        adopted = winner.fence != claim.fence
        text = winner.to_json()
        answer, self.following = await self._until_answered(
            lambda: self._taker.commit(
                claim, text, asker, adopted=adopted, model=made.model, video_seconds=made.video_seconds
            )
        )
        if answer is CommitAnswer.FENCED:
            return Fenced()
        if adopted:
            log.info("job %s: adopted attempt %d", claim.job_id, winner.fence, extra=self._fields(event="adopted"))
        self._log_result("done", JobState.DONE, None)
        await self._tidy(winner)
        return Finished(winner.files)

    async def _tidy(self, winner: storage.Commit) -> None:
        try:
            async with timeout(TIDY_SECONDS):
                await self._disk.do(lambda root: storage.remove_losers(root, winner))
        except (StorageError, asyncio.TimeoutError) as error:
            log.info("losing attempts stay for now: %s", error or "no answer", extra=self._fields())

    async def _clean_up(self, ending: Failed | Fenced, state: JobState | None) -> None:
        """After the queue knows: make sure the webui is free, and drop what this attempt wrote."""
        if isinstance(ending, Failed) and ending.refused:
            return
        job_id, fence = self._claim.job_id, self._claim.fence
        try:
            await self._webui.interrupt(job_id, fence, seconds=STOP_SECONDS)
            await self._disk.do(lambda root: storage.remove_attempt(root, job_id, fence))
            if state is JobState.CANCELLED:
                await self._disk.do(lambda root: storage.remove_checkpoint(root, job_id, fence))
        except (WebuiError, StorageError) as error:
            log.info("job %s: not cleaned up: %s", job_id, error, extra=self._fields())

    # --- tools ---------------------------------------------------------------------------------------------------

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await ask_until_answered(ask, self._drain_over, self._context())

    def _log_result(self, kind: str, state: JobState | None, failed: Failed | None) -> None:
        log_job_result(
            self._claim.job_id,
            state,
            kind=kind,
            worker=self._settings.worker,
            attempt=self._claim.fence,
            body=self._claim.body,
            reason=failed.reason.value if failed else None,
            message=failed.message if failed else None,
            seconds=time.monotonic() - self._progress.began,
        )

    def _context(self) -> dict[str, object]:
        return {"job_id": self._claim.job_id, "attempt": self._claim.fence}

    def _fields(self, **more: object) -> dict[str, dict[str, object]]:
        return fields(**self._context(), **more)
