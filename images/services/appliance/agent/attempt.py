"""One attempt at one job, from the lease to the commit.

The order is the promise: COMMIT is looked for before any work; a beat confirms the lease before COMMIT is created;
COMMIT is created exclusively; Redis is told last, again and again. A zombie finds either COMMIT or its fence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

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
)
from appliance.agent.watch import Progress, Watchdog
from appliance.agent.webui import Webui, WebuiBroke, WebuiError
from appliance.errors import QueueError, QueueUnavailable, StorageError, UnsafeRedis
from appliance.job import JobState, Reason, attempt_folder
from appliance.lifecycle import cancel_tasks, start_task
from appliance.logs import OnceUntilChanged, fields
from appliance.outcome_log import log_job_result
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Queue
from appliance.settings import AgentSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_FIRST_SECONDS = 0.2
RETRY_MOST_SECONDS = 3.0
RETRY_TOTAL_SECONDS = 3600.0
LAST_WORDS_SECONDS = 3.0


class GaveUp(QueueUnavailable):
    """Redis did not answer for as long as this process could wait; the lease and COMMIT speak for the job."""


class Attempt:
    """`run` never raises for anything a job, a webui, storage or Redis can do."""

    def __init__(
        self, settings: AgentSettings, queue: Queue, webui: Webui, claim: Claim, drain_over: asyncio.Event
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._webui = webui
        self._claim = claim
        self._drain_over = drain_over
        self._progress = Progress()
        self._told: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._redis = OnceUntilChanged(log)

    async def run(self) -> Ending:
        beat = start_task("beat", self._keep_lease())
        try:
            ending = await self._work()
            return await self._settle(ending)
        except GaveUp as error:
            log.error("job %s: %s", self._claim.job_id, error, extra=self._fields())
            return released(str(error))
        finally:
            await cancel_tasks(beat)

    # --- the work ------------------------------------------------------------------------------------------------

    async def _work(self) -> Ending:
        try:
            winner = await self._storage(lambda root: storage.read_commit(root, self._claim.job_id))
            if winner is not None:
                return Finished(winner.files)  # its own COMMIT, or another attempt's: _commit sorts it out
            await self._storage(lambda root: storage.make_attempt_folder(root, self._claim.job_id, self._claim.fence))
        except StorageError as error:
            return refused(f"storage: {error}")
        stream = start_task("stream", self._stream())
        watchdog = Watchdog(self._progress, self._settings, self._claim.deadline_seconds)
        watch = start_task("watch", watchdog.run())
        drain = start_task("drain", self._drain_over.wait())
        try:
            await asyncio.wait({stream, watch, drain, self._told}, return_when=asyncio.FIRST_COMPLETED)
            return self._first_of(stream, watch)
        finally:
            await cancel_tasks(stream, watch, drain)

    def _first_of(self, stream: asyncio.Task[Ending], watch: asyncio.Task[Failed]) -> Ending:
        if stream.done():
            return stream.result()
        if self._told.done():
            return self._told.result()
        return watch.result() if watch.done() else released("its worker is being stopped")

    async def _stream(self) -> Ending:
        try:
            body = {
                "job": self._claim.job_id,
                "fence": self._claim.fence,
                "output_dir": attempt_folder(self._claim.job_id, self._claim.fence),
                "request": json.loads(self._claim.body),
            }
            async with self._webui.generate(body) as events:
                async for event in events:
                    self._progress.note(event)
                    if event.get("event") == "done":
                        return of_done_event(event)
                    if event.get("event") == "error":
                        return of_error_event(event)
                raise WebuiBroke("the webui's stream ended without a result")
        except WebuiError as error:
            return of_webui_error(error, started=self._progress.started)
        except Exception as error:
            log.exception("reading the webui's stream failed", extra=self._fields())
            return crashed(f"reading the webui's stream failed: {error!r}", Reason.UNKNOWN)

    async def _keep_lease(self) -> None:
        """Beats until told otherwise. Without Redis the work goes on: the fence is what makes that safe."""
        while True:
            try:
                answer = await self._beat()
            except QueueError as error:
                self._redis.failing(f"heartbeats do not reach Redis: {error}", **self._context())
            else:
                self._redis.fine("heartbeats reach Redis again", **self._context())
                self._hear(answer)
                if answer is BeatAnswer.FENCED:
                    return
            await asyncio.sleep(self._settings.queue.beat_seconds)

    def _hear(self, answer: BeatAnswer) -> None:
        if answer is BeatAnswer.OK or self._told.done():
            return
        if answer is BeatAnswer.FENCED:
            self._told.set_result(Fenced())
        else:
            self._told.set_result(Failed(FailKind.CANCELLED, Reason.CANCELLED, "cancelled while running"))

    async def _beat(self) -> BeatAnswer:
        progress = self._progress
        return await self._queue.beat(self._claim, progress.step, progress.total_steps, progress.phase)

    # --- the end -------------------------------------------------------------------------------------------------

    async def _settle(self, ending: Ending) -> Ending:
        if isinstance(ending, Finished):
            ending = await self._commit(ending)
        if isinstance(ending, Finished):
            return ending
        if isinstance(ending, Fenced):
            log.warning("job %s is somebody else's now", self._claim.job_id, extra=self._fields(event="fenced"))
        else:
            await self._report(ending)
        await self._clean_up(ending)
        return ending

    async def _report(self, failed: Failed) -> None:
        claim = self._claim
        answer = await self._until_answered(
            lambda: self._queue.fail(claim, failed.kind, failed.reason.value, failed.message)
        )
        if answer.status == "fenced":
            log.warning("job %s was taken away before its failure was told", claim.job_id, extra=self._fields())
            return
        kind = "cancelled" if answer.state is JobState.CANCELLED else failed.kind.value
        self._log_result(kind, answer.state, failed)

    async def _commit(self, finished: Finished) -> Ending:
        claim = self._claim
        try:
            winner = await self._storage(lambda root: storage.read_commit(root, claim.job_id))
            if winner is None:
                if wrong := await self._find_wrong_file(finished):
                    return wrong
                # Tells the queue, too: losing this worker from here on says nothing against the job.
                self._progress.phase = "commit"
                answer = await self._until_answered(self._beat)
                if answer is BeatAnswer.FENCED:
                    return Fenced()
                if answer is BeatAnswer.CANCEL:
                    return Failed(FailKind.CANCELLED, Reason.CANCELLED, "cancelled while running")
                mine = storage.new_commit(claim.job_id, claim.fence, self._settings.worker, finished.files)
                winner = await self._storage(lambda root: storage.write_commit(root, mine))
        except StorageError as error:
            # Perhaps COMMIT is there all the same, or will be when a hung disk moves again: this attempt's files stay,
            # and the next attempt looks for COMMIT first.
            return refused(f"storage: {error}")
        return await self._tell_commit(winner)

    async def _find_wrong_file(self, finished: Finished) -> Failed | None:
        claim = self._claim
        try:
            await self._storage(lambda root: storage.verify_files(root, claim.job_id, claim.fence, finished.files))
        except StorageError as error:
            return Failed(FailKind.ERROR, Reason.UNKNOWN, f"storage: {error}")
        return None

    async def _tell_commit(self, winner: storage.Commit) -> Ending:
        claim = self._claim
        adopted = winner.fence != claim.fence
        text = winner.to_json()
        answer = await self._until_answered(lambda: self._queue.commit(claim, text, adopted=adopted))
        if answer is CommitAnswer.FENCED:
            return Fenced()
        if adopted:
            log.info("job %s: adopted attempt %d", claim.job_id, winner.fence, extra=self._fields(event="adopted"))
        self._log_result("done", JobState.DONE, None)
        try:
            await self._storage(lambda root: storage.remove_losers(root, winner))
        except StorageError as error:
            log.info("losing attempts stay for now: %s", error, extra=self._fields())
        return Finished(winner.files)

    async def _clean_up(self, ending: Failed | Fenced) -> None:
        """After the queue knows: make sure the webui is free, and drop what this attempt wrote."""
        if isinstance(ending, Failed) and ending.refused:
            return
        try:
            await self._webui.interrupt(self._claim.job_id)
            await self._storage(lambda root: storage.remove_attempt(root, self._claim.job_id, self._claim.fence))
        except (WebuiError, StorageError) as error:
            log.info("job %s: not cleaned up: %s", self._claim.job_id, error, extra=self._fields())

    # --- tools ---------------------------------------------------------------------------------------------------

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks Redis until it answers; a process that is being stopped gives up a little later."""
        pause = RETRY_FIRST_SECONDS
        limit = time.monotonic() + RETRY_TOTAL_SECONDS
        stopping_at: float | None = None
        while True:
            try:
                return await ask()
            except (QueueUnavailable, UnsafeRedis) as error:
                now = time.monotonic()
                if self._drain_over.is_set():
                    stopping_at = stopping_at or now
                if now > limit or (stopping_at is not None and now - stopping_at > LAST_WORDS_SECONDS):
                    raise GaveUp(f"Redis did not answer in time: {error}") from error
                self._redis.failing(f"Redis does not answer, asking again: {error}", **self._context())
            except QueueError as error:
                raise GaveUp(str(error)) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MOST_SECONDS)

    async def _storage(self, operation: Callable[..., T]) -> T:
        """In a thread, and bounded: a hung NFS mount must not stop the heartbeats."""
        work = asyncio.to_thread(operation, self._settings.jobs_dir)
        try:
            return await asyncio.wait_for(work, self._settings.no_progress_seconds)
        except asyncio.TimeoutError as error:
            raise StorageError(f"no answer for {self._settings.no_progress_seconds:g} s") from error

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
