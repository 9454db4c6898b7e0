"""How the client finds a Redis it may trust: after a restart, among unsafe ones, and by Sentinel after a failover."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from appliance.errors import QueueUnavailable, UnsafeRedis
from appliance.job import JobState
from appliance.queue import CommitAnswer, Queue, Submission
from appliance.redis_link import RedisLink
from appliance.settings import Address, QueueSettings, RedisSettings, Secret
from tests.integration.redis_server import FAST, PASSWORD, RedisServer, add, closing, submission, take

pytestmark = pytest.mark.docker

REPLICATED = f"masterauth {PASSWORD}\nrepl-diskless-sync-delay 0\n"
# Three Sentinels may split their votes. They try again after twice the failover-timeout: that has to fit in here.
FAILOVER_SECONDS = 20
SENTINEL = f"""\
sentinel sentinel-pass {PASSWORD}
sentinel monitor queue 127.0.0.1 {{port}} 2
sentinel auth-pass queue {PASSWORD}
sentinel down-after-milliseconds queue 1000
sentinel failover-timeout queue 3000
"""


async def test_an_evicting_redis_is_refused(images: str) -> None:
    evicting = RedisServer(images, "maxmemory-policy allkeys-lru\n")
    with evicting:
        async with closing(evicting.queue()) as queue:
            with pytest.raises(UnsafeRedis, match="noeviction"):
                await queue.connect()


async def test_jobs_survive_a_restart_and_the_client_finds_back(images: str) -> None:
    with RedisServer(images) as server:
        async with closing(server.queue()) as queue:
            job_id = await add(queue)
            claim = await take(queue)
            server.stop()
            with pytest.raises(QueueUnavailable):
                await queue.beat(claim)
            server.start()
            await asyncio.sleep(FAST.lease_seconds)
            assert (await queue.tick()).grace
            assert await queue.commit(claim, "{}") is CommitAnswer.DONE
            job = await queue.get(job_id)
            assert job is not None
            assert job.state is JobState.DONE


async def test_an_unreachable_redis_is_reported_fast() -> None:
    nowhere = RedisSettings(Address("127.0.0.1", 1), (), "queue", "default", Secret(""), 0)
    begin = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await Queue(RedisLink(nowhere), FAST).tick()
    assert time.monotonic() - begin < 1.0


@dataclass(frozen=True)
class Group:
    """A master, two replicas and three Sentinels that know each other."""

    redises: tuple[RedisServer, ...]
    sentinels: tuple[RedisServer, ...]

    async def master(self) -> RedisServer:
        """By Sentinel's word: on a busy machine it may have changed before any test has killed one."""
        facts = await ask(self.sentinels[0], "SENTINEL", "MASTER", "queue")
        return next(redis for redis in self.redises if str(redis.port) == facts["port"])

    async def promoted(self, end: float) -> None:
        """Until somebody is a master beside the one that does not answer; at most until `end`."""
        while time.monotonic() < end:
            for redis in self.redises:
                with contextlib.suppress(asyncio.TimeoutError):
                    facts = await asyncio.wait_for(ask(redis, "INFO", "replication"), 0.2)
                    if facts.get("role") == "master":
                        return


@pytest_asyncio.fixture
async def group(images: str) -> AsyncIterator[Group]:
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(images, REPLICATED))
        config = f"{REPLICATED}replicaof 127.0.0.1 {master.port}\n"
        replicas = [stack.enter_context(RedisServer(images, config)) for _ in range(2)]
        # Attached before the Sentinels come: these ask for replicas every 10 s only.
        await until(master, ("INFO", "replication"), {"connected_slaves": 2})
        sentinels = [stack.enter_context(sentinel_of(images, master)) for _ in range(3)]
        for sentinel in sentinels:
            await until(sentinel, ("SENTINEL", "MASTER", "queue"), {"num-slaves": 2, "num-other-sentinels": 2})
        yield Group((master, *replicas), tuple(sentinels))


def sentinel_of(tag: str, master: RedisServer) -> RedisServer:
    return RedisServer(tag, SENTINEL.format(port=master.port), sentinel=True)


def queue_by(*sentinels: RedisServer, settings: QueueSettings = FAST) -> Queue:
    addresses = tuple(Address("127.0.0.1", sentinel.port) for sentinel in sentinels)
    redis = RedisSettings(None, addresses, "queue", "default", Secret(PASSWORD), 1)
    return Queue(RedisLink(redis), settings, replicas=1)


async def ask(server: RedisServer, *words: str) -> dict[str, str]:
    """The facts that the server answers with, as texts; none while it does not answer."""
    async with Redis(host="127.0.0.1", port=server.port, password=PASSWORD, decode_responses=True) as client:
        with contextlib.suppress(RedisError):
            answer = await client.execute_command(*words)  # type: ignore[no-untyped-call]
            return {str(name): str(value) for name, value in answer.items()}
    return {}


async def until(server: RedisServer, words: tuple[str, ...], expected: dict[str, int]) -> None:
    wanted = {name: str(value) for name, value in expected.items()}
    deadline = time.monotonic() + 20
    while not wanted.items() <= (facts := await ask(server, *words)).items():
        assert time.monotonic() < deadline, f"{server.name}: {words} still answers {facts}, not {expected}"
        await asyncio.sleep(0.1)


async def submit_until_accepted(queue: Queue, job: Submission, seconds: float) -> float:
    begin = time.monotonic()
    while True:
        try:
            await queue.submit(job)
            return time.monotonic() - begin
        except QueueUnavailable as error:
            if time.monotonic() - begin > seconds:
                raise TimeoutError(f"not accepted within {seconds} s") from error
        await asyncio.sleep(0.1)


async def test_acknowledged_jobs_outlive_the_master_and_a_stale_sentinel_is_not_believed(
    images: str, group: Group
) -> None:
    jobs = [submission() for _ in range(5)]
    accepted = {job.job_id for job in jobs}
    async with closing(queue_by(*group.sentinels)) as queue:
        for job in jobs[:4]:
            await submit_until_accepted(queue, job, FAILOVER_SECONDS)
        await queue.tick()
        dead = await group.master()
        dead.kill()
        seconds = await submit_until_accepted(queue, jobs[4], FAILOVER_SECONDS)
        print(f"\nsubmissions paused for {seconds:.2f} s")
        assert set(await queue.list_ids(None, None, 10)) == accepted
        assert (await queue.tick()).grace
    # As one that was cut off before the failover; it finds neither the replicas nor its peers through a dead master.
    with sentinel_of(images, dead) as stale:
        await until(stale, ("SENTINEL", "MASTER", "queue"), {"port": dead.port, "config-epoch": 0})
        for sentinels in ((stale, *group.sentinels), (*group.sentinels, stale)):
            async with closing(queue_by(*sentinels)) as fresh:
                assert set(await fresh.list_ids(None, None, 10)) == accepted


async def test_a_master_that_was_frozen_acknowledges_nothing_that_gets_lost(group: Group) -> None:
    """It thaws when one replica has been promoted and the other one is still its own: both would acknowledge."""
    accepted: list[str] = []

    async def keep_submitting(queue: Queue, end: float) -> None:
        while time.monotonic() < end:
            job = submission()
            with contextlib.suppress(QueueUnavailable):
                await queue.submit(job)
                accepted.append(job.job_id)
            await asyncio.sleep(0.02)

    settings = dataclasses.replace(FAST, queue_limit=100_000)
    async with closing(queue_by(*group.sentinels, settings=settings)) as queue:
        await submit_until_accepted(queue, submission(), FAILOVER_SECONDS)
        frozen = await group.master()
        end = time.monotonic() + 6
        clients = [asyncio.create_task(keep_submitting(queue, end)) for _ in range(3)]
        await asyncio.sleep(0.3)
        frozen.freeze()
        await group.promoted(end)
        frozen.thaw()
        await asyncio.gather(*clients)
        await submit_until_accepted(queue, submission(), FAILOVER_SECONDS)
        found = await queue.get_many(accepted)
    assert accepted
    assert [job_id for job_id, job in zip(accepted, found, strict=True) if job is None] == []


async def test_nothing_is_told_by_a_master_that_most_sentinels_are_parted_from(images: str, group: Group) -> None:
    """It may have been left behind: what it shows, a cancelled job for one, may never come true."""
    job = submission()
    async with closing(queue_by(*group.sentinels)) as queue:
        await submit_until_accepted(queue, job, FAILOVER_SECONDS)
        assert await queue.get(job.job_id) is not None
        for sentinel in group.sentinels[1:]:
            sentinel.stop()
        for read in (queue.get(job.job_id), queue.list_ids(None, None, 10), queue.events_after(job.job_id, "0-0")):
            with pytest.raises(QueueUnavailable):
                await read
