"""A node-local run as a stream of JSON messages over a WebSocket.

Every message but `preview` holds the whole state, so nothing is lost by coming back: the first message after a
reconnect is as good as all that were missed. `{"event": queued|running|done|error|cancelled, "run": {…}}` at every
change, at most 20 a second; `{"event": "preview", "step", "image": data URI}`. The socket closes with 1000 when the
run is over, 1008 for a foreign origin, 1013 when too many are open.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from async_timeout import timeout
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sdapi.origin import is_own_origin
from webui.local import LocalRun, LocalRuns

MOST_SOCKETS = 32
KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS = 10.0  # whoever does not take a message for so long is not there any more
PAUSE_SECONDS = 0.05


class LocalSockets:
    def __init__(self, runs: LocalRuns, view: Callable[[LocalRun], dict[str, Any]]) -> None:
        self._runs = runs
        self._view = view
        self._open = 0

    async def serve(self, socket: WebSocket) -> None:
        run = self._runs.get(socket.path_params["run_id"])
        if not is_own_origin(socket.headers) or run is None:
            await socket.close(1008)  # before the handshake: the client sees 403
            return
        await socket.accept()
        if self._open >= MOST_SOCKETS:
            await socket.close(1013, "too many sockets are open")
            return
        self._open += 1
        tasks = [asyncio.create_task(self._send_all(socket, run)), asyncio.create_task(_listen(socket))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, socket: WebSocket, run: LocalRun) -> None:
        shown: bytes | None = None
        with run.watched() as changed, suppress(asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
            while True:
                changed.clear()
                is_over = run.is_over
                await _send(socket, {"event": run.state, "run": self._view(run)})
                if is_over:
                    async with timeout(SEND_SECONDS):
                        await socket.close(1000)
                    return
                if run.preview is not shown:
                    shown = run.preview
                    await _send(socket, {"event": "preview", "step": run.preview_step, "image": _data_uri(shown)})
                await asyncio.sleep(PAUSE_SECONDS)
                with suppress(asyncio.TimeoutError):
                    async with timeout(KEEP_ALIVE_SECONDS):
                        await changed.wait()


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    async with timeout(SEND_SECONDS):
        await socket.send_text(json.dumps(message))


async def _listen(socket: WebSocket) -> None:
    """Nothing is expected from the client; reading is how its leaving is noticed."""
    with suppress(WebSocketDisconnect, RuntimeError):
        while socket.application_state is WebSocketState.CONNECTED:
            await socket.receive()


def _data_uri(jpeg: bytes | None) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg or b"").decode()
