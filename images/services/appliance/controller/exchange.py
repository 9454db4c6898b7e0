"""One HTTP/1.0 exchange on a connection of its own: the server closes it, nothing is chunked, nothing is reused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from appliance.errors import ApplianceError

LONGEST_ANSWER = 64 * 1024


class ExchangeError(ApplianceError):
    """The other side spoke no HTTP or too much of it."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class Exchange(asyncio.Protocol):
    """Sends `request` ("GET /path") as soon as it is connected. `answer` is there when the other side has closed; it
    raises OSError or ExchangeError. The caller bounds the time and calls `abort`. A protocol and not a pair of streams:
    there are dozens a second."""

    def __init__(self, request: str, host: str, body: bytes = b"", *, longest: int = LONGEST_ANSWER) -> None:
        head = f"{request} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._message = head.encode("ascii") + body
        self._longest = longest
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # whoever was to hear of it may have gone
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > self._longest and not self.answer.done():
            self.answer.set_exception(ExchangeError(f"the answer is longer than {self._longest} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer.done():
            return
        try:
            if error:
                raise error
            self.answer.set_result(_parse(bytes(self._received)))
        except (OSError, ExchangeError) as failure:
            self.answer.set_exception(failure)


def _parse(received: bytes) -> Answer:
    head, separator, body = received.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ExchangeError(f"no HTTP answer: {received[:40]!r}")
    return Answer(int(words[1]), body)
