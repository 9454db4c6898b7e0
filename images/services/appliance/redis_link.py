"""The one way to Redis: find the master, give up early, drop the pool and look again at any sign of a failover."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.exceptions as wire
from async_timeout import timeout
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from appliance.errors import QueueError, QueueUnavailable, UnsafeRedis
from appliance.redis_connection import PlainConnection, Pool, TlsConnection
from appliance.sentinels import Sentinels, close_quietly
from appliance.settings import Address, RedisSettings

log = logging.getLogger(__name__)
T = TypeVar("T")
OPERATION_SECONDS = 5.0
"""Well above every limit inside: a socket's, WAIT's, the Sentinels'."""

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


MOST_CALLS = 90
"""At a time, over one connection each; more wait in line. redis-py would refuse them, which looks like an outage."""
SPARE_CONNECTIONS = 10  # for what keeps one between its calls
MOST_PATIENCE_SECONDS = 2.0
SHORT_TRIES = 4


class RedisLink:
    """Holds a client for the current master. `run` is the only way in, so every failure leads to rediscovery."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        # The server's certificate must be of the cluster's own authority, and for the address we call.
        self._tls = ssl.create_default_context(cafile=settings.ca) if settings.ca else None
        self._timeouts = 0
        self._places = asyncio.Semaphore(MOST_CALLS)
        self._client: Redis | None = None
        self._connecting: asyncio.Task[Redis] | None = None
        self._beside: set[asyncio.Future[Any]] = set()
        """What still runs and nobody waits for any more, and the calls under way."""
        self._sentinels = Sentinels(settings.sentinels, settings.sentinel_master, self._open)
        self.last_success = time.monotonic()
        """When Redis last did what it was asked to; the start counts as one."""

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        client = await self.client()
        try:
            result = await self._bounded(self._in_turn(client, operation))
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
        self.last_success = time.monotonic()
        return result

    async def _in_turn(self, client: Redis, operation: Callable[[Redis], Awaitable[T]]) -> T:
        places = self._places
        waited = places.locked()
        async with places:
            if waited and client is not self._client:
                raise QueueUnavailable("the connection was given up while this call waited for its turn")
            try:
                return await operation(client)
            finally:
                if client is not self._client:  # given up meanwhile: what this call has opened since is nobody's
                    await close_quietly(client)

    @property
    def most_replicas(self) -> int:
        """There is one Sentinel beside each Redis."""
        return max(0, len(self._settings.sentinels) - 1)

    async def confirm(self, client: Redis) -> None:
        """To be called inside an operation, after WAIT or a read: QueueUnavailable while the Sentinels replace its
        master, or where a majority of them cannot be asked."""
        if self._settings.sentinels:
            reached = client.connection_pool.connection_kwargs
            await self._sentinels.confirm(Address(reached["host"], reached["port"]))

    async def client(self) -> Redis:
        """One try at a time, and its end is everybody's: a line of callers would wait for as many tries."""
        if self._client is not None:
            return self._client
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="connect to Redis")
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        done, _ = await asyncio.wait({connecting}, timeout=OPERATION_SECONDS)
        if not done:
            self._connected(connecting)
            raise QueueUnavailable(f"no connection within {OPERATION_SECONDS:g} s")
        if connecting.cancelled():
            raise QueueUnavailable("the connection was given up")
        return connecting.result()

    def _connected(self, task: asyncio.Task[Redis]) -> None:
        if self._connecting is task:
            self._connecting = None
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None:
            self._client = task.result()
            self._places = asyncio.Semaphore(MOST_CALLS)  # a call that never ends keeps its place in the old ones

    async def _bounded(self, operation: Awaitable[T]) -> T:
        """Redis and redis-py have time limits of their own, but not for everything: a connection that is closed under
        a running call, or over TLS to a host that is gone, has been seen to keep its caller for ever."""
        task = asyncio.ensure_future(operation)
        self._beside.add(task)
        task.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({task}, timeout=OPERATION_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise QueueUnavailable(f"no answer for {OPERATION_SECONDS:g} s")
        if task.cancelled():
            # Not by us: all who wait for the end of one connection share a future, which the first time limit cancels.
            raise QueueUnavailable("its connection was closed")
        return task.result()

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._beside.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has it, or has gone

    async def drop(self, client: Redis) -> None:
        """Forgets `client`, unless somebody already did and a newer one is in place."""
        if self._client is client:
            self._client = None
        closing = asyncio.create_task(close_quietly(client), name="close a Redis client")
        self._beside.add(closing)
        closing.add_done_callback(self._forget)

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting}, timeout=1.0)
        if self._client is not None:
            await self.drop(self._client)
        await self._sentinels.close()
        if self._beside:
            await asyncio.wait(set(self._beside), timeout=1.0)

    async def _connect(self) -> Redis:
        address = self._settings.address or await self._sentinels.master()
        client = self._open(address)
        try:
            # A frozen master takes connections and says nothing; by the next try there may be another.
            check = self._require_safe_master(client, address)
            async with timeout(self._patience()):
                await check
        except (UnsafeRedis, asyncio.CancelledError):
            await close_quietly(client)
            raise
        except Exception as error:
            await close_quietly(client)
            if isinstance(error, (wire.TimeoutError, asyncio.TimeoutError)):
                self._timeouts += 1
            if isinstance(error, (wire.RedisError, OSError, asyncio.TimeoutError)):
                raise QueueUnavailable(
                    f"Redis at {address} does not answer: {error or type(error).__name__}"
                ) from error
            raise
        self._timeouts = 0
        log.info("using Redis at %s", address)
        return client

    def _patience(self) -> float:
        """Seconds for a new connection. A failover is over after a few tries; one that is only slow, as everything is
        on a busy machine, would never be connected to without more."""
        more = 2.0 ** max(0, self._timeouts - SHORT_TRIES)
        return min(self._settings.connect_timeout_seconds * more, MOST_PATIENCE_SECONDS)

    def _open(self, address: Address) -> Redis:
        settings = self._settings
        tls: dict[str, Any] = {"connection_class": PlainConnection}
        if self._tls:
            tls = {"connection_class": TlsConnection, "context": self._tls}
        pool = Pool(
            host=address.host,
            port=address.port,
            max_connections=MOST_CALLS + SPARE_CONNECTIONS,
            username=settings.username,
            password=settings.password.reveal(),
            socket_timeout=settings.socket_timeout_seconds,
            socket_connect_timeout=max(self._patience(), MOST_PATIENCE_SECONDS / 2),
            # redis-py's own retries would hide a failover for seconds; we decide when to try again, and where.
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
            **tls,
        )
        return Redis.from_pool(pool)

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


async def execute(client: Redis, *command: bytes | str | int) -> Any:
    """As `client.execute_command`, for a fifth less of a whole call's time: no retries, which we do not want, and no
    telemetry. What fails closes the connection there as well."""
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_command(*command)
        return await connection.read_response()
    finally:
        await pool.release(connection)


async def execute_all(client: Redis, *commands: tuple[bytes | str | int, ...]) -> list[Any]:
    """As `execute`, in one trip on one connection; an error is its command's answer."""
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except wire.ResponseError as error:
                answers.append(error)
        return answers
    finally:
        await pool.release(connection)
