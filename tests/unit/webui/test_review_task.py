"""Whoever hears that a generation is done tidies up behind it: nobody may write there any more."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from webui import checkpoint, saver
from webui.engine.base import Snapshot
from webui.engine.synthetic import SyntheticEngine
from webui.request import VideoRequest
from webui.settings import EngineSettings
from webui.task import Task
from webui.worker import Worker

JOB = "2026/11/22/01a20a49-543e-7083-8945-0c7143c916e6"


@pytest.mark.parametrize("prompt", ["a cat", "FAIL"])
def test_no_checkpoint_is_written_after_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """The last step's is on its way when the video is ready."""
    order: list[str] = []
    written = threading.Event()
    real = checkpoint.write

    def slow(folder: Path, fence: int, snapshot: Snapshot, *more: Any) -> bool:
        time.sleep(0.5)
        try:
            return real(folder, fence, snapshot, *more)
        finally:
            order.append("written")
            written.set()

    monkeypatch.setattr(checkpoint, "write", slow)
    monkeypatch.setattr(saver, "SHORTEST_SECONDS", 0.0)
    settings = EngineSettings(jobs_dir=str(tmp_path), step_seconds=0, checkpoint_seconds=1e-9)
    engine = SyntheticEngine(settings)
    capabilities = engine.load()

    def send(message: dict[str, Any]) -> None:
        event = message.get("event", {}).get("event")
        if event in ("done", "error"):
            order.append(event)

    if prompt == "FAIL":
        monkeypatch.setattr("webui.engine.synthetic.draw_frames", lambda *_: 1 / 0)
    request = VideoRequest(prompt, width=64, height=64, frames=2, steps=3)
    command = {"run": 1, "fence": 5, "output_dir": f"{JOB}/attempts/5", "checkpoint_dir": f"{JOB}/checkpoint"}
    task = Task(command | {"request": asdict(request)}, send, settings, capabilities)
    Worker(settings, engine, io.StringIO(), send)._run(task, capabilities)
    assert written.wait(5)
    assert order[-1] in ("done", "error")
