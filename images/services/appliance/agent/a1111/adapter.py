"""A foreign A1111 behind the agent: what `Webui` is to our own server.

A1111 has no stream and no identity of runs: `generate` posts the order, polls its progress meanwhile, and tells the
agent about it in the events of our own webui. The A1111 belongs to its agent alone: a run that the agent has not begun
is a leftover, of an agent that died, and is interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from appliance import storage
from appliance.agent.a1111.answer import Media, WrongAnswerError, read_answer, read_error
from appliance.agent.a1111.client import Client, Unanswered
from appliance.agent.a1111.request import Call, InvalidOrderError, Known, Order, make_call
from appliance.agent.a1111.trial import Pause, Proof, prove, require_extension
from appliance.agent.a1111.watch import ENGINE, State, Watch
from appliance.agent.webui import INTERRUPT_SECONDS, Ping, WebuiBroke, WebuiError, WebuiNotThere, WebuiRefused
from appliance.disk import Disk
from appliance.errors import StorageError
from appliance.job import Reason
from appliance.lifecycle import cancel_tasks, start_task
from appliance.settings import A1111Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
LET_GO_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
"""For one answer: a busy interpreter lets its server thread wait."""
FREE_SECONDS = 5.0
STRANGE_RUN = "a run that no job is known for"


@dataclass
class Run:
    """The order that is being worked on."""

    order: Order
    stopped: bool = False


class A1111:
    """Raises what `Webui` raises. `jobs_dir` is where results go: A1111 itself never sees the shared storage."""

    def __init__(self, settings: A1111Settings, jobs_dir: Path, disk_seconds: float) -> None:
        self._settings = settings
        self._client = Client(settings.url, settings.auth)
        self._disk = Disk(jobs_dir, disk_seconds)
        self._trial: asyncio.Task[Proof] | None = None
        self._known = Known()
        self._ready: Ping | None = None
        self._poisoned = False
        self._interrupting = 0
        self._deaf_since: float | None = None
        self._pause = Pause()
        self._heard_at = float("-inf")
        self._run: Run | None = None

    async def close(self) -> None:
        if self._trial is not None:
            await cancel_tasks(self._trial)
        await self._client.close()

    def facts(self) -> dict[str, Any]:
        """For the controller's probes, which come four times a second: what is known, without asking."""
        age = time.monotonic() - self._heard_at
        ready = self._ready is not None and age < self._settings.silence_seconds
        return {
            "status": "ok" if ready else "loading",
            "engine": ENGINE,
            "fingerprint": self._ready.fingerprint if self._ready else "",
            "busy": self._run.order.job if self._run else None,
            "progress_age_seconds": round(age, 3) if ready else None,
        }

    # --- readiness -----------------------------------------------------------------------------------------------

    async def ping(self) -> Ping:
        """Ready once it has made a video, until it is gone or has failed in a way that leaves it in doubt."""
        if self._run is not None or self._interrupting:
            return self._ready or Ping(ready=False, status="at work", engine=ENGINE)
        if self._ready is None:
            return self._try_out()
        try:
            state = await self._state()
        except WebuiNotThere as error:
            self._ready = None
            return Ping(ready=False, status=str(error), engine=ENGINE)
        except Unanswered as error:
            return Ping(ready=False, status=str(error), engine=ENGINE)
        return replace(self._ready, busy=STRANGE_RUN if state.busy else None)

    def _try_out(self) -> Ping:
        """The trial goes on beside the pings: it may load gigabytes."""
        if self._trial is None:
            if not self._pause.over:
                return Ping(ready=False, status=self._pause.status, engine=ENGINE)
            self._trial = start_task("a1111 trial", self._prove())
        if not self._trial.done():
            return Ping(ready=False, status="making its first video", engine=ENGINE)
        trial, self._trial = self._trial, None
        try:
            proof = trial.result()
        except Exception as error:
            if not isinstance(error, WebuiError):
                log.exception("trying the A1111 out failed")
            self._pause.after(error)
            return Ping(ready=False, status=self._pause.status, engine=ENGINE)
        self._pause.reset()
        self._ready, self._known = proof.ping, proof.known
        return self._ready

    async def _prove(self) -> Proof:
        options = await require_extension(self._client)
        await self._free()
        return await prove(self._client, self._settings, options)

    async def _free(self) -> None:
        """No run of an agent that died, and none of the memory that a failed run has kept."""
        if (await self._state()).busy:
            await self.interrupt("", seconds=FREE_SECONDS)
        if self._poisoned:
            await self._client.tell("/sdapi/v1/unload-checkpoint", self._settings.load_seconds)
            self._poisoned = False

    async def _state(self, steps: int = 0) -> State:
        answer = await self._client.ask("/sdapi/v1/progress?skip_current_image=true", PROGRESS_SECONDS)
        self._heard_at = time.monotonic()
        state = State.parse(answer, steps)
        if not state.busy:
            self._deaf_since = None
        return state

    # --- one generation ------------------------------------------------------------------------------------------

    async def interrupt(
        self, job_id: str, fence: int | None = None, *, checkpoint: bool = False, seconds: float = INTERRUPT_SECONDS
    ) -> int | None:
        """As `Webui.interrupt`; there is never a checkpoint."""
        run = self._run
        if run is not None:
            if run.order.job != job_id or fence not in (None, run.order.fence):
                return None
            run.stopped = True
        self._interrupting += 1
        try:
            await self._stop(seconds)
        finally:
            self._interrupting -= 1
        return None

    async def _stop(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (await self._state()).busy:
            await self._client.tell("/sdapi/v1/interrupt")
            if time.monotonic() > end:
                await self._give_up_on_deaf()
                raise WebuiError(f"the A1111 goes on with its work {seconds:g} s after an interrupt")
            await asyncio.sleep(POLL_SECONDS)

    async def _give_up_on_deaf(self) -> None:
        """An interrupt is heard after the step, and what there is is decoded all the same: that may take a while."""
        self._ready = None
        now = time.monotonic()
        self._deaf_since = self._deaf_since or now
        if now - self._deaf_since > self._settings.deaf_seconds:
            log.error("the A1111 hears no interrupt: asking it to end itself", extra={"event": "a1111_deaf"})
            # Only with --api-server-stop, and of use only where something starts it again.
            await self._client.tell("/sdapi/v1/server-kill")

    @asynccontextmanager
    async def generate(self, body: bytes) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """As `Webui.generate`."""
        order = await asyncio.to_thread(_parse, body)
        try:
            call = make_call(order, self._known, self._settings.motion_module)
        except InvalidOrderError as error:
            raise WebuiRefused(422, str(error)) from None
        self._run = Run(order)
        watch = Watch(call.steps, call.rounds, self._settings.silence_seconds)
        posted = start_task("a1111 post", self._client.generate(call.path, call.body))
        looking = start_task("a1111 progress", self._keep_looking(watch, call.steps))
        try:
            yield self._events(self._run, call, posted, watch)
        except (WebuiNotThere, WebuiBroke):
            self._ready = None
            raise
        finally:
            try:
                # A run left alone goes on for nobody; its end is waited for later, by the agent's own interrupt.
                await asyncio.shield(self._let_go(posted, looking))
            finally:
                self._run = None

    async def _let_go(self, posted: asyncio.Task[Any], looking: asyncio.Task[Any]) -> None:
        left = not posted.done()
        await cancel_tasks(posted, looking)
        if left:
            try:
                await self._client.tell("/sdapi/v1/interrupt", LET_GO_SECONDS)
            except WebuiError as error:
                log.debug("not interrupted: %s", error)

    async def _events(
        self, run: Run, call: Call, posted: asyncio.Task[tuple[int, bytes]], watch: Watch
    ) -> AsyncIterator[dict[str, Any]]:
        began = time.monotonic()
        while not posted.done():
            for event in watch.events():
                yield event
            await asyncio.wait({posted}, timeout=POLL_SECONDS)
        status, body = posted.result()
        if not watch.started:
            yield {"event": "started", "engine": ENGINE, "total_steps": call.steps}
        finishing = start_task("a1111 answer", self._finish(run, call, status, body, began))
        try:
            while not finishing.done():
                yield {"event": "alive", "phase": "encode", "progress_age_seconds": 0}
                await asyncio.wait({finishing}, timeout=POLL_SECONDS)
            yield finishing.result()
        finally:
            await cancel_tasks(finishing)

    async def _finish(self, run: Run, call: Call, status: int, body: bytes, began: float) -> dict[str, Any]:
        """The last event: what became of the order."""
        if status != 200:
            return self._failure(status, body)
        # An interrupted run answers 200 with what it has; the flag stays until the next run begins.
        if run.stopped or await self._was_interrupted():
            return _error(Reason.UNKNOWN, "the run was interrupted at the A1111 itself")
        return await self._save(run.order, call, body, began)

    async def _was_interrupted(self) -> bool:
        """A whole video is not thrown away because the question went unanswered once."""
        end = time.monotonic() + self._settings.silence_seconds
        while True:
            try:
                return (await self._state()).interrupted
            except Unanswered:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def _keep_looking(self, watch: Watch, steps: int) -> None:
        while True:
            try:
                watch.hear(await self._state(steps))
            except WebuiError as error:
                watch.trouble = str(error)
            await asyncio.sleep(POLL_SECONDS)

    def _failure(self, status: int, body: bytes) -> dict[str, Any]:
        reason, message = read_error(status, body)
        if status in (401, 403, 405, 502, 503) or (status == 404 and "Not Found" in message):
            self._ready = None
            raise WebuiRefused(status, f"{message} (is it started with --api, and is a1111_auth right?)")
        if reason is not Reason.INVALID_INPUT:
            # Upstream is known to stay poisoned by what it has run into: it has to prove itself again.
            self._ready, self._poisoned = None, True
        return _error(reason, message)

    async def _save(self, order: Order, call: Call, body: bytes, began: float) -> dict[str, Any]:
        try:
            files, info = await asyncio.to_thread(read_answer, body, call.formats, order.request.frames)
        except WrongAnswerError as error:
            self._ready = None
            return _error(Reason.UNKNOWN, str(error))
        try:
            described = await self._disk.do(lambda root: _write(root, order, files))
        except StorageError as error:
            raise WebuiRefused(503, f"storage: {error}") from error
        wanted = ("seed", "width", "height", "steps", "cfg_scale", "sampler_name", "sd_model_name", "sd_model_hash")
        return {
            "event": "done",
            "files": described,
            "parameters": {name: info[name] for name in wanted if name in info},
            "seconds": round(time.monotonic() - began, 3),
        }


def _parse(body: bytes) -> Order:
    try:
        return Order.parse(body)
    except InvalidOrderError as error:
        raise WebuiRefused(422, str(error)) from None


def _write(root: Path, order: Order, files: list[Media]) -> list[dict[str, Any]]:
    return [
        asdict(storage.write_result(root, order.job, order.fence, file.name, file.media_type, file.content))
        for file in files
    ]


def _error(reason: Reason, message: str) -> dict[str, Any]:
    return {"event": "error", "reason": reason.value, "message": message}
