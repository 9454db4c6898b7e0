"""The engine process: the only one that may load torch.

It reads one JSON command a line from stdin (first the settings, then `generate` and `cancel`) and answers with one
JSON message a line on what was stdout. It dies with its parent, however that one dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import logging
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from webui.engine.base import POISONING, Capabilities, Engine, EngineError, StorageError
from webui.logs import set_up_logs
from webui.place import place_of
from webui.request import FORMATS, VideoRequest
from webui.settings import EngineSettings
from webui.task import Send, Task
from webui.video.note import without_pictures
from webui.video.result import write_result

PR_SET_PDEATHSIG = 1
EXIT_LOAD_FAILED = 3
EXIT_POISONED = 4

GPU_SECONDS = 5.0
MODELS_SECONDS = 5.0

log = logging.getLogger("webui.worker")  # __name__ is __main__ here


class Worker:
    def __init__(self, settings: EngineSettings, engine: Engine, commands: TextIO, send: Send) -> None:
        self._settings = settings
        self._engine = engine
        self._commands = commands
        self._send = send
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

    def serve(self) -> int:
        started = time.monotonic()
        self._send({"type": "phase", "run": 0, "phase": "load"})
        try:
            capabilities = self._engine.load()
            loaded = time.monotonic()
            self._warm_up()
            self._engine.loads()  # told with `ready`
        except Exception as error:
            log.exception("the engine did not load")
            failure = error if isinstance(error, EngineError) else EngineError("MODEL_LOAD_FAIL", _describe(error))
            self._send({"type": "failed", "reason": failure.reason, "message": failure.message})
            return EXIT_LOAD_FAILED
        threading.Thread(target=self._read_commands, args=[capabilities], name="commands", daemon=True).start()
        threading.Thread(target=self._tell_gpu, name="gpu", daemon=True).start()
        threading.Thread(target=self._tell_models, args=[asdict(capabilities)], name="models", daemon=True).start()
        self._send({"type": "ready", "capabilities": asdict(capabilities), "load_seconds": loaded - started})
        log.info("engine ready", extra={"event": "engine_ready", "seconds": round(time.monotonic() - started, 3)})
        while True:
            if self._run(self._tasks.get(), capabilities) in POISONING:
                return EXIT_POISONED

    def _warm_up(self) -> None:
        clip = self._engine.warm_up()
        with tempfile.TemporaryDirectory() as folder:
            write_result(clip, VideoRequest("warm-up", format=FORMATS), Path(folder))
        self._engine.release()

    def _tell_gpu(self) -> None:
        """In a thread of its own: a GPU that hangs may never answer this question."""
        try:
            while (gpu := self._engine.gpu()) is not None:
                self._send({"type": "gpu", "gpu": gpu})
                time.sleep(GPU_SECONDS)
        except Exception:  # the generation fails by itself, and says it better
            log.exception("the GPU tells nothing any more")

    def _tell_models(self, told: dict[str, Any]) -> None:
        """Files may come and go while this runs. In a thread of its own: storage that hangs must hold up nothing."""
        while True:
            time.sleep(MODELS_SECONDS)
            try:
                offers = self._engine.offers()
            except Exception as error:  # an odd file must not end the looking
                log.warning("cannot list the models: %r", error)
                continue
            if any(told[name] != offer for name, offer in offers.items()):
                self._send({"type": "offers", "offers": offers})
            told = offers

    def _read_commands(self, capabilities: Capabilities) -> None:
        current: Task | None = None
        for line in self._commands:
            command = json.loads(line)
            if command["type"] == "generate":
                current = Task(command, self._send, self._settings, capabilities)
                self._tasks.put(current)
            elif current is not None and command["run"] == current.number:
                current.stop(keep=command.get("checkpoint", False))
        os._exit(0)  # the parent closed the pipe or is gone; nobody is left to generate for

    def _run(self, task: Task, capabilities: Capabilities) -> str | None:
        """Returns the reason of a failure."""
        failure: EngineError | None = None
        where, storage = "", False
        try:
            self._generate(task, capabilities)
        except EngineError as error:
            failure, where = EngineError(error.reason, error.message), place_of(error)
            storage = isinstance(error, StorageError)
            if failure.reason == "OOM":
                task.keep()  # decoding may fit with cheaper settings: its steps need not be done again for that
        except MemoryError:
            failure = EngineError("HOST_OOM", "out of main memory")
        except Exception as error:
            log.exception("generation failed")
            failure, where = EngineError("UNKNOWN", _describe(error)), place_of(error)
        finally:
            task.close()
        # Only out here is the traceback gone that keeps the failed call's tensors alive.
        try:
            self._engine.release()
            gc.collect()
            trim_heap()
            for load in self._engine.loads():
                self._send({"type": "load", **asdict(load)})
            if failure is not None and failure.reason == "OOM":
                self._warm_up()  # ready again only if a generation works; else a new process must begin afresh
        except Exception:
            self._send({"type": "ending"})
            raise
        finally:  # a broken GPU fails here again, which ends this process; the first reason is the true one
            if failure is not None:
                more = {"storage": True} if storage else {}
                task.event("error", reason=failure.reason, message=failure.message, where=where, **more)
        return failure.reason if failure is not None else None

    def _generate(self, task: Task, capabilities: Capabilities) -> None:
        started = time.monotonic()
        resume = task.find_resume(self._engine)
        resumed_from = resume.step if resume is not None else 0
        total = task.request.total_steps
        task.event("started", engine=capabilities.engine, total_steps=total, resumed_from=resumed_from)
        task.check()
        clip = self._engine.generate(task.request, task, task.memory, resume)
        task.phase("encode")
        files = task.files(clip)
        task.check()
        task.close()  # whoever hears of the end tidies up: nothing may write a checkpoint after that
        task.event(
            "done",
            files=[file.as_dict() for file in files],
            parameters=without_pictures(clip.parameters),
            seconds=round(time.monotonic() - started, 3),
        )


def make_engine(settings: EngineSettings) -> Engine:
    if settings.kind == "synthetic":
        from webui.engine.synthetic import SyntheticEngine

        return SyntheticEngine(settings)
    try:
        from webui.engine.diffusers import DiffusersEngine
    except ImportError as error:
        raise EngineError("MODEL_LOAD_FAIL", f"this image cannot run the diffusers engine: {error}") from error
    return DiffusersEngine(settings)


def die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def offer_to_oom_killer() -> None:
    """When the container runs out of memory, this process goes and the server lives to tell."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError as error:
        log.warning("cannot set oom_score_adj: %s", error)


def trim_heap() -> None:
    """Freed tensors of many sizes leave holes in glibc's heap, which grows over hundreds of mixed jobs without this."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # musl has none
        trim(0)


def claim_stdout() -> TextIO:
    """Keeps stdout for messages alone; what libraries print goes to stderr."""
    messages = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return messages


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def main() -> int:
    messages = claim_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    faulthandler.enable()
    line = sys.stdin.readline()
    if not line:
        return 0
    first = json.loads(line)
    settings = EngineSettings(**first["settings"])
    die_with_parent(first["parent"])
    set_up_logs(settings.log_level)
    offer_to_oom_killer()

    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            messages.write(json.dumps(message) + "\n")

    try:
        engine = make_engine(settings)
    except EngineError as error:
        send({"type": "failed", "reason": error.reason, "message": error.message})
        return EXIT_LOAD_FAILED
    return Worker(settings, engine, sys.stdin, send).serve()


if __name__ == "__main__":
    sys.exit(main())
