"""The prober against real sockets of this machine; only the name service is played."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from appliance.controller import probe
from appliance.controller.policy import Observation, Target
from appliance.controller.probe import Pace, Prober

PACE = Pace(interval_seconds=0.05, connect_seconds=0.2, timeout_seconds=0.2)


@asynccontextmanager
async def peer(answer: bytes | None, port: int = 0) -> AsyncIterator[int]:
    """A server that says `answer`, or nothing at all; yields its port."""

    talks: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the other side gives up
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for talk in talks:
            talk.transport.abort()
        await asyncio.sleep(0)


def ping(status: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({"status": status}).encode()


async def look(prober: Prober) -> Observation:
    """However busy this machine is."""
    while (seen := await prober.probe()) is None:
        pass
    return seen


async def outcome(answer: bytes | None) -> str | None:
    async with peer(answer) as port:
        return (await look(Prober(Target("webui", "n", "127.0.0.1", port), PACE))).failure


async def test_answers_are_judged() -> None:
    assert await outcome(ping("ok")) is None
    assert await outcome(ping("draining")) == "/internal/ping answered status 'draining'"
    assert await outcome(b"HTTP/1.1 503 No\r\n\r\n") == "/internal/ping answered 503"
    assert await outcome(b"SSH-2.0\r\n") is not None
    deep = b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000
    assert await outcome(deep) == "/internal/ping answered no status"
    assert await outcome(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) is not None


async def test_who_was_kept_from_looking_says_nothing() -> None:
    """The answer lay there, or not: a process that did not run cannot know."""

    async def hog() -> None:
        await asyncio.sleep(0.1)
        time.sleep(0.4)  # noqa: ASYNC251 - the event loop stands still, as on a machine without a free processor

    async with peer(None) as port:
        prober = Prober(Target("webui", "n", "127.0.0.1", port), PACE)
        seen, _ = await asyncio.gather(prober.probe(), hog())
        assert seen is None
        seen = await prober.probe()
    assert seen is not None
    assert seen.failure == "no answer in 0.2 s"


async def test_silence_ends_in_time() -> None:
    begin = asyncio.get_running_loop().time()
    assert await outcome(None) == "no answer in 0.2 s"
    assert asyncio.get_running_loop().time() - begin < 1


async def test_a_cancellation_is_never_lost() -> None:
    """Whenever it comes: the controller's end waits for its probes, and one that went on would keep it for ever."""
    async with peer(ping("ok")) as port:
        prober = Prober(Target("webui", "n", "127.0.0.1", port), Pace())
        for turns in range(2000):
            probing = asyncio.create_task(prober.probe())
            for _ in range(turns):
                await asyncio.sleep(0)
            if probing.done():
                return
            probing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probing
    pytest.fail("no probe has come to its end by itself")


async def test_a_refused_connection_is_told_apart() -> None:
    async with peer(None) as port:
        pass
    seen = await look(Prober(Target("webui", "n", "127.0.0.1", port), PACE))
    assert (seen.failure, seen.refused) == ("connection refused", True)


class Names:
    """A name service whose answer can be changed; None means "no such name", a number a delay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: str | None = "127.0.0.1"
        self.delay = 0.0
        self.asked = 0
        monkeypatch.setattr(probe, "look_up", self.look_up)

    def look_up(self, host: str, port: int) -> asyncio.Future[list[str]]:
        self.asked += 1

        async def later() -> list[str]:
            await asyncio.sleep(self.delay)
            if self.answer is None:
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [self.answer]

        return asyncio.ensure_future(later())


async def test_a_name_server_that_fails_or_hangs_does_not_make_a_healthy_peer_look_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)
    async with peer(ping("ok")) as port:
        prober = Prober(Target("webui", "n", "webui-0", port), PACE)
        assert (await look(prober)).failure is None
        names.answer = None
        for _ in range(4):
            await asyncio.sleep(0.01)
            assert (await look(prober)).failure is None
        names.delay = 5
        for _ in range(4):
            begin = asyncio.get_running_loop().time()
            assert (await look(prober)).failure is None
            assert asyncio.get_running_loop().time() - begin < 0.2


async def test_a_peer_that_is_gone_is_not_looked_for_at_its_old_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    async with peer(ping("ok")) as port:
        prober = Prober(Target("webui", "n", "webui-0", port), PACE)
        assert (await look(prober)).failure is None
    names.answer = None
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert (await look(prober)).failure is not None
    async with peer(ping("ok"), port):
        assert (await look(prober)).failure == "name webui-0 does not resolve"


async def test_a_new_address_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.answer = "127.0.0.2"
    async with peer(ping("ok")) as port:
        prober = Prober(Target("webui", "n", "webui-0", port), PACE)
        assert (await look(prober)).refused
        names.answer = "127.0.0.1"
        for _ in range(3):
            await asyncio.sleep(0.02)
            seen = await look(prober)
        assert (seen.failure, seen.address) == (None, "127.0.0.1")


async def test_the_name_of_a_peer_that_answers_is_looked_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    monkeypatch.setattr(probe, "_LOOK_UP_SECONDS", 60)
    async with peer(ping("ok")) as port:
        prober = Prober(Target("webui", "n", "webui-0", port), PACE)
        for _ in range(5):
            assert (await look(prober)).failure is None
        assert names.asked == 1
        monkeypatch.setattr(probe, "_LOOK_UP_SECONDS", 0)
        assert (await look(prober)).failure is None
        assert names.asked == 2
    monkeypatch.setattr(probe, "_LOOK_UP_SECONDS", 60)
    before = names.asked
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert (await look(prober)).refused
    assert names.asked > before, "one that fails may have another address"


async def test_real_names_resolve() -> None:
    assert "127.0.0.1" in await probe.look_up("localhost", 80)
    with pytest.raises(OSError, match=r"."):
        await probe.look_up("no-such-name.invalid", 80)
