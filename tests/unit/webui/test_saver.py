from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from webui import checkpoint, saver
from webui.checkpoint import Identity, readable
from webui.engine.base import Snapshot
from webui.saver import Saver

IDENTITY = Identity("fingerprint", "request")
FOLDER = "2026/11/22/job/checkpoint"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(saver, "time", self)

    def monotonic(self) -> float:
        return self.now


class Generation:
    """Steps of a given length, and the checkpoints that were told."""

    def __init__(self, root: Path, clock: Clock, interval: float, folder: str | None = FOLDER) -> None:
        self.clock, self.root = clock, root
        self.told: list[int] = []
        self.saver = Saver(root, folder, 7, IDENTITY, interval, self.told.append)
        self.done = 0

    def step(self, seconds: float, count: int = 1) -> None:
        for _ in range(count):
            self.clock.now += seconds
            self.done += 1
            self.saver.offer(taken(self.done))
            self.saver._wait()  # the writing itself takes no part in what is decided

    def stored(self) -> list[int]:
        return [found.step for found in readable(self.root, FOLDER, IDENTITY, 1000)]


def taken(step: int) -> Snapshot:
    return Snapshot(step, 1, {"state": np.full(4, step)})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("interval", "step_seconds", "expected"),
    [
        (30, 4, [7, 14, 21]),  # the eighth step would end after 32 s: too late
        (30, 20, list(range(1, 25))),
        (30, 40, list(range(1, 25))),
        (1, 0.3, [4, 8, 12, 16, 20, 24]),
        (0.001, 0.3, [4, 8, 12, 16, 20, 24]),  # never more often than once a second
    ],
)
def test_no_more_than_the_interval_is_ever_lost(
    tmp_path: Path, clock: Clock, interval: float, step_seconds: float, expected: list[int]
) -> None:
    generation = Generation(tmp_path, clock, interval)
    generation.step(step_seconds, 24)
    assert generation.told == expected
    assert generation.stored() == [expected[-1]]


@pytest.mark.parametrize(("interval", "folder"), [(0, FOLDER), (30, None)])
def test_never_means_never(tmp_path: Path, clock: Clock, interval: float, folder: str | None) -> None:
    generation = Generation(tmp_path, clock, interval, folder)
    generation.step(100, 5)
    assert generation.saver.demand() is None
    assert list(tmp_path.iterdir()) == []


def test_a_demand_writes_the_newest_at_once_and_only_once(tmp_path: Path, clock: Clock) -> None:
    generation = Generation(tmp_path, clock, 30)
    assert generation.saver.demand() is None, "there is nothing yet"
    generation.step(0.01, 3)
    assert generation.saver.demand() == 3
    assert generation.saver.demand() == 3
    assert generation.told == [3]


def test_what_it_began_with_is_not_written_again(tmp_path: Path, clock: Clock) -> None:
    generation = Generation(tmp_path, clock, 30)
    generation.saver.begin_at(9)
    assert generation.saver.demand() == 9
    assert generation.told == []


def test_storage_that_hangs_holds_up_no_step_and_leaves_nothing_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, entered = threading.Event(), threading.Event()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        entered.set()
        hanging.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(saver, "make_folder", lambda root, folder: root)
    monkeypatch.setattr(saver, "LAST_WRITE_SECONDS", 0.05)
    generation = Generation(tmp_path, clock, 1)
    started = time.monotonic()
    generation.step(2, 5)
    assert entered.is_set()
    assert generation.saver.demand() is None
    generation.saver.close()
    assert time.monotonic() - started < 2
    hanging.set()
    assert generation.saver._writing is not None
    generation.saver._writing.join(5)
    assert list(tmp_path.iterdir()) == []
    assert generation.told == []


def test_a_folder_that_cannot_be_written_is_told_once_and_costs_nothing(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "2026").write_text("not a folder")
    generation = Generation(tmp_path, clock, 1)
    with caplog.at_level(logging.WARNING):
        generation.step(2, 3)
    assert caplog.text.count("no checkpoint") == 1
    (tmp_path / "2026").unlink()
    generation.step(2)
    assert generation.told == [4], "it tries again"


def test_links_are_not_followed_out_of_the_volume(tmp_path: Path, clock: Clock) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "jobs"
    elsewhere.mkdir()
    root.mkdir()
    (root / "2026").symlink_to(elsewhere)
    generation = Generation(root, clock, 1)
    generation.step(2)
    assert list(elsewhere.iterdir()) == []


def test_older_ones_go_only_after_a_newer_is_written(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = Generation(tmp_path, clock, 1)
    generation.step(2)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "sync", fail)
        generation.step(2)
    assert 1 in generation.stored()
    generation.step(2)
    assert generation.stored() == [3]


def fail(path: Path) -> None:
    raise OSError(5, "Input/output error")


def test_a_closed_one_holds_no_tensors(tmp_path: Path, clock: Clock) -> None:
    snapshot = taken(1)
    gone = weakref.ref(snapshot)
    kept = Saver(tmp_path, FOLDER, 7, IDENTITY, 30, lambda step: None)
    kept.offer(snapshot)
    del snapshot
    assert gone() is not None
    kept.close()
    assert gone() is None
    assert kept.demand() is None
