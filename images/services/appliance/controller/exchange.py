"""One HTTP/1.0 exchange on a connection of its own: the server closes it, nothing is chunked, nothing is reused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from appliance.errors import ApplianceError

_LONGEST_ANSWER = 64 * 1024


class ExchangeError(ApplianceError):
    """The other side spoke no HTTP or too much of it."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: str,
    host: str,
    body: bytes = b"",
    *,
    longest: int = _LONGEST_ANSWER,
) -> Answer:
    """Send `request` ("GET /path") and read the whole answer. The caller bounds the time and closes."""
    head = f"{request} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode("ascii") + body)
    await writer.drain()
    received = b""
    while chunk := await reader.read(_LONGEST_ANSWER):
        received += chunk
        if len(received) > longest:
            raise ExchangeError(f"the answer is longer than {longest} bytes")
    return _parse(received)


def _parse(received: bytes) -> Answer:
    head, separator, body = received.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ExchangeError(f"no HTTP answer: {received[:40]!r}")
    return Answer(int(words[1]), body)
