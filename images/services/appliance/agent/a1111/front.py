"""Answers the controller's probes in the A1111's stead: its own ping is an empty object."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from async_timeout import timeout

from appliance.settings import Address

HEAD_BYTES = 16 << 10
HEAD_SECONDS = 2.0
Facts = Callable[[], dict[str, Any]]


@contextlib.asynccontextmanager
async def serve_ping(listen: Address, facts: Facts) -> AsyncIterator[int]:
    """`GET /internal/ping` as our own webui answers it, and 404 for the rest; yields the port."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            async with timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(head, facts))
            async with timeout(HEAD_SECONDS):
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(accept, listen.host, listen.port, limit=HEAD_BYTES)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def _answer(head: bytes, facts: Facts) -> bytes:
    words = head.split(b" ", 2)
    if words[0] in (b"GET", b"HEAD") and words[1:2] and words[1].split(b"?")[0] == b"/internal/ping":
        content = facts()
        status = HTTPStatus.OK if content["status"] == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
    else:
        content = {"detail": "this worker's engine is a foreign A1111; its own pages are not offered by the cluster"}
        status = HTTPStatus.NOT_FOUND
    body = json.dumps(content).encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if words[0] == b"HEAD" else body)
