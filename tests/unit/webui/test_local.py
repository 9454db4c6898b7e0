"""The line of node-local runs, with an engine that does what the test says."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from webui import agents_turn, local
from webui.engine.base import Capabilities
from webui.local import LineFullError, LocalRun, LocalRuns
from webui.process import BusyError, NotReadyError, Run
from webui.request import ControlNet, KeyImage, MemorySettings, Order, RequestError, SparseControl, VideoRequest

REQUEST = VideoRequest("a cat", width=64, height=64, frames=2, steps=4)
JOB = "01a20a49-543e-7083-8945-0c7143c916e6"


class FakeProcess:
    """As EngineProcess, as far as local runs look at it."""

    def __init__(self) -> None:
        self.status = "ok"
        self.problem: str | None = None
        self.capabilities: Capabilities | None = Capabilities("synthetic", "f", True, "c", "m", 128, ("DDIM",))
        self.current: Run | None = None
        self.orders: list[Order] = []
        self.stopped: list[tuple[str, str]] = []

    def submit(self, order: Order) -> Run:
        if self.current is not None:
            raise BusyError(self.current.order.owner)
        self.orders.append(order)
        self.current = Run(len(self.orders), order)
        return self.current

    async def stop(self, run: Run, reason: str, message: str) -> None:
        run.stop_as = (reason, message)  # type: ignore[assignment]
        self.stopped.append((reason, message))
        self.end({"event": "error", "reason": reason, "message": message})

    def end(self, event: dict[str, Any]) -> None:
        assert self.current is not None
        run, self.current = self.current, None
        run.emit(event)
        run.finished.set()

    def done(self, scratch: Path, size: int = 3) -> None:
        assert self.current is not None
        folder = scratch / self.current.order.output_dir
        folder.mkdir()
        (folder / "video.mp4").write_bytes(b"x" * 3)
        file = {"name": "video.mp4", "media_type": "video/mp4", "size_bytes": size, "sha256": "0" * 64}
        self.end({"event": "done", "files": [file], "parameters": {"seed": 7}, "seconds": 1.0})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(agents_turn, "GAP_SECONDS", 0.15)


@asynccontextmanager
async def at_work(scratch: Path, limit: int = 3) -> AsyncIterator[tuple[FakeProcess, LocalRuns]]:
    process = FakeProcess()
    runs = LocalRuns(process, scratch, limit)  # type: ignore[arg-type]
    work = asyncio.create_task(runs.run())
    try:
        yield process, runs
    finally:
        runs.close()
        if process.current is not None:
            process.end({"event": "error", "reason": "WORKER_LOST", "message": "shutting down"})
        await asyncio.wait_for(work, 1)


async def until(happened: Any) -> None:
    for _ in range(200):
        if happened():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not happen")


async def running(process: FakeProcess, run: LocalRun) -> Run:
    await until(lambda: run.state == "running")
    assert process.current is not None
    return process.current


async def test_one_at_a_time_in_order_with_positions(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second, third = (runs.submit(REQUEST) for _ in range(3))
        assert (first.position, second.position, third.position) == (1, 2, 3)
        await running(process, first)
        assert (first.position, second.position, third.position) == (0, 1, 2)
        assert (runs.current, runs.waiting) == (first, (second, third))
        process.done(tmp_path)
        await asyncio.wait_for(first.wait(), 1)
        await running(process, second)
        assert (second.position, third.position) == (0, 1)
        assert [order.job for order in process.orders] == [first.id, second.id]


async def test_an_order_goes_to_scratch_without_checkpoints(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        order = (await running(process, run)).order
        assert (order.scratch, order.checkpoint_dir, order.memory) == (True, None, MemorySettings())
        assert order.output_dir == f"local/{run.id}"
        assert order.owner == "local", "the ping tells nobody the id, which opens the run"


def test_pictures_do_not_pile_up_where_nobody_reads() -> None:
    run = Run(1, Order(JOB, 1, "out", REQUEST))
    for number in range(100):
        run.emit({"event": "preview", "step": number, "image": ""})
    run.emit({"event": "done"})
    assert run.events.qsize() == 21


async def test_a_run_shows_progress_and_ends_with_its_files(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        engine_run = await running(process, run)
        engine_run.phase, engine_run.part, engine_run.parts = "step", 1, 2
        engine_run.emit({"event": "step", "step": 2, "total_steps": 12})
        engine_run.emit({"event": "preview", "step": 2, "image": base64.b64encode(b"jpeg").decode()})
        await until(lambda: run.preview)
        assert (run.step, run.total_steps, run.preview, run.preview_step) == (2, 12, b"jpeg", 2)
        assert (run.phase, run.part, run.parts) == ("step", 1, 2)
        process.done(tmp_path)
        await asyncio.wait_for(run.wait(), 1)
        assert (run.state, run.error, run.parameters) == ("done", None, {"seed": 7})
        assert run.files[0].path.read_bytes() == b"xxx"
        assert run.started_at is not None
        assert run.finished_at is not None
        assert run.created_at <= run.started_at <= run.finished_at


async def test_a_failed_run_says_why_and_the_next_goes_on(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second = runs.submit(REQUEST), runs.submit(REQUEST)
        await running(process, first)
        process.status = "loading"
        process.end({"event": "error", "reason": "HOST_OOM", "message": "killed"})
        await asyncio.wait_for(first.wait(), 1)
        assert (first.state, first.error) == ("error", ("HOST_OOM", "killed"))
        await asyncio.sleep(0.05)
        assert second.state == "queued", "the engine is not back yet"
        process.status = "ok"
        await running(process, second)


async def test_the_line_is_bounded(tmp_path: Path) -> None:
    async with at_work(tmp_path, limit=2) as (process, runs):
        await running(process, runs.submit(REQUEST))
        runs.submit(REQUEST)
        last = runs.submit(REQUEST)
        with pytest.raises(LineFullError):
            runs.submit(REQUEST)
        last.cancel()
        runs.submit(REQUEST)


@pytest.mark.parametrize("status", ["error", "draining"])
async def test_nothing_is_taken_that_cannot_be_done(tmp_path: Path, status: str) -> None:
    async with at_work(tmp_path) as (process, runs):
        with pytest.raises(RequestError, match="model"):
            runs.submit(VideoRequest("a cat", model="unknown"))
        process.status = status
        with pytest.raises(NotReadyError):
            runs.submit(REQUEST)
        process.status, process.capabilities = "loading", None
        with pytest.raises(NotReadyError):
            runs.submit(REQUEST)


async def test_cancel_in_line_running_and_over(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second, third = (runs.submit(REQUEST) for _ in range(3))
        await running(process, first)
        second.cancel()
        assert (second.state, second.error, third.position) == ("cancelled", None, 1)
        first.cancel()
        first.cancel()
        await asyncio.wait_for(first.wait(), 1)
        assert (first.state, process.stopped) == ("cancelled", [("CANCELLED", "cancelled")])
        await running(process, third)
        first.cancel()
        assert third.state == "running"


async def test_an_agents_order_is_waited_for(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        process.submit(Order(JOB, 5, f"2026/11/22/{JOB}/attempts/5", REQUEST))
        run = runs.submit(REQUEST)
        await asyncio.sleep(0.1)
        assert (run.state, run.position, process.stopped) == ("queued", 1, [])
        process.end({"event": "done", "files": [], "parameters": {}})
        await running(process, run)


async def test_an_agent_that_looked_finds_a_gap(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second = runs.submit(REQUEST), runs.submit(REQUEST)
        await running(process, first)
        runs.note_agent()
        process.done(tmp_path)
        await asyncio.sleep(0.08)
        assert second.state == "queued"
        process.submit(Order(JOB, 5, f"2026/11/22/{JOB}/attempts/5", REQUEST))
        await asyncio.sleep(0.2)
        assert second.state == "queued", "it is the agent's turn"
        process.end({"event": "done", "files": [], "parameters": {}})
        await running(process, second)


async def test_an_agent_that_came_with_an_order_finds_a_longer_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its storage may be slow: between its look and its order another local run had begun."""
    monkeypatch.setattr(agents_turn, "ORDER_GAP_SECONDS", 0.6)
    async with at_work(tmp_path) as (process, runs):
        first, second, third = (runs.submit(REQUEST) for _ in range(3))
        await running(process, first)
        runs.note_agent(refused=True)
        process.done(tmp_path)
        await asyncio.sleep(0.4)
        assert second.state == "queued"
        await running(process, second)
        runs.note_agent()
        process.done(tmp_path)
        await asyncio.sleep(0.4)
        assert third.state == "running", "once refused is not refused for ever"


async def test_a_defect_fails_one_run_and_not_the_server(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second, third = (runs.submit(REQUEST) for _ in range(3))
        await running(process, first)
        process.end({"event": "done"})
        await asyncio.wait_for(first.wait(), 1)
        assert (first.state, first.error) == ("error", ("UNKNOWN", "KeyError: 'files'"))
        engine_run = await running(process, second)
        engine_run.emit({"event": "preview", "step": 1, "image": 3})
        await asyncio.wait_for(second.wait(), 1)
        assert (second.state, process.stopped) == ("error", [("UNKNOWN", "its run has failed")])
        await running(process, third)


async def test_without_an_agent_there_is_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_turn, "GAP_SECONDS", 60)
    async with at_work(tmp_path) as (process, runs):
        runs.note_agent()  # while nothing was in its way
        first, second = runs.submit(REQUEST), runs.submit(REQUEST)
        await running(process, first)
        process.done(tmp_path)
        await running(process, second)


async def test_a_hung_engine_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_SECONDS", {"load": 0.05})
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        await running(process, run)
        await asyncio.wait_for(run.wait(), 1)
        assert run.error == ("TIMEOUT", "no progress in phase load")


async def test_an_engine_that_does_not_come_back_fails_the_line_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ENGINE_SECONDS", 0.05)
    async with at_work(tmp_path) as (process, runs):
        process.status, process.problem = "loading", "no such model"
        run = runs.submit(REQUEST)
        await asyncio.wait_for(run.wait(), 1)
        assert run.error == ("MODEL_LOAD_FAIL", "no such model")


async def test_the_oldest_results_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "KEPT_RUNS", 2)
    async with at_work(tmp_path, limit=9) as (process, runs):
        made = []
        for _ in range(4):
            made.append(runs.submit(REQUEST))
            await running(process, made[-1])
            process.done(tmp_path)
            await asyncio.wait_for(made[-1].wait(), 1)
        assert [runs.get(run.id) is not None for run in made] == [False, False, True, True]
        assert sorted(path.name for path in (tmp_path / "local").iterdir()) == sorted(run.id for run in made[2:])


async def test_results_are_bounded_in_bytes_but_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "KEPT_BYTES", 100)
    async with at_work(tmp_path, limit=9) as (process, runs):
        made = []
        for size in (40, 40, 40, 1000):
            made.append(runs.submit(REQUEST))
            await running(process, made[-1])
            process.done(tmp_path, size)
            await asyncio.wait_for(made[-1].wait(), 1)
            if size == 40 and len(made) == 3:
                assert [runs.get(run.id) is not None for run in made] == [False, True, True]
        assert [runs.get(run.id) is not None for run in made] == [False, False, False, True]


async def test_forgetting_removes_the_files(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        await running(process, run)
        runs.forget(run)
        assert runs.get(run.id) is run, "what runs cannot be forgotten"
        process.done(tmp_path)
        await asyncio.wait_for(run.wait(), 1)
        runs.forget(run)
        runs.forget(run)
        assert runs.get(run.id) is None
        assert list((tmp_path / "local").iterdir()) == []


async def test_the_end_comes_for_all(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        first, second = runs.submit(REQUEST), runs.submit(REQUEST)
        await running(process, first)
    for run in (first, second):
        assert (run.state, run.error and run.error[0]) == ("error", "WORKER_LOST")
    with pytest.raises(NotReadyError):
        runs.submit(REQUEST)


def test_leftovers_go_and_a_foreign_folder_is_not_followed(tmp_path: Path) -> None:
    process: Any = SimpleNamespace(status="ok", problem=None, capabilities=FakeProcess().capabilities)
    (tmp_path / "local" / "old").mkdir(parents=True)
    LocalRuns(process, tmp_path)
    assert list((tmp_path / "local").iterdir()) == []
    (tmp_path / "local").rmdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "local").symlink_to(precious)
    runs = LocalRuns(process, tmp_path)
    with pytest.raises(NotReadyError, match="symbolic link"):
        runs.submit(REQUEST)
    (tmp_path / "file").touch()
    blocked = LocalRuns(process, tmp_path / "file" / "scratch")
    with pytest.raises(NotReadyError, match="scratch disk"):
        blocked.submit(REQUEST)


async def test_watchers_hear_of_every_change(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        with run.watched() as changed:
            await running(process, run)
            await asyncio.wait_for(changed.wait(), 1)
            changed.clear()
            process.done(tmp_path)
            await asyncio.wait_for(changed.wait(), 1)
            assert run.is_over
        assert not run._watchers


async def test_pictures_are_not_kept_with_the_results(tmp_path: Path) -> None:
    """Thirty-two runs of 16 MiB each would be half a gigabyte of the server's memory."""
    picture = "A" * 10_000
    fields = ("init_image", "last_frame", "init_video")
    request = replace(
        REQUEST,
        **dict.fromkeys(fields, picture),
        controlnets=(ControlNet("m", picture),),
        sparse_control=SparseControl("m", (KeyImage(0, picture),)),
    )
    run = LocalRun(lambda run: None, request)
    assert picture in json.dumps(run.request.as_dict())
    run.end("done")
    for value in (run.request.as_dict(), run.described):
        assert picture not in json.dumps(value)
