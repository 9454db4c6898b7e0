"""The cancel channel, followed through every outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from async_timeout import timeout
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from appliance import keys
from appliance.errors import QueueError
from appliance.redis_link import RedisLink

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.7  # below the socket timeout: a silent channel must not look like an outage
RETRY_SECONDS = 1.0


async def follow_hints(link: RedisLink) -> AsyncGenerator[str, None]:
    while True:
        subscription: _Subscription | None = None
        try:
            subscription = await link.run(_subscribe)
            while True:
                hint = await link.run(subscription.next_hint)
                if hint is not None:
                    yield hint
        except QueueError as error:
            log.debug("no cancel hints: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            if subscription is not None:
                await subscription.close()


class _Subscription:
    def __init__(self, client: Redis, channel: PubSub) -> None:
        self._client = client
        self._channel = channel

    async def next_hint(self, client: Redis) -> str | None:
        if client is not self._client:
            # No outage: the link would drop the new connection, and with it everybody's calls.
            raise QueueError("the master has changed; what is published now is published there")
        message = await self._channel.get_message(ignore_subscribe_messages=True, timeout=PATIENCE_SECONDS)
        return str(message["data"]) if message and message.get("type") == "message" else None

    async def close(self) -> None:
        try:
            async with timeout(1.0):
                await self._channel.aclose()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, asyncio.TimeoutError, RuntimeError) as error:
            log.debug("closing a subscription: %s", error)


async def _subscribe(client: Redis) -> _Subscription:
    channel = client.pubsub(ignore_subscribe_messages=True)
    await channel.subscribe(keys.CONTROL)
    return _Subscription(client, channel)
