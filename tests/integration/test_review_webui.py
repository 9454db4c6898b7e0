"""The server's side of an engine process that dies badly."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from webui import process as process_module
from webui.engine.base import Capabilities, Clip, Control, EngineError, Snapshot
from webui.process import EngineProcess
from webui.request import MemorySettings, Order, VideoRequest
from webui.settings import EngineSettings
from webui.task import Task
from webui.worker import Worker

JOB = "0192f0c1-2345-7abc-8def-0123456789ab"
CAPABILITIES = {
    "engine": "broken", "fingerprint": "f", "synthetic": True, "checkpoint": "c", "motion_module": "m",
    "max_frames": 128, "samplers": ["DDIM"],
}  # fmt: skip
# Ready, and at the first order dead in the middle of a line, as by SIGKILL with a full pipe.
DIES_IN_A_LINE = f"""
import os, sys
print({json.dumps(json.dumps({"type": "ready", "capabilities": CAPABILITIES, "load_seconds": 0}))}, flush=True)
sys.stdin.readline()
sys.stdin.readline()
os.write(1, b'LINE')
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("line", ['{"type": "event", "run": 1, "ev', "x" * (process_module.LINE_LIMIT + 70_000)])
async def test_half_a_line_of_a_dead_engine_does_not_end_the_server(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.create_subprocess_exec
    program = DIES_IN_A_LINE.replace("b'LINE'", f"b{line[:40]!r} * {max(1, len(line) // 40)}")

    async def start(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await real(sys.executable, "-c", program, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    process = EngineProcess(EngineSettings(jobs_dir=str(tmp_path)), lambda: True, 2)
    running = asyncio.create_task(process.run())
    try:
        await until_ok(process)
        run = process.submit(Order(JOB, 7, f"2026/11/22/{JOB}/attempts/7", VideoRequest("x")))
        event = await asyncio.wait_for(run.events.get(), 10)
        assert (event["event"], event["reason"]) == ("error", "HOST_OOM")
        await until_ok(process)
        assert not running.done()
    finally:
        await process.close(1)
        await asyncio.wait_for(running, 5)


async def until_ok(process: EngineProcess) -> None:
    deadline = time.monotonic() + 10
    while process.status != "ok":
        assert time.monotonic() < deadline, process.problem
        await asyncio.sleep(0.01)


class BrokenGpu:
    """After a sticky CUDA error every call fails, the freeing of memory too."""

    def load(self) -> Capabilities:
        raise NotImplementedError

    def warm_up(self) -> Clip:
        raise NotImplementedError

    def accepts(self, snapshot: Snapshot, request: VideoRequest) -> bool:
        raise NotImplementedError

    def generate(
        self, request: VideoRequest, control: Control, memory: MemorySettings, resume: Snapshot | None = None
    ) -> Clip:
        raise EngineError("CUDA_ERROR", "an illegal memory access was encountered")

    def release(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def gpu(self) -> dict[str, Any] | None:
        return None


def test_a_failure_is_told_by_its_own_name_even_if_nothing_can_be_released() -> None:
    told: list[dict[str, Any]] = []
    worker = Worker(EngineSettings(), BrokenGpu(), io.StringIO(), told.append)
    capabilities = Capabilities(**CAPABILITIES)  # type: ignore[arg-type]
    order = {"run": 1, "output_dir": "x", "request": {"prompt": "x"}}
    with pytest.raises(RuntimeError, match="CUDA"):  # and with it the process ends
        worker._run(Task(order, told.append, EngineSettings(), capabilities), capabilities)
    assert [message["event"]["event"] for message in told if message["type"] == "event"] == ["started", "error"]
    assert told[-1]["event"]["reason"] == "CUDA_ERROR"
    assert told.index({"type": "ending"}) == len(told) - 2, "before the run is over, so that no order follows it"
