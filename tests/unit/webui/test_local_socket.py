"""A client that does not take its messages is dropped; it holds nobody else up."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.websockets import WebSocketState

from tests.unit.webui.test_local import REQUEST, at_work, running
from webui import local_socket
from webui.local_socket import LocalSockets
from webui.local_view import view_run


class FakeSocket:
    """As a WebSocket whose client reads `takes` messages and then none."""

    def __init__(self, run_id: str, takes: int) -> None:
        self.path_params = {"run_id": run_id}
        self.headers = Headers({"host": "node"})
        self.application_state = WebSocketState.CONNECTED
        self.takes = takes
        self.sent: list[dict[str, Any]] = []
        self.closed: int | None = None

    async def accept(self) -> None: ...

    async def close(self, code: int, reason: str = "") -> None:
        self.closed = code

    async def send_text(self, text: str) -> None:
        if len(self.sent) >= self.takes:
            await asyncio.Event().wait()
        self.sent.append(json.loads(text))

    async def receive(self) -> None:
        await asyncio.Event().wait()


async def test_a_slow_client_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "SEND_SECONDS", 0.1)
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        sockets = LocalSockets(runs, lambda run: view_run(run, None))
        slow, quick = FakeSocket(run.id, takes=1), FakeSocket(run.id, takes=1000)
        serving = [asyncio.create_task(sockets.serve(socket)) for socket in (slow, quick)]  # type: ignore[arg-type]
        engine_run = await running(process, run)
        for step in range(1, 4):
            engine_run.emit({"event": "step", "step": step, "total_steps": 4})
            await asyncio.sleep(0.06)
        started = time.monotonic()
        await asyncio.wait_for(serving[0], 1)
        assert time.monotonic() - started < 0.5
        assert len(slow.sent) == 1
        process.done(tmp_path)
        await asyncio.wait_for(serving[1], 1)
        assert [message["event"] for message in quick.sent][-1] == "done"
        assert quick.closed == 1000
        assert not run._watchers


async def test_changes_in_quick_succession_are_told_together(tmp_path: Path) -> None:
    async with at_work(tmp_path) as (process, runs):
        run = runs.submit(REQUEST)
        socket = FakeSocket(run.id, takes=10_000)
        sockets = LocalSockets(runs, lambda run: view_run(run, None))
        serving = asyncio.create_task(sockets.serve(socket))  # type: ignore[arg-type]
        engine_run = await running(process, run)
        for step in range(500):
            engine_run.emit({"event": "step", "step": step, "total_steps": 500})
            if step % 50 == 0:
                await asyncio.sleep(0.01)
        process.done(tmp_path)
        await asyncio.wait_for(serving, 2)
        assert len(socket.sent) < 20
        assert socket.sent[-1]["event"] == "done"
