"""A node and an api in one, as small as they come: WebSockets that do as they are told, answers to `auth_request`.

Serves in a thread of this process; the gateway's container reaches it at the bridge's address.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

KEY = {"Authorization": "Bearer user-key"}
LARGEST = 64 << 20


class SocketNode:
    """`port` once started. Messages to it: `headers`, `bytes N`, `half` (a frame, then silence), `close`, or echo."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = 0
        self.most_open = 0
        self.received = 0
        self.handshakes: list[str] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with serve(
            self._talk, "0.0.0.0", 0, process_request=self._answer, max_size=LARGEST, close_timeout=1, compression=None,
            ping_interval=None, reuse_port=False, backlog=1024,
        ) as server:  # fmt: skip
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            for connection in server.connections:
                connection.transport.abort()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/internal/auth":
            allowed = request.headers.get("Authorization") == KEY["Authorization"]
            return connection.respond(HTTPStatus.OK if allowed else HTTPStatus.UNAUTHORIZED, "")
        self.handshakes.append(request.path)
        if request.path.startswith("/refuse"):
            return connection.respond(HTTPStatus.FORBIDDEN, "not for you")
        if "Upgrade" not in request.headers:
            return self._page(connection, request.path)
        return None

    def _page(self, connection: ServerConnection, path: str) -> Response:
        """The query is what to answer: `status`, and headers."""
        said = dict(parse_qsl(urlsplit(path).query))
        status = HTTPStatus(int(said.pop("status", 200)))
        response = connection.respond(status, json.dumps({"node": self.name, "path": path}))
        for name, value in said.items():
            response.headers[name] = value
        return response

    async def _talk(self, connection: ServerConnection) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            with suppress(ConnectionClosed):
                async for message in connection:
                    self.received += len(message)
                    await self._obey(connection, message)
        finally:
            self.open -= 1

    async def _obey(self, connection: ServerConnection, message: Any) -> None:
        word, _, number = message.partition(" ") if isinstance(message, str) else ("", "", "")
        if word == "headers":
            assert connection.request
            pairs = list(connection.request.headers.raw_items())
            await connection.send(json.dumps({"node": self.name, "path": connection.request.path, "headers": pairs}))
        elif word == "bytes":
            await connection.send(b"\x00" * int(number))
        elif word == "half":
            connection.transport.write(b"\x82\x7e\x01\x00half")
        elif word == "close":
            await connection.close(4321, "as told")
        else:
            await connection.send(message)
