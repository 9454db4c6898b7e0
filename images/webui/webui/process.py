"""The server's side of the engine process: starts it, talks to it, replaces it when it dies or does not obey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from async_timeout import timeout
from prometheus_client import Counter, Gauge, Histogram

from webui.engine.base import POISONING, Capabilities, Reason
from webui.engine_environment import engine_environment
from webui.engine_run import Event, Run
from webui.request import Order
from webui.settings import EngineSettings

__all__ = ["BusyError", "EngineProcess", "Event", "NotReadyError", "Run", "explain_exit"]

Status = Literal["loading", "ok", "error", "draining"]

STEPS = Counter("webui_steps", "Denoising steps done")
GENERATIONS = Counter("webui_generations", "Generations by outcome: done or the reason of the failure", ["outcome"])
for _outcome in ("done", *get_args(Reason)):  # from 0 on: Prometheus sees no increase in what begins with a 1
    GENERATIONS.labels(_outcome)
STARTS = Counter("webui_engine_starts", "Starts of the engine process")
RESIDENT = Gauge("webui_engine_resident_memory_bytes", "Resident memory of the engine process")
CACHED = Gauge(
    "webui_gpu_memory_cached_bytes",
    "GPU memory that the engine has freed and keeps for its next allocation; 0 without a GPU",
)
PIPELINE = Gauge(
    "webui_pipeline_info", "Always 1, while an engine is ready: what it has loaded", ["engine", "fingerprint"]
)
LOAD_SECONDS = Histogram(
    "animatediff_model_load_time_seconds",
    "Time to load the models; cache is cold for the first load after the server's start, cached for one from the "
    "page cache or from main memory, switched for other models from disk",
    ["model", "cache"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)

RETRY_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
KILL_SECONDS = 5.0
KEEP_SECONDS = 2.0
EXIT_SECONDS = 1.0
LINE_LIMIT = 64 << 20  # all models are told in one line

log = logging.getLogger(__name__)


class NotReadyError(Exception):
    pass


class BusyError(Exception):
    def __init__(self, job: str) -> None:
        super().__init__("a run of this node's own is running" if job == "local" else f"job {job} is running")
        self.job = job


class EngineProcess:
    """`run` keeps one engine process alive until `close`; `submit` hands it one order at a time."""

    def __init__(self, settings: EngineSettings, may_start: Callable[[], bool], stop_seconds: float = 10) -> None:
        self._settings = settings
        self._may_start = may_start
        self._stop_seconds = stop_seconds
        self._child: Process | None = None
        self._closing = asyncio.Event()
        self._loading_since = time.monotonic()
        self._runs = 0
        self._ready = False
        self._load_failure: str | None = None
        self.problem: str | None = None
        self.capabilities: Capabilities | None = None
        self.gpu: dict[str, Any] | None = None  # as the engine told last
        self.current: Run | None = None

    @property
    def status(self) -> Status:
        if self._closing.is_set():
            return "draining"
        if self._ready:
            return "ok"
        return "error" if self.problem else "loading"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def progress_age(self) -> float:
        if self.current is not None:
            return self.current.progress_age()
        return 0.0 if self._ready else round(time.monotonic() - self._loading_since, 3)

    async def run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            if self._may_start():
                self._loading_since = time.monotonic()
                failures = 0 if await self._live_once() else failures + 1
                delay = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            else:
                delay = 0.2
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(delay):
                    await self._closing.wait()

    def submit(self, order: Order) -> Run:
        """Raises NotReadyError or BusyError."""
        if self.current is not None:
            raise BusyError(self.current.order.owner)
        if self.status != "ok":
            raise NotReadyError(f"the engine is {self.status}")
        self._runs += 1
        self.current = run = Run(self._runs, order)
        self._send(
            {
                "type": "generate",
                "run": run.number,
                "fence": order.fence,
                "output_dir": order.output_dir,
                "checkpoint_dir": order.checkpoint_dir,
                "memory": asdict(order.memory),
                "scratch": order.scratch,
                "request": order.request.as_dict(),
            }
        )
        return run

    async def stop(
        self, run: Run, reason: Reason, message: str, bound: float | None = None, *, keep: bool = False
    ) -> None:
        """Returns when the engine is free again: by itself within the bound, else because it was killed.

        With `keep` the engine writes a checkpoint of its last step first."""
        run.stop_as = run.stop_as or (reason, message)
        self._send({"type": "cancel", "run": run.number, "checkpoint": keep})
        bound = self._stop_seconds if bound is None else bound
        if not await _within(bound, run.finished):
            log.warning("the engine did not stop within %.1f s; killing it", bound, extra=_labels(run))
            self._kill()
            await _within(KILL_SECONDS, run.finished)

    async def close(self, bound: float) -> None:
        """Ends a running generation as WORKER_LOST, then the process."""
        self._closing.set()
        run = self.current
        if run is not None:
            stopping = asyncio.create_task(self.stop(run, "WORKER_LOST", "shutting down", bound, keep=True))
            # Told only now: as soon as it is, another worker takes the job, and looks for the checkpoint.
            await _within(min(bound, KEEP_SECONDS), run.kept)
            run.emit({"event": "error", "reason": "WORKER_LOST", "message": "shutting down"})
            await stopping
        self._kill()

    def read_resident_memory(self) -> None:
        """Sets the gauge just before it is scraped."""
        pages = 0
        if self._child is not None:
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{self._child.pid}/statm").read_text().split()[1])
        RESIDENT.set(pages * os.sysconf("SC_PAGE_SIZE"))

    async def _live_once(self) -> bool:
        """Starts a process and sees it through to its end; tells whether it ever became ready."""
        STARTS.inc()
        environ = engine_environment(self._settings, os.environ)
        self._child = child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "webui.worker", stdin=PIPE, stdout=PIPE, limit=LINE_LIMIT, env=environ
        )
        was_ready, self._load_failure = False, None
        try:
            if self._closing.is_set():
                return False
            self._send({"parent": os.getpid(), "settings": asdict(self._settings)})
            assert child.stdout is not None  # noqa: S101
            async for line in child.stdout:
                self._receive(json.loads(line))
                was_ready = was_ready or self._ready
        except ValueError as error:
            # Half a line, of a process killed while it wrote: its end, and not the server's.
            log.error("the engine process said something broken: %s", error, extra={"event": "engine_broken_line"})
            self._kill()
        finally:
            self._ready = False  # at once: what it gets now, it will not read
            PIPELINE.clear()
            CACHED.set(0)
            code = await self._reap(child)
            self._child = self.gpu = None
            self._lost(code, was_ready)
        return was_ready

    async def _reap(self, child: Process) -> int:
        """Its pipe is closed: leaves it a moment to end with the exit code or signal of its own."""
        if self._closing.is_set():
            self._kill()
        try:
            async with timeout(EXIT_SECONDS):
                return await child.wait()
        except asyncio.TimeoutError:
            self._kill()
            return await child.wait()

    def _send(self, message: dict[str, Any]) -> None:
        if self._child is None or self._child.stdin is None or self._child.stdin.is_closing():
            return  # the end of the process answers whoever waits
        self._child.stdin.write(json.dumps(message).encode() + b"\n")

    def _kill(self) -> None:
        # Not Process.kill: it reaps a child that has just died, and asyncio then reports exit code 255 for it.
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)

    def _receive(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ready":
            cache = "cold" if self.capabilities is None else "cached"
            self.capabilities = Capabilities(**message["capabilities"])
            LOAD_SECONDS.labels(self.capabilities.checkpoint, cache).observe(message["load_seconds"])
            self._ready, self.problem = True, None
            PIPELINE.clear()
            PIPELINE.labels(self.capabilities.engine, self.capabilities.fingerprint).set(1)
        elif kind == "offers" and self.capabilities is not None:
            self.capabilities = replace(self.capabilities, **message["offers"])
        elif kind == "load":
            LOAD_SECONDS.labels(message["model"], message["cache"]).observe(message["seconds"])
        elif kind == "ending":
            self._ready = False  # nothing more for that process, which will not recover
        elif kind == "failed":
            self._load_failure = f"{message['reason']}: {message['message']}"
        elif kind == "gpu":
            self.gpu = message["gpu"]
            CACHED.set(message["gpu"].get("memory_cached_mib", 0) << 20)
        elif self.current is not None and message["run"] == self.current.number:
            if kind == "phase":
                self.current.progress(message["phase"], part=message["part"], parts=message["parts"])
            elif kind == "kept":
                self.current.kept.set()
            else:
                self._progress(self.current, message["event"])

    def _progress(self, run: Run, event: Event) -> None:
        if event["event"] in ("done", "error"):
            self._finish(run, event)
            return
        if event["event"] == "step":
            STEPS.inc()
            run.progress("step", event["step"])
        elif event["event"] == "started":
            run.progress("load", event["resumed_from"])
            run.checkpoint_step = event["resumed_from"] or None
        elif event["event"] == "checkpoint":
            run.checkpoint_step = event["step"]
        run.emit(event)

    def _finish(self, run: Run, event: Event) -> None:
        if event["event"] == "error" and run.stop_as is not None:
            event = {"event": "error", "reason": run.stop_as[0], "message": run.stop_as[1]}
        outcome = event.get("reason", "done")
        if outcome in POISONING:
            self._ready = False  # that process is about to end; hand it nothing more
        GENERATIONS.labels(outcome).inc()
        log.info("generation ended: %s", event.get("message", "done"), extra=_labels(run) | {"reason": outcome})
        self.current = None
        run.emit(event)
        run.kept.set()
        run.finished.set()

    def _lost(self, code: int, was_ready: bool) -> None:
        if self._closing.is_set() and self.current is None:
            return
        reason, message = explain_exit(code)
        log.error("%s", message, extra={"event": "engine_exit", "reason": reason})
        if not was_ready:
            self.problem = self._load_failure or f"{reason}: {message}"
        if self.current is not None:
            self._finish(self.current, {"event": "error", "reason": reason, "message": message})


def explain_exit(code: int) -> tuple[Reason, str]:
    if code == -signal.SIGKILL:
        return "HOST_OOM", "the engine process was killed by SIGKILL; most likely the container ran out of memory"
    if code < 0:
        return "UNKNOWN", f"the engine process died of {signal.Signals(-code).name}"
    return "UNKNOWN", f"the engine process ended with exit code {code}"


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with timeout(seconds):
            await event.wait()
    except asyncio.TimeoutError:
        return False
    return True


def _labels(run: Run) -> dict[str, Any]:
    return {"event": "generation", "job_id": run.order.job, "attempt": run.order.fence}
