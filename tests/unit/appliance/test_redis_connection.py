"""What is left out of redis-py's connections must not be missed: their time limits, and the care for dead ones."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.exceptions as wire
import uvloop

from appliance.redis_connection import PlainConnection, Pool
from appliance.redis_link import execute

SOCKET_SECONDS = 0.5
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Run = Callable[[Coroutine[Any, Any, None]], None]


@asynccontextmanager
async def pool_to(talk: Talk) -> AsyncIterator[Pool]:
    talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[asyncio.create_task(talk(reader, writer))] = writer

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    pool = Pool(
        connection_class=PlainConnection,
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        socket_timeout=SOCKET_SECONDS,
        max_connections=2,
        protocol=2,
        driver_info=None,  # else each connection begins by telling it
    )
    try:
        yield pool
    finally:
        server.close()
        for running, writer in talks.items():
            running.cancel()
            writer.transport.abort()
        await asyncio.gather(*talks, return_exceptions=True)
        await pool.disconnect()


class _Client:
    def __init__(self, pool: Pool) -> None:
        self.connection_pool = pool


async def ask(pool: Pool, *command: bytes | str | int) -> Any:
    return await execute(_Client(pool), *command)  # type: ignore[arg-type]


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        writer.write(b"+OK\r\n")


async def deaf(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)


async def test_one_connection_serves_call_after_call() -> None:
    async with pool_to(answers) as pool:
        for _ in range(3):
            assert await ask(pool, "PING") == b"OK"
        assert len(pool._available_connections) == 1
        assert not pool._in_use_connections


@pytest.mark.parametrize("size", [10, 50_000_000])
async def test_who_does_not_answer_or_read_is_given_up(size: int) -> None:
    async with pool_to(deaf) as pool:
        began = time.monotonic()
        with pytest.raises((wire.TimeoutError, asyncio.TimeoutError)):
            await ask(pool, "SET", "x", b"x" * size)
        assert time.monotonic() - began < 10 * SOCKET_SECONDS
        assert not pool._in_use_connections


async def test_a_long_command_has_time_to_be_sent_and_time_to_be_answered() -> None:
    size = 20_000_000

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.7 * SOCKET_SECONDS)
        await reader.readexactly(size)
        await asyncio.sleep(0.7 * SOCKET_SECONDS)
        writer.write(b"+OK\r\n")

    async with pool_to(slow) as pool:
        assert await ask(pool, "SET", "x", b"x" * size) == b"OK"


async def test_a_short_command_waits_behind_what_is_not_sent_yet() -> None:
    async with pool_to(deaf) as pool:
        connection = await pool.get_connection()
        assert connection._writer
        connection._writer.write(b"x" * 50_000_000)
        with pytest.raises(wire.TimeoutError, match="writing"):
            await connection.send_command("PING")
        await pool.release(connection)


async def test_a_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    talks = 0

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal talks
        talks += 1
        await reader.read(65536)
        writer.write(b"+OK\r\n")
        await writer.drain()
        writer.close()

    async with pool_to(answers_once) as pool:
        for expected in (1, 2, 3):
            assert await ask(pool, "PING") == b"OK"
            assert talks == expected
            await asyncio.sleep(0.02)


async def answers_then_resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65536)
    writer.write(b"+OK\r\n")
    await asyncio.sleep(0.02)
    plug: socket.socket = writer.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@on_both_loops
def test_a_connection_that_was_reset_meanwhile_is_made_anew(run: Run) -> None:
    async def main() -> None:
        async with pool_to(answers_then_resets) as pool:
            for _ in range(3):
                assert await ask(pool, "PING") == b"OK"
                await asyncio.sleep(0.1)

    run(main())


@on_both_loops
@pytest.mark.parametrize("size", [1, 10_000])
def test_a_connection_that_is_reset_in_use_is_an_outage_and_not_used_again(run: Run, size: int) -> None:
    async def main() -> None:
        async with pool_to(answers_then_resets) as pool:
            connection = await pool.get_connection()
            await connection.send_command("PING")
            assert await connection.read_response() == b"OK"
            await asyncio.sleep(0.1)
            with pytest.raises(wire.ConnectionError):
                await connection.send_command("SET", "x", b"x" * size)
            assert not connection.is_connected
            await pool.release(connection)
            assert await ask(pool, "PING") == b"OK"

    run(main())


async def test_a_command_that_cannot_be_written_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_to(answers) as pool:
        connection = await pool.get_connection()

        def refuse(_: object) -> None:
            raise RuntimeError("handle is closed")

        monkeypatch.setattr(connection._writer, "writelines", refuse)
        with pytest.raises(RuntimeError):
            await connection.send_command("PING")
        assert not connection.is_connected
        await pool.release(connection)
        assert await ask(pool, "PING") == b"OK"


async def test_an_answer_that_nobody_waited_for_goes_to_nobody() -> None:
    """The caller was cancelled; the next one must not read what was meant for it."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65536):
            if b"SLOW" in request:
                await asyncio.sleep(0.1)
            writer.write(b"+slow\r\n" if b"SLOW" in request else b"+fast\r\n")

    async with pool_to(late) as pool:
        caller = asyncio.create_task(ask(pool, "SLOW"))
        await asyncio.sleep(0.02)
        caller.cancel()
        await asyncio.wait({caller})
        assert await ask(pool, "FAST") == b"fast"
        await asyncio.sleep(0.15)
        assert await ask(pool, "FAST") == b"fast"


async def test_a_pool_without_a_place_says_so_and_loses_none() -> None:
    async with pool_to(answers) as pool:
        held = [await pool.get_connection() for _ in range(2)]
        with pytest.raises(wire.ConnectionError, match="Too many"):
            await pool.get_connection()
        for connection in held:
            await pool.release(connection)
        assert await ask(pool, "PING") == b"OK"


async def test_a_connection_that_cannot_be_made_is_not_held() -> None:
    async with pool_to(answers) as pool:
        pool.connection_kwargs["port"] = 1
        for _ in range(3):  # more than it has places
            with pytest.raises(wire.ConnectionError, match="connecting"):
                await ask(pool, "PING")
        assert not pool._in_use_connections
