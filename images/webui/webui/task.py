"""One generation inside the engine process: what the engine reports to, and what stops it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from webui import checkpoint
from webui.engine.base import Capabilities, Clip, Engine, Phase, Snapshot, StoppedError
from webui.folders import make_folder
from webui.preview import Previewer
from webui.request import MemorySettings, context_of, video_request
from webui.saver import Saver
from webui.settings import EngineSettings
from webui.video.ahead import Ahead
from webui.video.result import ResultFile

Send = Callable[[dict[str, Any]], None]


class Task:
    """The command reader calls `stop`, the engine's thread does the rest."""

    def __init__(
        self, command: dict[str, Any], send: Send, settings: EngineSettings, capabilities: Capabilities
    ) -> None:
        self.number: int = command["run"]
        self.folder: str = command["output_dir"]
        self.request = video_request(command["request"])
        self.memory = MemorySettings(**command.get("memory", {}))
        self.scratch: bool = command.get("scratch", False)
        self.root = Path(settings.scratch_dir if self.scratch else settings.jobs_dir)
        self._checkpoint_dir: str | None = command.get("checkpoint_dir")
        self._identity = checkpoint.Identity(
            capabilities.fingerprint, checkpoint.request_hash(self.request, self.memory)
        )
        self._saver = Saver(
            self.root,
            self._checkpoint_dir,
            command.get("fence", 0),
            self._identity,
            settings.checkpoint_seconds,
            lambda step: self.event("checkpoint", step=step),
        )
        self._previewer = Previewer()
        self._made_with = {"engine": capabilities.engine, "fingerprint": capabilities.fingerprint}
        self._ahead: Ahead | None = None
        self._stop = threading.Event()
        self._keep = False
        self._send = send

    def find_resume(self, engine: Engine) -> Snapshot | None:
        """The most advanced checkpoint that this engine can go on from."""
        if self._checkpoint_dir is None:
            return None
        # Only now, in the engine's thread: a model's checksum may first have to be made.
        self._identity = replace(self._identity, models=engine.identify(self.request))
        self._saver.identity = self._identity
        for snapshot in checkpoint.readable(self.root, self._checkpoint_dir, self._identity, self.request.total_steps):
            if engine.accepts(snapshot, self.request):
                self._saver.begin_at(snapshot.step)
                return snapshot
        return None

    def stop(self, keep: bool) -> None:
        """With `keep` the newest state is written at once, beside an engine that may be within a long step or hang."""
        self._keep = keep or self._keep
        if keep:
            threading.Thread(target=self._keep_now, name="keep", daemon=True).start()
        self._stop.set()

    def keep(self) -> None:
        """Writes the state of the last step that was done, unless it is on disk already."""
        self._saver.demand()

    def files(self, clip: Clip) -> list[ResultFile]:
        """Of the whole clip, on disk. Raises what `write_result` raises."""
        if self._ahead is None:
            self.decoded(clip, len(clip.frames))
        assert self._ahead is not None  # noqa: S101
        return self._ahead.result()

    def close(self) -> None:
        """Nothing is written any more after this."""
        self._saver.close()
        if self._ahead is not None:
            self._ahead.abandon()
            self._ahead = None  # with it goes the clip, which this may outlive until the next order

    def event(self, event: str, **fields: Any) -> None:
        self._send({"type": "event", "run": self.number, "event": {"event": event, **fields}})

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        self.event("step", step=done, total_steps=self.request.total_steps)
        if snapshot is not None:
            self._saver.offer(snapshot)
            if (image := self._previewer.look(snapshot)) is not None:
                self.event("preview", step=done, image=base64.b64encode(image).decode())
        self.check()

    def phase(self, name: Phase, part: int = 0, parts: int = 0) -> None:
        self._send({"type": "phase", "run": self.number, "phase": name, "part": part, "parts": parts})
        self.check()

    def decoded(self, clip: Clip, ready: int) -> None:
        if self._ahead is None:
            # What the memory settings changed about the picture, for whoever wonders about it later.
            changed = {
                "context_batch_size": context_of(self.request, self.memory),
                "vae_tiling": self.memory.vae_tiling,
            }
            clip.parameters |= self._made_with | changed
            folder, told = self.root / self.folder, partial(self.phase, "encode")
            self._ahead = Ahead(clip, self.request, folder, told, lambda: make_folder(self.root, self.folder))
        self._ahead.decoded(ready)

    def check(self) -> None:
        if self._stop.is_set():
            if self._keep:
                self._saver.demand()
            raise StoppedError

    def _keep_now(self) -> None:
        self._saver.demand()
        self._send({"type": "kept", "run": self.number})
