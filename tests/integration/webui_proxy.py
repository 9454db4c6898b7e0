"""What the gateway does for browsers, in small: cuts off a prefix, adds the cluster token, passes WebSockets.

One request a connection, as bytes: whatever the page and the node say to each other goes through untouched.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

HEAD_LIMIT = 64 << 10
DROPPED = (b"authorization", b"connection", b"cookie", b"x-forwarded-host")


class Proxy:
    """A thread with a loop of its own, until `close`; the node behind it may come and go."""

    def __init__(self, node_port: int, token: str, prefix: str = "/webui") -> None:
        self.node_port = node_port
        self.made_at_port: int | None = None  # where the gateway finds what was made before its visitor moved
        self._token = token
        self._prefix = prefix
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[started], daemon=True)
        self._thread.start()
        assert started.wait(10)
        self.url = f"http://127.0.0.1:{self.port}{prefix}/"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=HEAD_LIMIT)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0.05)  # sockets close a turn of the loop later

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stop.is_set():  # it was on its way while the listener closed
            writer.close()
            return
        task = asyncio.create_task(self._talk(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        task.add_done_callback(lambda _: writer.close())  # also when it ends before it began

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = self._rewrite(await reader.readuntil(b"\r\n\r\n"))
        if head is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        made_before = self.made_at_port and head.startswith(b"GET /local/runs/") and b"/ws HTTP" not in head
        port = self.made_at_port if made_before else self.node_port
        try:
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        node_writer.write(head)
        pipes = [asyncio.create_task(pipe(reader, node_writer)), asyncio.create_task(pipe(node_reader, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            if not pipes[1].done():  # the browser has said all it had to say
                await asyncio.wait(pipes[1:], timeout=10)
        finally:
            for task in pipes:
                task.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            node_writer.close()

    def _rewrite(self, head: bytes) -> bytes | None:
        first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
        method, path, version = first.split(b" ")
        prefix = self._prefix.encode()
        if not path.startswith(prefix + b"/"):
            return None
        fields = [line.partition(b":") for line in lines]
        host = next(value.strip() for name, _, value in fields if name.lower() == b"host")
        kept = [name + b":" + value for name, _, value in fields if name.lower() not in DROPPED]
        upgrade = any(name.lower() == b"upgrade" for name, _, _ in fields)
        kept += [
            b"Authorization: Bearer " + self._token.encode(),
            b"Connection: " + (b"upgrade" if upgrade else b"close"),
            b"X-Forwarded-Host: " + host,
        ]
        return b"\r\n".join([b" ".join([method, path[len(prefix) :], version]), *kept]) + b"\r\n\r\n"


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(64 << 10):
            writer.write(chunk)
            await writer.drain()
