"""The one way to Redis: find the master, give up early, drop the pool and look again at any sign of a failover."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.exceptions as wire
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from appliance.errors import QueueError, QueueUnavailable, UnsafeRedis
from appliance.settings import Address, RedisSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

# The server speaks, but not as a writable master with its replicas; TRYAGAIN and UNBLOCKED come during role changes.
FAILOVER_WORDS = ("READONLY", "NOREPLICAS", "MASTERDOWN", "LOADING", "UNBLOCKED", "MISCONF", "TRYAGAIN", "OOM", "BUSY ")
# redis-py takes the first word off the answers that it has a class for.
OUTAGES = (
    wire.ConnectionError,
    wire.TimeoutError,
    wire.ReadOnlyError,
    wire.OutOfMemoryError,
    wire.MasterDownError,
    wire.TryAgainError,
    OSError,
)


def is_outage(error: BaseException) -> bool:
    if isinstance(error, OUTAGES):
        return True
    if isinstance(error, asyncio.TimeoutError):
        return True
    return isinstance(error, wire.ResponseError) and any(word in str(error)[:160] for word in FAILOVER_WORDS)


class RedisLink:
    """Holds a client for the current master. `run` is the only way in, so every failure leads to rediscovery."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client: Redis | None = None
        self._connecting: asyncio.Task[Redis] | None = None

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        client = await self.client()
        try:
            return await operation(client)
        except QueueUnavailable:
            # Too few replicas answered: this may be a master that everybody else has left.
            await self.drop(client)
            raise
        except Exception as error:
            if not is_outage(error):
                if isinstance(error, wire.RedisError):
                    raise QueueError(f"Redis refused: {error}") from error
                raise
            if not isinstance(error, wire.OutOfMemoryError):  # full, but the right one, and the others' calls go on
                await self.drop(client)
            raise QueueUnavailable(f"Redis failed: {error or type(error).__name__}") from error

    async def client(self) -> Redis:
        """One try at a time, and its end is everybody's: a line of callers would wait for as many tries."""
        if self._client is not None:
            return self._client
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="connect to Redis")
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[Redis]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._client = task.result()

    async def drop(self, client: Redis) -> None:
        """Forgets `client`, unless somebody already did and a newer one is in place."""
        if self._client is client:
            self._client = None
        await close_quietly(client)

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._client is not None:
            await self.drop(self._client)

    async def _connect(self) -> Redis:
        address = self._settings.address or await self._ask_sentinels()
        client = self._open(address)
        try:
            await self._require_safe_master(client, address)
        except (UnsafeRedis, asyncio.CancelledError):
            await close_quietly(client)
            raise
        except Exception as error:
            await close_quietly(client)
            if isinstance(error, (wire.RedisError, OSError, asyncio.TimeoutError)):
                raise QueueUnavailable(
                    f"Redis at {address} does not answer: {error or type(error).__name__}"
                ) from error
            raise
        log.info("using Redis at %s", address)
        return client

    def _open(self, address: Address) -> Redis:
        settings = self._settings
        return Redis(
            host=address.host,
            port=address.port,
            username=settings.username,
            password=settings.password.reveal(),
            socket_timeout=settings.socket_timeout_seconds,
            socket_connect_timeout=settings.connect_timeout_seconds,
            # redis-py's own retries would hide a failover for seconds; we decide when to try again, and where.
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
        )

    async def _require_safe_master(self, client: Redis, address: Address) -> None:
        replication: dict[str, Any] = await client.info("replication")
        if replication.get("role") != "master":
            raise QueueUnavailable(f"Redis at {address} is a {replication.get('role')}, not the master")
        memory: dict[str, Any] = await client.info("memory")
        policy = memory.get("maxmemory_policy")
        if policy != "noeviction":
            raise UnsafeRedis(
                f"Redis at {address} has maxmemory-policy {policy!r}: it would throw accepted jobs away when memory "
                "runs short. Set `maxmemory-policy noeviction` in its redis.conf and restart it"
            )

    async def _ask_sentinels(self) -> Address:
        """Asks all and believes the highest configuration epoch: an isolated Sentinel still names the old master."""
        answers = await asyncio.gather(*(self._ask_one(sentinel) for sentinel in self._settings.sentinels))
        known = [answer for answer in answers if answer is not None]
        if not known:
            asked = ", ".join(str(sentinel) for sentinel in self._settings.sentinels)
            raise QueueUnavailable(f"no Sentinel knows {self._settings.sentinel_master!r} (asked {asked})")
        return max(known, key=lambda answer: answer[0])[1]

    async def _ask_one(self, sentinel: Address) -> tuple[int, Address] | None:
        client = self._open(sentinel)
        try:
            raw = await asyncio.wait_for(
                _execute(client, "SENTINEL", "MASTER", self._settings.sentinel_master),
                self._settings.socket_timeout_seconds,
            )
        except (wire.RedisError, OSError, asyncio.TimeoutError) as error:
            log.debug("Sentinel %s: %s", sentinel, error)
            return None
        finally:
            await close_quietly(client)
        facts = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=False))
        return int(facts["config-epoch"]), Address(str(facts["ip"]), int(facts["port"]))


async def close_quietly(client: Redis) -> None:
    try:
        await asyncio.wait_for(client.aclose(), 1.0)
    except (wire.RedisError, OSError, asyncio.TimeoutError, RuntimeError) as error:
        log.debug("closing a Redis client: %s", error)


async def _execute(client: Redis, *words: str) -> Any:
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]
