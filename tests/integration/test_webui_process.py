"""The engine process for real: started, told, crashed, hung and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from webui.engine_run import Event
from webui.process import BusyError, EngineProcess, NotReadyError, Run, explain_exit
from webui.request import Order, VideoRequest
from webui.settings import EngineSettings

JOB = "0192f0c1-2345-7abc-8def-0123456789ab"
Start = Callable[..., Awaitable[EngineProcess]]


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[tuple[EngineProcess, asyncio.Task[None]]] = []

    async def start_engine(step_seconds: float = 0.01, stop_seconds: float = 10, **faults: Any) -> EngineProcess:
        settings = EngineSettings(jobs_dir=str(tmp_path), step_seconds=step_seconds, faults=json.dumps(faults))
        process = EngineProcess(settings, lambda: True, stop_seconds)
        started.append((process, asyncio.create_task(process.run())))
        await until(lambda: process.status != "loading")
        return process

    yield start_engine
    for process, task in started:
        await process.close(1)
        await asyncio.wait_for(task, 5)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.01)


def order(prompt: str = "a cat", steps: int = 5) -> Order:
    request = VideoRequest(prompt, width=64, height=64, frames=3, steps=steps)
    return Order(JOB, 7, f"2026/11/22/{JOB}/attempts/7", request)


async def last_event(run: Run) -> dict[str, Any]:
    while True:
        event = await asyncio.wait_for(run.events.get(), 10)
        if event["event"] in ("done", "error"):
            await asyncio.wait_for(run.finished.wait(), 10)
            return event


async def test_a_generation_from_order_to_file(start: Start, tmp_path: Path) -> None:
    process = await start()
    run = process.submit(order())
    events: list[Event] = []
    while not events or events[-1]["event"] != "done":
        events.append(await asyncio.wait_for(run.events.get(), 10))
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "preview"] == ["started", *["step"] * 5, "done"]
    assert kinds[2] == "preview", "as soon as there is something to see"
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5]
    written = tmp_path / "2026/11/22" / JOB / "attempts/7/video.mp4"
    assert written.stat().st_size == events[-1]["files"][0]["size_bytes"]
    assert process.current is None


async def test_one_at_a_time(start: Start) -> None:
    process = await start(step_seconds=0.1)
    run = process.submit(order())
    with pytest.raises(BusyError) as raised:
        process.submit(order())
    assert raised.value.job == JOB
    assert (await last_event(run))["event"] == "done"
    assert (await last_event(process.submit(order())))["event"] == "done"


async def test_a_stop_ends_it_within_the_step_and_keeps_the_process(start: Start) -> None:
    process = await start(step_seconds=0.05)
    pid = process.pid
    run = process.submit(order(steps=150))
    await until(lambda: run.step >= 2)
    reached = run.step
    await process.stop(run, "CANCELLED", "enough")
    assert await last_event(run) == {"event": "error", "reason": "CANCELLED", "message": "enough"}
    assert run.step <= reached + 2
    assert (process.status, process.pid) == ("ok", pid)


async def test_a_hung_engine_is_killed_after_the_bound_and_replaced(start: Start) -> None:
    process = await start(stop_seconds=0.3, hang_at_step=2, only_prompt_contains="hang")
    pid = process.pid
    run = process.submit(order("hang"))
    await until(lambda: run.step == 1)
    await asyncio.sleep(0.2)
    assert run.progress_age() > 0.15
    await process.stop(run, "CANCELLED", "enough")
    assert (await last_event(run))["reason"] == "CANCELLED"
    await until(lambda: process.status == "ok")
    assert process.pid != pid
    assert (await last_event(process.submit(order())))["event"] == "done"


@pytest.mark.parametrize(("fault", "reason"), [("crash_at_step", "UNKNOWN"), ("kill_at_step", "HOST_OOM")])
async def test_a_dead_process_is_told_and_replaced(start: Start, fault: str, reason: str) -> None:
    process = await start(**{fault: 2, "only_prompt_contains": "boom"})
    event = await last_event(process.submit(order("boom")))
    assert (event["event"], event["reason"]) == ("error", reason)
    assert "SIG" in event["message"]
    await until(lambda: process.status == "ok")
    assert (await last_event(process.submit(order())))["event"] == "done"


async def test_a_process_that_is_about_to_be_missed_gets_no_job(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe has closed, but the end of a large process takes a moment."""
    process = await start()
    reaping = asyncio.Event()
    reap = process._reap

    async def reap_later(child: Any) -> int:
        reaping.set()
        await asyncio.sleep(0.2)
        return await reap(child)

    monkeypatch.setattr(process, "_reap", reap_later)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.wait_for(reaping.wait(), 5)
    with pytest.raises(NotReadyError):
        process.submit(order())
    await until(lambda: process.status == "ok")
    assert (await last_event(process.submit(order())))["event"] == "done"


async def test_out_of_memory_leaves_the_process_usable(start: Start) -> None:
    process = await start(oom=1)
    pid = process.pid
    assert (await last_event(process.submit(order())))["reason"] == "OOM"
    assert (await last_event(process.submit(order())))["event"] == "done"
    assert process.pid == pid


async def test_a_poisoned_process_gets_no_further_job(start: Start) -> None:
    process = await start(fail_prompt_contains="boom", reason="CUDA_ERROR")
    pid = process.pid
    assert (await last_event(process.submit(order("boom"))))["reason"] == "CUDA_ERROR"
    with pytest.raises(NotReadyError):
        process.submit(order())
    await until(lambda: process.status == "ok")
    assert process.pid != pid


async def test_a_model_that_does_not_load_is_an_error_with_its_message(start: Start) -> None:
    process = await start(load_error="checksum differs")
    assert process.status == "error"
    assert process.problem == "MODEL_LOAD_FAIL: checksum differs"
    with pytest.raises(NotReadyError):
        process.submit(order())


async def test_a_crash_before_it_was_ever_ready_is_an_error_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # that interpreter cannot even start
    process = await start()
    assert process.status == "error"
    assert process.problem is not None
    assert "exit code" in process.problem


async def test_an_unwritable_folder_is_an_error_and_not_the_end(start: Start, tmp_path: Path) -> None:
    process = await start()
    (tmp_path / "2026").write_text("not a folder")
    event = await last_event(process.submit(order()))
    assert event["reason"] == "UNKNOWN"
    (tmp_path / "2026").unlink()
    assert (await last_event(process.submit(order())))["event"] == "done"


async def test_results_do_not_follow_links_out_of_the_volume(start: Start, tmp_path: Path) -> None:
    process = await start()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "2026").symlink_to(elsewhere)
    assert (await last_event(process.submit(order())))["event"] == "error"
    assert list(elsewhere.iterdir()) == []


async def test_closing_tells_the_stream_first_and_leaves_no_process(start: Start) -> None:
    process = await start(hang_at_step=2)
    pid = process.pid
    run = process.submit(order())
    await until(lambda: run.step == 1)
    closing = asyncio.create_task(process.close(0.3))
    event = await asyncio.wait_for(last_event_now(run), 0.2)
    assert event == {"event": "error", "reason": "WORKER_LOST", "message": "shutting down"}
    await closing
    assert process.status == "draining"
    await until(lambda: not alive(pid))


async def last_event_now(run: Run) -> dict[str, Any]:
    while (event := await run.events.get())["event"] not in ("done", "error"):
        pass
    return event


def alive(pid: int | None) -> bool:
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_exit_codes_are_explained() -> None:
    assert explain_exit(-9)[0] == "HOST_OOM"
    assert explain_exit(-11) == ("UNKNOWN", "the engine process died of SIGSEGV")
    assert explain_exit(4) == ("UNKNOWN", "the engine process ended with exit code 4")
