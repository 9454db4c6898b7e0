"""Requests at a fixed pace, whether or not those before were answered, and WebSockets that are held."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import websockets.asyncio.client
from websockets.exceptions import InvalidHandshake, WebSocketException

PER_SECOND = 50
SOCKETS = 30
VISITORS = 60
PATIENCE_SECONDS = 2.0
"""What was not answered by then has failed for its visitor."""
POST_SHARE = 0.2
TALK_SECONDS = 0.3


@dataclass
class Seen:
    """One request. `sent` is a monotonic second, `node` whoever answered it, `fault` why it counts as failed."""

    sent: float
    method: str
    cookie: str
    identity: str
    took: float = 0.0
    node: str = ""
    fault: str = ""


@dataclass
class Talk:
    """One WebSocket. `ended` is when it broke (never: it was closed by its visitor)."""

    node: str
    began: float
    ended: float = 0.0
    silent: float = 0.0
    """The longest time without an answer."""


@dataclass
class Diary:
    requests: list[Seen] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)


class Visitors:
    """Of one gateway at `address`, (host, port). `key` are headers that let them in."""

    def __init__(self, address: tuple[str, int], key: Mapping[str, str], seed: int = 1) -> None:
        self.diary = Diary()
        self._address = address
        self._key = dict(key)
        self._random = random.Random(seed)
        self._cookies = [f"{self._random.getrandbits(128):032x}" for _ in range(VISITORS)]
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._go(self._keep_asking())
        for number in range(SOCKETS):
            self._go(self._converse(self._cookies[number % VISITORS]))

    async def stop(self) -> Diary:
        self._stop.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks), timeout=PATIENCE_SECONDS + 5)
        return self.diary

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_asking(self) -> None:
        begin = time.monotonic()
        for number in itertools.count():
            if self._stop.is_set():
                return
            method = "POST" if self._random.random() < POST_SHARE else "GET"
            # Each once, so that it is known where they are at home; then anyone.
            cookie = self._cookies[number] if number < VISITORS else self._random.choice(self._cookies)
            self._go(self._ask(method, cookie))
            await asyncio.sleep(max(0.0, begin + (number + 1) / PER_SECOND - time.monotonic()))

    async def _ask(self, method: str, cookie: str) -> None:
        seen = Seen(time.monotonic(), method, cookie, uuid.uuid4().hex)
        self.diary.requests.append(seen)
        try:
            status, body = await asyncio.wait_for(self._exchange(method, cookie, seen.identity), PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            seen.fault = "no answer"
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            seen.fault = type(error).__name__
        else:
            seen.node = body.partition('"node": "')[2].partition('"')[0]
            seen.fault = "" if status == 200 else str(status)
        seen.took = time.monotonic() - seen.sent

    async def _exchange(self, method: str, cookie: str, identity: str) -> tuple[int, str]:
        """Status and body, on a connection of its own."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            length = "Content-Length: 2\r\n" if method == "POST" else ""
            key = "".join(f"{name}: {value}\r\n" for name, value in self._key.items())
            writer.write(
                f"{method} /webui/page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}X-Post-Id: {identity}\r\n"
                f"Cookie: appliance_client={cookie}\r\n{length}\r\n{'{}' if length else ''}".encode()
            )
            received = await reader.read(65536)
            while (more := await reader.read(65536)) != b"":
                received += more
        finally:
            writer.transport.abort()
        if not received:
            raise ConnectionError("closed without an answer")
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body.decode("latin-1")

    async def _converse(self, cookie: str) -> None:
        """Comes back when it was thrown out, as pages do."""
        host, port = self._address
        headers = {**self._key, "Cookie": f"appliance_client={cookie}"}
        while not self._stop.is_set():
            try:
                async with websockets.asyncio.client.connect(
                    f"ws://{host}:{port}/webui/queue/join", additional_headers=headers, open_timeout=PATIENCE_SECONDS,
                    ping_interval=None, close_timeout=0.2, compression=None,
                ) as socket:  # fmt: skip
                    await self._talk(socket)
            except (OSError, asyncio.TimeoutError, InvalidHandshake, EOFError):
                await asyncio.sleep(0.1)

    async def _talk(self, socket: websockets.asyncio.client.ClientConnection) -> None:
        """A word now and then; `silent` grows while none comes back."""
        talk = Talk(node="", began=time.monotonic())
        heard = talk.began
        try:
            while not self._stop.is_set():
                await socket.send("?")
                while not self._stop.is_set():
                    try:
                        talk.node = str(await asyncio.wait_for(socket.recv(), TALK_SECONDS))
                        break
                    except asyncio.TimeoutError:
                        talk.silent = max(talk.silent, time.monotonic() - heard)
                if heard == talk.began:
                    self.diary.talks.append(talk)
                heard = time.monotonic()
                await asyncio.sleep(TALK_SECONDS)
        except (WebSocketException, OSError):
            talk.ended = time.monotonic()
            talk.silent = max(talk.silent, talk.ended - heard)
