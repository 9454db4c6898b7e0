from __future__ import annotations

import asyncio

import pytest

from appliance.redis_link import RedisLink
from appliance.redis_watchdog import watch_redis
from appliance.settings import Address, RedisSettings, Secret


@pytest.fixture
def link() -> RedisLink:
    return RedisLink(RedisSettings(Address("127.0.0.1", 1), (), "queue", "u", Secret(""), 0))


async def test_it_ends_when_nothing_has_worked_for_long(link: RedisLink, caplog: pytest.LogCaptureFixture) -> None:
    await asyncio.wait_for(watch_redis(link, 0.1), 10)
    assert "no Redis operation has succeeded" in caplog.text


async def test_success_keeps_it_quiet(link: RedisLink) -> None:
    async def succeed() -> None:
        while True:
            link.last_success = asyncio.get_running_loop().time()  # both are the monotonic clock
            await asyncio.sleep(0.01)

    success = asyncio.create_task(succeed())
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(watch_redis(link, 0.5), 1.5)
    success.cancel()


async def test_a_job_in_hand_stops_the_clock(link: RedisLink) -> None:
    busy = True
    watching = asyncio.create_task(watch_redis(link, 0.3, lambda: busy))
    await asyncio.sleep(1.0)
    assert not watching.done()
    busy = False
    await asyncio.wait_for(watching, 10)


async def test_zero_switches_it_off(link: RedisLink) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(watch_redis(link, 0), 0.3)
