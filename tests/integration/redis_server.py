"""Redis and Sentinel out of our own image, on loopback, and the queue that the tests keep in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest
import pytest_asyncio
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from testcontainers.core.container import DockerContainer

from appliance.job import Priority, new_job_id
from appliance.queue import Claim, Queue, Submission
from appliance.redis_link import RedisLink
from appliance.settings import Address, QueueSettings, RedisSettings, Secret

PASSWORD = "integration"  # of servers on loopback that live as long as a test
IMAGES = Path(__file__).resolve().parents[2] / "images"
SERVICES = f"{IMAGES}/services:{IMAGES}/sdapi"  # as PYTHONPATH has it
FAST = QueueSettings(lease_seconds=0.3, beat_seconds=0.1, failover_grace_seconds=0.6, queue_limit=20)
READY_SECONDS = 20.0
ONCE = Retry(NoBackoff(), 0)
# A restarted server finds the file as it (or Sentinel) has left it.
WRITE_AND_RUN = '[ -e redis.conf ] || printf %s "$0" > redis.conf; exec redis-server /data/redis.conf "$@"'


class RedisServer:
    """One redis-server on a loopback port; as a context manager it leaves no container behind."""

    def __init__(self, tag: str, config: str = "", *, sentinel: bool = False) -> None:
        (self.port,) = free_ports(1)
        own = f"port {self.port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\n"
        if not sentinel:
            own += 'save ""\nappendonly yes\nmaxmemory-policy noeviction\n'
        words = ["-c", WRITE_AND_RUN, own + config, *(["--sentinel"] if sentinel else [])]
        self.name = f"animatediff-test-redis-{self.port}-{uuid.uuid4().hex[:6]}"
        self._container = DockerContainer(f"animatediff-ha/redis:{tag}", name=self.name)
        self._container.with_command(words).with_kwargs(entrypoint=["bash"], network="host")

    def __enter__(self) -> RedisServer:
        try:
            self._container.start()
            self._wait_until_ready()
        except BaseException:
            self._container.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.stop()

    def stop(self) -> None:
        """SIGTERM, as at a shutdown."""
        self._container.get_wrapped_container().stop(timeout=5)

    def kill(self) -> None:
        self._container.get_wrapped_container().kill()

    def pause(self) -> None:
        """It stands still, and its connections stay open."""
        self._container.get_wrapped_container().pause()

    def unpause(self) -> None:
        self._container.get_wrapped_container().unpause()

    def freeze(self) -> None:
        self._container.get_wrapped_container().pause()

    def thaw(self) -> None:
        self._container.get_wrapped_container().unpause()

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with BlockingRedis("127.0.0.1", self.port, password=PASSWORD, socket_timeout=1, retry=ONCE) as client:
                    client.ping()
                    return
            except RedisError as error:
                container = self._container.get_wrapped_container()
                container.reload()
                if container.status != "running" or time.monotonic() > deadline:
                    said = container.logs(tail=30).decode()
                    raise RuntimeError(f"{self.name} is {container.status} and not ready: {error}\n{said}") from error
            time.sleep(0.02)

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(Address("127.0.0.1", self.port), (), "queue", "default", Secret(PASSWORD), 0)

    def queue(self, settings: QueueSettings = FAST, replicas: int = 0) -> Queue:
        return Queue(RedisLink(self.settings), settings, replicas)


@contextlib.asynccontextmanager
async def closing(queue: Queue) -> AsyncIterator[Queue]:
    try:
        yield queue
    finally:
        await queue.close()


def free_ports(count: int) -> list[int]:
    """Below the ports that the kernel hands out by itself: none gets lost to a connection while a server is down."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(range(20_000, 30_000), 1000):
            candidate = stack.enter_context(socket.socket())
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports between 20000 and 30000")


@pytest.fixture(scope="module")
def redis_server(images: str) -> Iterator[RedisServer]:
    with RedisServer(images) as server:
        yield server


@pytest_asyncio.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis(host="127.0.0.1", port=redis_server.port, password=PASSWORD, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    async with closing(redis_server.queue()) as queue:
        yield queue


def submission(user: str = "ada", body: str = '{"prompt":"x"}', **more: object) -> Submission:
    digest = hashlib.sha256(body.encode()).hexdigest()
    plain = Submission(new_job_id(), user, body, digest, Priority.NORMAL, 1000)
    return replace(plain, **more)  # type: ignore[arg-type]


async def add(queue: Queue, **more: object) -> str:
    job = submission(**more)  # type: ignore[arg-type]
    assert (await queue.submit(job)).status == "ok"
    return job.job_id


async def take(queue: Queue, worker: str = "a/0") -> Claim:
    claim = await queue.claim(worker, os.urandom(8).hex())
    assert isinstance(claim, Claim), claim
    return claim
