"""Runs that somebody orders from this very node, by its page or A1111's calls, beside the cluster's queue.

One engine serves both. Local runs wait in a short line; whoever comes second waits for the other to end, and neither
is killed for the other's sake. The cluster's agent does not wait in the line: it looks every half second whether the
engine is free, and gets a turn of its own if it looked in vain. Results lie on the scratch disk until newer ones push
them out.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from webui.agents_turn import AgentsTurn
from webui.engine.base import Reason
from webui.local_run import LocalFile, LocalRun, State
from webui.process import BusyError, EngineProcess, Event, NotReadyError, Run
from webui.request import Order, VideoRequest, check_supported

__all__ = ["LineFullError", "LocalFile", "LocalRun", "LocalRuns"]

FOLDER = "local"
LINE_LIMIT = 8
KEPT_RUNS = 16
KEPT_BYTES = 512 << 20
ENGINE_SECONDS = 300.0  # how long a run waits for an engine that does not become ready
TICK_SECONDS = 0.2
# How long a run may show no progress, by phase; after that the engine counts as hung and is replaced.
PATIENCE_SECONDS = {"load": 600.0, "step": 300.0, "decode": 600.0, "encode": 300.0}

log = logging.getLogger(__name__)


class LineFullError(Exception):
    """As many runs wait as may."""


class LocalRuns:
    """The line. `run` works it off until `close`; everything else returns at once."""

    def __init__(self, process: EngineProcess, scratch: Path, limit: int = LINE_LIMIT) -> None:
        self._process = process
        self._folder = scratch / FOLDER
        self._limit = limit
        self._line: deque[LocalRun] = deque()
        self._ended: list[LocalRun] = []  # the oldest first
        self._known: dict[str, LocalRun] = {}
        self._engine_run: Run | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._turn = AgentsTurn()
        self.current: LocalRun | None = None
        self.problem = self._prepare()

    @property
    def waiting(self) -> Sequence[LocalRun]:
        return tuple(self._line)

    def get(self, run_id: str) -> LocalRun | None:
        return self._known.get(run_id)

    def submit(self, request: VideoRequest) -> LocalRun:
        """Raises RequestError, LineFullError or NotReadyError."""
        process = self._process
        if self._closing.is_set() or process.status in ("draining", "error") or process.capabilities is None:
            raise NotReadyError(process.problem or f"the engine is {process.status}")
        if self.problem:
            raise NotReadyError(self.problem)
        check_supported(request, process.capabilities)
        if len(self._line) >= self._limit:
            raise LineFullError(f"{self._limit} runs wait already; try again later")
        run = LocalRun(self.cancel, request)
        self._known[run.id] = run
        self._line.append(run)
        self._number_line()
        self._arrived.set()
        return run

    def cancel(self, run: LocalRun) -> None:
        if run in self._line:
            self._line.remove(run)
            self._finish(run, "cancelled")
            self._number_line()
        elif run is self.current and self._engine_run is not None:
            self._stop(self._engine_run, "CANCELLED", "cancelled")

    def forget(self, run: LocalRun) -> None:
        """Removes the run and its files now, if it is over."""
        if run.is_over and self._known.pop(run.id, None) is not None:
            self._ended.remove(run)
            self._remove_files(run)

    def note_agent(self, *, refused: bool = False) -> None:
        """The cluster's agent looked for a free engine, or even had an order, and may have found a local run."""
        if self.current is not None:
            self._turn.missed(with_order=refused)

    async def run(self) -> None:
        while not self._closing.is_set():
            self._arrived.clear()
            if not self._line:
                await _first(self._arrived, self._closing)
            elif await self._engine_is_free():
                await self._work_safely(self._line.popleft())

    def close(self) -> None:
        """Ends the line; whoever waits hears of it. What runs ends with the engine process, and then so does `run`."""
        self._closing.set()
        while self._line:
            self._finish(self._line.popleft(), "error", ("WORKER_LOST", "this node is shutting down"))

    async def _engine_is_free(self) -> bool:
        """True at once before a submit; False when something changed and the line is to be looked at again."""
        deadline = time.monotonic() + ENGINE_SECONDS
        process, head = self._process, self._line[0]
        while self._line and self._line[0] is head and not self._closing.is_set():
            busy = process.current
            if busy is not None:
                self._turn.end()
                deadline = time.monotonic() + ENGINE_SECONDS
                await _first(busy.finished, self._closing)
                continue
            if process.status == "ok" and self._turn.is_over:
                return True
            if time.monotonic() >= deadline:
                self._line.remove(head)
                self._finish(head, "error", ("MODEL_LOAD_FAIL", process.problem or "the engine does not become ready"))
                self._number_line()
                return False
            await asyncio.sleep(TICK_SECONDS / 4)
        return False

    async def _work_safely(self, run: LocalRun) -> None:
        """A defect that one run brings out must not end the server, and with it the cluster's jobs."""
        try:
            await self._work(run)
        except Exception as error:
            log.exception("local run %s failed by a defect", run.id)
            left = self._process.current
            if left is not None and left.order.job == run.id:
                self._stop(left, "UNKNOWN", "its run has failed")
            if not run.is_over:
                self._finish(run, "error", ("UNKNOWN", f"{type(error).__name__}: {error}"))

    async def _work(self, run: LocalRun) -> None:
        order = Order(run.id, 1, f"{FOLDER}/{run.id}", run.request, scratch=True)
        self._number_line()
        try:
            self._engine_run = engine_run = self._process.submit(order)
        except (BusyError, NotReadyError) as error:
            self._finish(run, "error", ("UNKNOWN", str(error)))
            return
        self.current = run
        run.state, run.position, run.started_at, run.phase = "running", 0, time.time(), "load"
        run.changed()
        try:
            last = await self._follow(run, engine_run)
            await engine_run.finished.wait()
        finally:
            self.current = self._engine_run = None
            self._turn.begin()
        self._conclude(run, last)

    async def _follow(self, run: LocalRun, engine_run: Run) -> Event:
        """Returns the last event."""
        coming = asyncio.ensure_future(engine_run.events.get())
        try:
            while True:
                await asyncio.wait([coming], timeout=TICK_SECONDS)
                self._show_phase(run, engine_run)
                if not coming.done():
                    if engine_run.progress_age() > PATIENCE_SECONDS.get(engine_run.phase, 300.0):
                        self._stop(engine_run, "TIMEOUT", f"no progress in phase {engine_run.phase}")
                    continue
                event = coming.result()
                if event["event"] in ("done", "error"):
                    return event
                _show(run, event)
                coming = asyncio.ensure_future(engine_run.events.get())
        finally:
            coming.cancel()

    def _show_phase(self, run: LocalRun, engine_run: Run) -> None:
        now = (engine_run.phase, engine_run.part, engine_run.parts)
        if now != (run.phase, run.part, run.parts):
            run.phase, run.part, run.parts = now
            run.changed()

    def _conclude(self, run: LocalRun, last: Event) -> None:
        if last["event"] == "error":
            state: State = "cancelled" if last["reason"] == "CANCELLED" else "error"
            self._finish(run, state, None if state == "cancelled" else (last["reason"], last["message"]))
            return
        folder = self._folder / run.id
        run.files = [
            LocalFile(folder / Path(file["name"]).name, file["media_type"], file["size_bytes"], file["sha256"])
            for file in last["files"]
        ]
        run.parameters = last["parameters"]
        run.step = run.total_steps
        self._finish(run, "done")

    def _finish(self, run: LocalRun, state: State, error: tuple[str, str] | None = None) -> None:
        self._ended.append(run)
        if state != "done":
            self._remove_files(run)
        run.end(state, error)
        self._make_room()

    def _make_room(self) -> None:
        """The oldest go; the newest result stays however large it is, or nobody could ever fetch it."""
        done = [run for run in self._ended if run.state == "done"]
        size = sum(file.size_bytes for run in done for file in run.files)
        while len(done) > KEPT_RUNS or (size > KEPT_BYTES and len(done) > 1):
            oldest = done.pop(0)
            size -= sum(file.size_bytes for file in oldest.files)
            self.forget(oldest)
        failed = [run for run in self._ended if run.state != "done"]
        for run in failed[:-KEPT_RUNS]:
            self.forget(run)

    def _stop(self, engine_run: Run, reason: Reason, message: str) -> None:
        if engine_run.stop_as is None:
            engine_run.stop_as = (reason, message)  # at once: the task begins later
            task = asyncio.create_task(self._process.stop(engine_run, reason, message))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    def _number_line(self) -> None:
        for position, run in enumerate(self._line, start=1):
            if run.position != position:
                run.position = position
                run.changed()

    def _prepare(self) -> str | None:
        """Removes what an earlier process left; says why there can be no runs."""
        try:
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.exists():
                shutil.rmtree(self._folder)  # refuses a symbolic link
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            log.error("no local runs: %s", error, extra={"event": "scratch_failed"})
            return f"the scratch disk fails: {error}"
        return None

    def _remove_files(self, run: LocalRun) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder / run.id)


def _show(run: LocalRun, event: Event) -> None:
    if event["event"] == "preview":
        run.preview, run.preview_step = base64.b64decode(event["image"]), event["step"]
    elif event["event"] in ("started", "step"):
        run.step = event.get("step", run.step)
        run.total_steps = event.get("total_steps", run.total_steps)
    run.changed()


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
