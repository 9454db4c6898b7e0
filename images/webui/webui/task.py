"""One generation inside the engine process: what the engine reports to, and what stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from webui import checkpoint
from webui.engine.base import Capabilities, Engine, Phase, Snapshot, StoppedError
from webui.request import MemorySettings, VideoRequest, context_of
from webui.saver import Saver
from webui.settings import EngineSettings

Send = Callable[[dict[str, Any]], None]


class Task:
    """The command reader calls `stop`, the engine's thread does the rest."""

    def __init__(
        self, command: dict[str, Any], send: Send, settings: EngineSettings, capabilities: Capabilities
    ) -> None:
        self.number: int = command["run"]
        self.folder: str = command["output_dir"]
        self.request = VideoRequest(**command["request"])
        self.memory = MemorySettings(**command.get("memory", {}))
        self._root = Path(settings.jobs_dir)
        self._checkpoint_dir: str | None = command.get("checkpoint_dir")
        self._identity = checkpoint.Identity(
            capabilities.fingerprint, checkpoint.request_hash(self.request, self.memory)
        )
        self._saver = Saver(
            self._root,
            self._checkpoint_dir,
            command.get("fence", 0),
            self._identity,
            settings.checkpoint_seconds,
            lambda step: self.event("checkpoint", step=step),
        )
        self._stop = threading.Event()
        self._keep = False
        self._send = send

    def find_resume(self, engine: Engine) -> Snapshot | None:
        """The most advanced checkpoint that this engine can go on from."""
        if self._checkpoint_dir is None:
            return None
        for snapshot in checkpoint.readable(self._root, self._checkpoint_dir, self._identity, self.request.steps):
            if engine.accepts(snapshot, self.request):
                self._saver.begin_at(snapshot.step)
                return snapshot
        return None

    def made_with(self) -> dict[str, Any]:
        """What the memory settings changed about the picture, for whoever wonders about it later."""
        return {
            "context_batch_size": context_of(self.request, self.memory),
            "vae_tiling": self.memory.vae_tiling,
        }

    def stop(self, keep: bool) -> None:
        """With `keep` the newest state is written at once, beside an engine that may be within a long step or hang."""
        self._keep = keep or self._keep
        if keep:
            threading.Thread(target=self._keep_now, name="keep", daemon=True).start()
        self._stop.set()

    def keep(self) -> None:
        """Writes the state of the last step that was done, unless it is on disk already."""
        self._saver.demand()

    def close(self) -> None:
        self._saver.close()

    def event(self, event: str, **fields: Any) -> None:
        self._send({"type": "event", "run": self.number, "event": {"event": event, **fields}})

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        self.event("step", step=done, total_steps=self.request.steps)
        if snapshot is not None:
            self._saver.offer(snapshot)
        self.check()

    def phase(self, name: Phase, part: int = 0, parts: int = 0) -> None:
        self._send({"type": "phase", "run": self.number, "phase": name, "part": part, "parts": parts})
        self.check()

    def check(self) -> None:
        if self._stop.is_set():
            if self._keep:
                self._saver.demand()
            raise StoppedError

    def _keep_now(self) -> None:
        self._saver.demand()
        self._send({"type": "kept", "run": self.number})
