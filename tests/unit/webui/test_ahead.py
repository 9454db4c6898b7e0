"""Encoding beside decoding: the same files, none of a clip that is not finished, and nobody left behind."""

from __future__ import annotations

import io
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from webui.engine.base import Clip, Control, EngineError, Snapshot
from webui.engine.synthetic import SyntheticEngine, draw_frames
from webui.folders import make_folder
from webui.request import FORMATS, MemorySettings, VideoRequest
from webui.settings import EngineSettings
from webui.task import Task
from webui.video.ahead import Ahead
from webui.video.result import write_result
from webui.worker import Worker

FRAMES = 12
REQUEST = VideoRequest("a", width=64, height=64, frames=FRAMES, format=FORMATS)
WHOLE = draw_frames(REQUEST, 1)


@pytest.fixture
def clip() -> Clip:
    """Its frames are not there yet."""
    return Clip(np.zeros_like(WHOLE), {"seed": 1})


def start(clip: Clip, folder: Path, heard: Callable[[int, int], None] = lambda done, total: None) -> Ahead:
    return Ahead(clip, REQUEST, folder, heard, lambda: make_folder(folder.parent, folder.name))


def grow(clip: Clip, ahead: Ahead, start: int, end: int) -> None:
    clip.frames[start:end] = WHOLE[start:end]
    ahead.decoded(end)


def encoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "encode"]


def test_the_files_are_those_of_a_clip_that_was_finished(clip: Clip, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    ahead = start(clip, tmp_path / "ahead", lambda done, total: heard.append((done, total)))
    for frame in range(0, FRAMES, 4):
        time.sleep(0.02)  # for an encoder that does not wait
        grow(clip, ahead, frame, frame + 4)
    (tmp_path / "after").mkdir()
    assert ahead.result() == write_result(Clip(WHOLE, {"seed": 1}), REQUEST, tmp_path / "after")
    assert heard[-1] == (FRAMES * 6, FRAMES * 6)
    assert encoders() == []


def test_a_clip_that_is_given_up_leaves_no_file_no_folder_and_no_thread(clip: Clip, tmp_path: Path) -> None:
    ahead = start(clip, tmp_path / "ahead")
    grow(clip, ahead, 0, 8)
    assert encoders() == ["encode"]
    ahead.abandon()
    ahead.abandon()
    assert encoders() == []
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_written_at_once_are_taken_back(clip: Clip, tmp_path: Path) -> None:
    folder = tmp_path / "ahead"
    frames = VideoRequest("a", format=("frames",))
    ahead = Ahead(clip, frames, folder, lambda done, total: None, lambda: make_folder(tmp_path, "ahead"))
    grow(clip, ahead, 0, 8)
    deadline = time.monotonic() + 5
    while not (folder / "frame-0007.png").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ahead.abandon()
    assert list(folder.iterdir()) == []


def test_what_goes_wrong_beside_is_told_in_the_end(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "ahead").symlink_to("/tmp")
    ahead = start(clip, tmp_path / "ahead")
    grow(clip, ahead, 0, FRAMES)
    with pytest.raises(EngineError, match="is a symbolic link"):
        ahead.result()


class HalfWay(SyntheticEngine):
    """Decodes half of the clip, and then what `then` does."""

    then: Callable[[Control], None]
    frames: weakref.ref[Any]

    def generate(
        self, request: VideoRequest, control: Control, memory: MemorySettings, resume: Snapshot | None = None
    ) -> Clip:
        clip = Clip(np.zeros_like(WHOLE), {"seed": 1})
        self.frames = weakref.ref(clip.frames)
        control.phase("decode")
        clip.frames[:8] = WHOLE[:8]
        control.decoded(clip, 8)
        self.then(control)
        clip.frames[8:] = WHOLE[8:]
        control.decoded(clip, FRAMES)
        return clip


def run(tmp_path: Path, then: Callable[[Control], None]) -> list[dict[str, Any]]:
    settings = EngineSettings(jobs_dir=str(tmp_path))
    engine, told = HalfWay(settings), []
    engine.then = then
    capabilities = engine.load()
    command = {"run": 1, "fence": 5, "output_dir": "job/attempts/5", "request": REQUEST.as_dict()}
    task = Task(command, told.append, settings, capabilities)
    Worker(settings, engine, io.StringIO(), told.append)._run(task, capabilities)
    assert encoders() == []
    assert engine.frames() is None, "the task is still known, for orders to stop it; its clip is gone"
    assert task.number == 1
    return [message["event"] for message in told if message["type"] == "event"]


def test_the_engine_s_own_clip_is_encoded_with_all_that_is_told_about_it(tmp_path: Path) -> None:
    events = run(tmp_path, lambda control: time.sleep(0.05))
    assert [event["event"] for event in events] == ["started", "done"]
    assert len(events[-1]["files"]) == 4 + FRAMES
    assert events[-1]["parameters"]["seed"] == 1
    assert events[-1]["parameters"]["engine"] == "synthetic"
    assert b'"engine": "synthetic"' in (tmp_path / "job/attempts/5/video.mp4").read_bytes()


@pytest.mark.parametrize("reason", ["OOM", "UNKNOWN"])
def test_a_failure_half_way_is_told_when_nothing_writes_any_more(tmp_path: Path, reason: Any) -> None:
    def fail(_: Control) -> None:
        raise EngineError(reason, "half way")

    events = run(tmp_path, fail)
    assert (events[-1]["event"], events[-1]["reason"]) == ("error", reason)
    assert list(tmp_path.rglob("*.*")) == []
