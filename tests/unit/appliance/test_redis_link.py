"""Nothing that never ends may keep a caller: seen with a connection that was closed under a running call."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from appliance import redis_link
from appliance.errors import QueueUnavailable
from appliance.redis_link import RedisLink
from appliance.settings import Address, RedisSettings, Secret

NOWHERE = RedisSettings(Address("127.0.0.1", 1), (), "queue", "default", Secret(""), 0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "OPERATION_SECONDS", 0.2)


async def _deaf() -> None:
    """Ends neither by itself nor when it is told to."""
    for _ in range(2):
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            continue


async def test_an_operation_that_never_ends_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    link, client = RedisLink(NOWHERE), Redis()
    monkeypatch.setattr(link, "_client", client)

    async def operation(_: Redis) -> None:
        await _deaf()

    with pytest.raises(QueueUnavailable, match="no answer"):
        await asyncio.wait_for(link.run(operation), 1.0)
    assert link._client is None, "the next caller gets a new connection"
    await link.close()


async def test_a_cancelled_caller_does_not_wait_for_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    link = RedisLink(NOWHERE)
    monkeypatch.setattr(link, "_client", Redis())

    async def operation(_: Redis) -> None:
        await _deaf()

    caller = asyncio.create_task(link.run(operation))
    await asyncio.sleep(0.05)
    caller.cancel()
    done, _ = await asyncio.wait({caller}, timeout=0.5)
    assert done
    assert caller.cancelled()
    await link.close()


async def test_a_cancellation_that_nobody_asked_for_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py lets the waiters for one connection's end share a future; the first time limit cancels it for all."""
    link = RedisLink(NOWHERE)
    monkeypatch.setattr(link, "_client", Redis())

    async def operation(_: Redis) -> None:
        raise asyncio.CancelledError

    with pytest.raises(QueueUnavailable, match="closed"):
        await link.run(operation)
    await link.close()


async def test_a_connection_that_is_never_made_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    link = RedisLink(NOWHERE)

    async def connect() -> Redis:
        await _deaf()
        return Redis()

    monkeypatch.setattr(link, "_connect", connect)
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match="no connection"):
            await asyncio.wait_for(link.client(), 1.0)
    assert link._connecting is None
    await link.close()
