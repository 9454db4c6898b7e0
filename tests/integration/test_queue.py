"""The queue and the API on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from appliance import keys, storage
from appliance.api.app import create_app
from appliance.errors import QueueUnavailable, UnsafeRedis
from appliance.job import JobState, Priority, attempt_folder, is_legal, new_job_id
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Nothing, Queue, Submission
from appliance.redis_link import RedisLink
from appliance.settings import Address, ApiSettings, Common, QueueSettings, RedisSettings, Secret

PASSWORD = "integration"  # of a server on loopback that lives as long as the tests
SERVICES = Path(__file__).resolve().parents[2] / "images" / "services"
FAST = QueueSettings(lease_seconds=0.3, beat_seconds=0.1, failover_grace_seconds=0.6, queue_limit=20)


class RedisServer:
    def __init__(self, folder: Path, policy: str = "noeviction") -> None:
        self.folder = folder
        self.policy = policy
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        options = {"bind": "127.0.0.1", "dir": str(self.folder), "requirepass": PASSWORD, "save": "",
                   "appendonly": "yes", "maxmemory-policy": self.policy, "port": str(self.port)}  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError(f"redis-server on port {self.port} did not answer within 5 s")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(5)

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(Address("127.0.0.1", self.port), (), "queue", "default", Secret(PASSWORD), 0)

    def queue(self, settings: QueueSettings = FAST, replicas: int = 0) -> Queue:
        return Queue(RedisLink(self.settings), settings, replicas)


def require_redis() -> None:
    if shutil.which("redis-server") is None:
        reason = "redis-server is not installed: apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest_asyncio.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis(port=redis_server.port, password=PASSWORD, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    queue = redis_server.queue()
    yield queue
    await queue.close()


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


async def state_of(queue: Queue, job_id: str) -> JobState:
    job = await queue.get(job_id)
    assert job is not None
    return job.state


# --- submit ----------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_is_the_same_job(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k"))
    again = await queue.submit(submission(idempotency_key="k"))
    assert (first.status, again.status) == ("ok", "duplicate")
    assert again.job_id == first.job_id
    assert (await queue.stats()).waiting == 1


async def test_the_same_key_with_another_body_is_a_conflict(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k"))
    other = await queue.submit(submission(idempotency_key="k", body="{}"))
    assert (other.status, other.job_id) == ("conflict", first.job_id)


async def test_keys_belong_to_their_user(queue: Queue) -> None:
    await queue.submit(submission(idempotency_key="k"))
    assert (await queue.submit(submission(user="bob", idempotency_key="k"))).status == "ok"


async def test_submitting_the_same_id_twice_is_safe(queue: Queue) -> None:
    job = submission()
    assert [(await queue.submit(job)).status for _ in range(2)] == ["ok", "duplicate"]


async def test_a_full_queue_refuses_but_still_knows_duplicates(queue: Queue) -> None:
    await add(queue, idempotency_key="k")
    for _ in range(FAST.queue_limit - 1):
        await add(queue)
    assert (await queue.submit(submission())).status == "full"
    assert (await queue.submit(submission(idempotency_key="k"))).status == "duplicate"


async def test_a_submit_without_its_replica_is_not_acknowledged(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replicas=1)
    with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
        await queue.submit(submission())
    with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
        await queue.check_writable()
    await queue.close()


# --- order -----------------------------------------------------------------------------------------------------------


async def test_priorities_come_in_their_order(queue: Queue) -> None:
    low = await add(queue, priority=Priority.LOW)
    normal = await add(queue, priority=Priority.NORMAL)
    high = await add(queue, priority=Priority.HIGH)
    assert [(await take(queue, f"w/{n}")).job_id for n in range(3)] == [high, normal, low]


async def test_a_heavy_user_does_not_delay_the_others(queue: Queue) -> None:
    heavy = [await add(queue, user="heavy", cost_ms=60_000) for _ in range(5)]
    light = await add(queue, user="light")
    order = [(await take(queue, f"w/{n}")).job_id for n in range(6)]
    assert order == [heavy[0], light, *heavy[1:]]


async def test_positions_count_from_one(queue: Queue) -> None:
    ids = [await add(queue) for _ in range(3)]
    assert [job.position for job in await queue.get_many(ids) if job] == [1, 2, 3]


async def test_a_lost_answer_to_claim_costs_nothing(queue: Queue) -> None:
    await add(queue)
    first = await queue.claim("a/0", "nonce")
    again = await queue.claim("a/0", "nonce")
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert (first.job_id, first.fence) == (again.job_id, again.fence)


async def test_the_ledger_names_the_owner_and_is_emptied(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    pending = await redis.xpending_range(keys.RUN, keys.RUN_GROUP, "-", "+", 10)
    assert [entry["consumer"] for entry in pending] == ["a/0"]
    await queue.commit(claim, "{}")
    assert await redis.xlen(keys.RUN) == 0
    assert await redis.xpending_range(keys.RUN, keys.RUN_GROUP, "-", "+", 10) == []
    assert await redis.zcard(keys.LEASE) == 0


async def test_an_idle_worker_wakes_when_a_job_arrives(queue: Queue) -> None:
    nothing = await queue.claim("a/0", "n")
    assert isinstance(nothing, Nothing)
    waiting = asyncio.create_task(queue.wait_for_work(nothing.cursor, 0.8))
    await asyncio.sleep(0.05)
    await add(queue)
    begin = time.monotonic()
    await waiting
    assert time.monotonic() - begin < 0.5


async def test_a_job_that_arrives_before_the_wait_wakes_it_too(queue: Queue) -> None:
    nothing = await queue.claim("a/0", "n")
    assert isinstance(nothing, Nothing)
    await add(queue)
    await asyncio.wait_for(queue.wait_for_work(nothing.cursor, 0.8), 0.5)


# --- fencing and leases ----------------------------------------------------------------------------------------------


async def test_an_expired_lease_is_reaped_and_its_zombie_is_fenced(queue: Queue) -> None:
    job_id = await add(queue)
    zombie = await take(queue, "a/0")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert [(o.job_id, o.state, o.kind) for o in report.outcomes] == [(job_id, JobState.QUEUED, "crash")]
    heir = await take(queue, "b/0")
    assert heir.job_id == job_id
    assert heir.fence > zombie.fence
    assert await queue.beat(zombie) is BeatAnswer.FENCED
    assert await queue.commit(zombie, '{"by":"zombie"}') is CommitAnswer.FENCED
    assert (await queue.fail(zombie, FailKind.CRASH, "UNKNOWN", "late")).status == "fenced"
    assert await queue.commit(heir, '{"by":"heir"}') is CommitAnswer.DONE
    job = await queue.get(job_id)
    assert job is not None
    assert job.result == {"by": "heir"}


async def test_claim_reaps_without_any_tick(queue: Queue) -> None:
    job_id = await add(queue)
    await take(queue, "a/0")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    heir = await take(queue, "b/0")
    assert heir.job_id == job_id
    assert len(heir.outcomes) == 1


async def test_beats_keep_a_lease(queue: Queue) -> None:
    await add(queue)
    claim = await take(queue)
    for step in range(5):
        await asyncio.sleep(FAST.lease_seconds / 2)
        assert await queue.beat(claim, step, 5, "step") is BeatAnswer.OK
        assert (await queue.tick()).reaped == 0


async def test_fences_grow_even_past_the_clock(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    ahead = 2**52
    await redis.hset(keys.job(job_id), "fence", str(ahead))
    assert (await take(queue)).fence == ahead + 1


async def test_a_restarted_agent_frees_its_old_job_at_once(queue: Queue) -> None:
    job_id = await add(queue)
    old = await take(queue, "a/0")
    new = await take(queue, "a/0")
    assert new.job_id == job_id
    assert await queue.commit(old, "{}") is CommitAnswer.FENCED


async def test_commit_is_answered_again_but_done_once(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    answers = [await queue.commit(claim, "{}") for _ in range(3)]
    assert answers == [CommitAnswer.DONE, CommitAnswer.REPLAY, CommitAnswer.REPLAY]
    assert (await queue.stats()).done_total == 1


async def test_after_a_change_of_run_id_leases_get_their_grace(queue: Queue, redis: Redis) -> None:
    await add(queue)
    claim = await take(queue)
    await redis.hset(keys.EPOCH, "run_id", "another")
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert (report.grace, report.reaped) == (True, 0)
    assert await queue.beat(claim) is BeatAnswer.OK
    await asyncio.sleep(FAST.failover_grace_seconds + 0.05)
    assert (await queue.tick()).reaped == 1


async def test_after_a_standstill_of_redis_leases_get_their_grace(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await take(queue)
    seen = await redis.hget(keys.EPOCH, "seen")
    assert seen is not None
    await redis.hset(keys.EPOCH, "seen", str(int(seen) - 5000))
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    report = await queue.tick()
    assert (report.grace, report.reaped) == (True, 0)


# --- failures --------------------------------------------------------------------------------------------------------


async def test_crashes_are_counted_per_worker(queue: Queue) -> None:
    job_id = await add(queue)
    for worker in ("a/0", "a/0", "b/0", "a/0", "b/0"):
        settled = await queue.fail(await take(queue, worker), FailKind.CRASH, "WORKER_LOST", "gone")
        assert settled.state is JobState.QUEUED, worker
    settled = await queue.fail(await take(queue, "c/0"), FailKind.CRASH, "WORKER_LOST", "gone")
    assert settled.state is JobState.DEAD
    assert await state_of(queue, job_id) is JobState.DEAD


async def test_a_poisonous_job_ends_even_with_one_worker(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(5 * FAST.crash_budget):
        await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "gone")
    assert await state_of(queue, job_id) is JobState.DEAD


async def test_a_crashed_job_goes_to_the_front(queue: Queue) -> None:
    first = await add(queue)
    await add(queue)
    await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "gone")
    assert (await take(queue)).job_id == first


async def test_a_release_is_free(queue: Queue) -> None:
    job_id = await add(queue)
    for _ in range(20):
        await queue.fail(await take(queue), FailKind.RELEASE, "WORKER_LOST", "drained")
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.crashes, job.errors, job.ooms) == (JobState.QUEUED, 0, 0, 0)


@pytest.mark.parametrize("kind", [FailKind.ERROR, FailKind.OOM])
async def test_errors_are_delayed_then_dead(queue: Queue, redis: Redis, kind: FailKind) -> None:
    job_id = await add(queue)
    for attempt in range(1, 4):
        settled = await queue.fail(await take(queue), kind, "OOM", "too big")
        assert settled.state is (JobState.DEAD if attempt == 3 else JobState.DELAYED)
        if settled.state is JobState.DELAYED:
            due = await redis.zscore(keys.DELAYED, job_id)
            now, _ = await redis.time()
            assert 0 < due / 1000 - now <= 2**attempt * 1.25 + 1
            await redis.zadd(keys.DELAYED, {job_id: 0})
    assert await redis.xlen(keys.DEAD) == 1


async def test_budgets_are_separate(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    for kind in (FailKind.ERROR, FailKind.OOM, FailKind.ERROR, FailKind.OOM, FailKind.CRASH):
        settled = await queue.fail(await take(queue), kind, "UNKNOWN", "x")
        assert settled.state is not JobState.DEAD
        await redis.zadd(keys.DELAYED, {job_id: 0}, xx=True)


async def test_a_permanent_failure_is_dead_at_once_and_told_again(queue: Queue) -> None:
    await add(queue)
    claim = await take(queue)
    first = await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    again = await queue.fail(claim, FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    assert (first.status, first.state) == ("settled", JobState.DEAD)
    assert (again.status, again.state) == ("replay", JobState.DEAD)


async def test_a_deadline_ends_a_waiting_job(queue: Queue) -> None:
    job_id = await add(queue, deadline_seconds=0.05)
    await asyncio.sleep(0.1)
    await queue.tick()
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.reason) == (JobState.DEAD, "TIMEOUT")


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancelling_a_waiting_job_is_immediate(queue: Queue) -> None:
    job_id = await add(queue)
    assert (await queue.cancel(job_id)).status == "cancelled"
    assert isinstance(await queue.claim("a/0", "n"), Nothing)
    assert (await queue.cancel(job_id)).status == "final"


async def test_cancelling_a_delayed_job_is_immediate(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
    assert (await queue.cancel(job_id)).state is JobState.CANCELLED
    assert await redis.zcard(keys.DELAYED) == 0


async def test_cancelling_a_running_job_is_told_by_the_heartbeat(queue: Queue) -> None:
    job_id = await add(queue)
    claim = await take(queue)
    assert (await queue.cancel(job_id)).status == "requested"
    assert await queue.beat(claim) is BeatAnswer.CANCEL
    settled = await queue.fail(claim, FailKind.CANCELLED, "CANCELLED", "stopped")
    assert settled.state is JobState.CANCELLED


async def test_a_cancelled_job_whose_worker_dies_is_not_run_again(queue: Queue) -> None:
    job_id = await add(queue)
    await take(queue)
    await queue.cancel(job_id)
    await asyncio.sleep(FAST.lease_seconds + 0.05)
    await queue.tick()
    assert await state_of(queue, job_id) is JobState.CANCELLED


async def test_a_finished_job_cannot_be_cancelled(queue: Queue) -> None:
    job_id = await add(queue)
    await queue.commit(await take(queue), "{}")
    assert (await queue.cancel(job_id)).status == "final"
    assert await state_of(queue, job_id) is JobState.DONE
    assert (await queue.cancel(new_job_id())).status == "missing"


# --- the link --------------------------------------------------------------------------------------------------------


async def test_scripts_are_loaded_again_after_a_flush(queue: Queue, redis: Redis) -> None:
    await add(queue)
    await redis.script_flush()
    assert isinstance(await queue.claim("a/0", "n"), Claim)


async def test_retention_removes_every_trace(redis_server: RedisServer, redis: Redis) -> None:
    queue = redis_server.queue(replace(FAST, retention_seconds=0.05))
    job_id = await add(queue)
    await queue.commit(await take(queue), "{}")
    await asyncio.sleep(0.1)
    assert (await queue.tick()).removed == 1
    assert [key async for key in redis.scan_iter(match=f"*{job_id}*")] == []
    assert await queue.list_ids(None, None, 10) == []
    await queue.close()


async def test_an_evicting_redis_is_refused(tmp_path: Path) -> None:
    require_redis()
    server = RedisServer(tmp_path, policy="allkeys-lru")
    try:
        with pytest.raises(UnsafeRedis, match="noeviction"):
            await server.queue().connect()
    finally:
        server.stop()


async def test_jobs_survive_a_restart_and_the_client_finds_back(tmp_path: Path) -> None:
    require_redis()
    server = RedisServer(tmp_path)
    queue = server.queue()
    try:
        job_id = await add(queue)
        claim = await take(queue)
        server.stop()
        with pytest.raises(QueueUnavailable):
            await queue.beat(claim)
        server.start()
        await asyncio.sleep(FAST.lease_seconds)
        assert (await queue.tick()).grace
        assert await queue.commit(claim, "{}") is CommitAnswer.DONE
        assert await state_of(queue, job_id) is JobState.DONE
    finally:
        await queue.close()
        server.stop()


async def test_an_unreachable_redis_is_reported_fast() -> None:
    nowhere = RedisSettings(Address("127.0.0.1", 1), (), "queue", "default", Secret(""), 0)
    begin = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await Queue(RedisLink(nowhere), FAST).tick()
    assert time.monotonic() - begin < 1.0


class Sentinels:
    """A master, two replicas and three Sentinels on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ports = free_ports(6)
        self.master, *replicas = self.ports[:3]
        common = f"bind 127.0.0.1\nrequirepass {PASSWORD}\nmasterauth {PASSWORD}\nsave ''\n"
        common += "maxmemory-policy noeviction\nrepl-diskless-sync-delay 0\n"
        self.master_process = self.start("master", f"port {self.master}\n{common}")
        for port in replicas:
            self.start(f"replica-{port}", f"port {port}\n{common}replicaof 127.0.0.1 {self.master}\n")

    async def start_sentinels(self) -> None:
        """Only when both replicas are attached: a Sentinel asks for them every 10 s only."""
        await self.until(self.master, ("INFO", "replication"), {"connected_slaves": 2})
        for port in self.ports[3:]:
            self.start_sentinel(port)
        for port in self.ports[3:]:
            await self.until(port, ("SENTINEL", "MASTER", "queue"), {"num-slaves": 2, "num-other-sentinels": 2})

    async def until(self, port: int, words: tuple[str, ...], expected: dict[str, int]) -> None:
        deadline = time.monotonic() + 20
        while True:
            answer: object = None
            client = Redis(port=port, password=PASSWORD, decode_responses=True)
            with contextlib.suppress(ConnectionError, RedisError):
                answer = await client.execute_command(*words)
            await client.aclose()
            if isinstance(answer, dict) and all(
                str(answer.get(name)) == str(value) for name, value in expected.items()
            ):
                return
            assert time.monotonic() < deadline, f"port {port}: {words} still answers {answer}"
            await asyncio.sleep(0.1)

    def start_sentinel(self, port: int) -> None:
        self.start(
            f"sentinel-{port}",
            f"port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n"
            f"sentinel monitor queue 127.0.0.1 {self.master} 2\nsentinel auth-pass queue {PASSWORD}\n"
            "sentinel down-after-milliseconds queue 1000\nsentinel failover-timeout queue 10000\n",
            "--sentinel",
        )

    def start(self, name: str, config: str, *more: str) -> subprocess.Popen[bytes]:
        folder = self.folder / name
        folder.mkdir()
        (folder / "redis.conf").write_text(config)
        words = ["redis-server", str(folder / "redis.conf"), *more]
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(5)

    def queue(self, *first: int) -> Queue:
        addresses = tuple(Address("127.0.0.1", port) for port in (*first, *self.ports[3:]))
        settings = RedisSettings(None, addresses, "queue", "default", Secret(PASSWORD), 1)
        return Queue(RedisLink(settings), FAST, replicas=1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


async def submit_until_accepted(queue: Queue, job: Submission, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            await queue.submit(job)
            return
        except QueueUnavailable as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not accepted within {seconds} s") from error
        await asyncio.sleep(0.1)


async def test_acknowledged_jobs_outlive_the_master_and_a_stale_sentinel_is_not_believed(tmp_path: Path) -> None:
    require_redis()
    cluster = Sentinels(tmp_path)
    queue = cluster.queue()
    try:
        await cluster.start_sentinels()
        jobs = [submission() for _ in range(5)]
        for job in jobs[:4]:
            await submit_until_accepted(queue, job, 15)
        await queue.tick()
        cluster.master_process.kill()
        begin = time.monotonic()
        await submit_until_accepted(queue, jobs[4], 15)
        print(f"submissions paused for {time.monotonic() - begin:.2f} s")
        assert set(await queue.list_ids(None, None, 10)) == {job.job_id for job in jobs}
        assert (await queue.tick()).grace
        (stale,) = free_ports(1)
        cluster.start_sentinel(stale)
        await asyncio.sleep(0.3)
        fresh = cluster.queue(stale)
        assert len(await fresh.list_ids(None, None, 10)) == 5
        await fresh.close()
    finally:
        await queue.close()
        cluster.stop()


# --- everything at once ----------------------------------------------------------------------------------------------


class Chaos:
    """Random moves of clients and of workers that crash, freeze, wake up late and repeat themselves."""

    def __init__(self, queue: Queue, seed: int) -> None:
        self.queue = queue
        self.random = random.Random(seed)
        self.accepted: dict[str, JobState] = {}
        self.committed: dict[str, int] = {}
        self.held: dict[str, Claim] = {}
        self.zombies: list[Claim] = []

    async def step(self) -> None:
        move = self.random.choice((self.submit, self.claim, self.claim, self.commit, self.fail, self.freeze, self.wake))
        await move()

    async def submit(self) -> None:
        job = submission(user=self.random.choice("abc"))
        if (await self.queue.submit(job)).status == "ok":
            self.accepted[job.job_id] = JobState.QUEUED

    async def claim(self) -> None:
        idle = [name for name in ("a/0", "b/0", "c/0") if name not in self.held]
        if idle:
            worker = self.random.choice(idle)
            answer = await self.queue.claim(worker, os.urandom(8).hex())
            if isinstance(answer, Claim):
                self.held[worker] = answer

    async def commit(self) -> None:
        if self.held:
            worker = self.random.choice(list(self.held))
            await self.finish(self.held.pop(worker))

    async def finish(self, claim: Claim) -> None:
        answer = await self.queue.commit(claim, json.dumps({"fence": claim.fence}))
        if answer is CommitAnswer.DONE:
            assert claim.job_id not in self.committed, "committed twice"
            self.committed[claim.job_id] = claim.fence

    async def fail(self) -> None:
        if self.held:
            claim = self.held.pop(self.random.choice(list(self.held)))
            kind = self.random.choice((FailKind.CRASH, FailKind.RELEASE, FailKind.ERROR))
            await self.queue.fail(claim, kind, "UNKNOWN", "chaos")

    async def freeze(self) -> None:
        """A worker vanishes; its lease runs out; it may come back as a zombie."""
        if self.held:
            self.zombies.append(self.held.pop(self.random.choice(list(self.held))))
        if self.random.random() < 0.2:
            await asyncio.sleep(0.06)
            await self.queue.tick()

    async def wake(self) -> None:
        if self.zombies:
            await self.finish(self.random.choice(self.zombies))


@pytest.mark.parametrize("seed", range(6))
async def test_no_accepted_job_is_lost_and_none_is_committed_twice(
    redis_server: RedisServer, redis: Redis, seed: int
) -> None:
    settings = QueueSettings(
        lease_seconds=0.05, beat_seconds=0.01, queue_limit=1000, crash_budget=1000, error_budget=1000
    )
    queue = redis_server.queue(settings)
    chaos = Chaos(queue, seed)
    for _ in range(250):
        await chaos.step()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(chaos.committed) < len(chaos.accepted):
        for job_id in await redis.zrange(keys.DELAYED, 0, -1):
            await redis.zadd(keys.DELAYED, {job_id: 0}, xx=True)
        chaos.held.clear()
        await chaos.claim()
        await chaos.commit()
    assert set(chaos.committed) == set(chaos.accepted)
    for job_id, fence in chaos.committed.items():
        job = await queue.get(job_id)
        assert job is not None
        assert (job.state, job.result) == (JobState.DONE, {"fence": fence})
    for key in (keys.READY, keys.DELAYED, keys.LEASE):
        assert await redis.zcard(key) == 0
    assert await redis.xlen(keys.RUN) == 0
    await queue.close()


async def test_every_move_seen_in_the_events_is_a_legal_transition(queue: Queue, redis: Redis) -> None:
    job_id = await add(queue)
    await queue.fail(await take(queue), FailKind.CRASH, "WORKER_LOST", "x")
    await queue.fail(await take(queue), FailKind.ERROR, "UNKNOWN", "x")
    await redis.zadd(keys.DELAYED, {job_id: 0})
    await queue.commit(await take(queue), "{}")
    states = [JobState(event.kind) for event in await queue.events_after(job_id, "0-0")]
    expected = "queued running queued running delayed queued running done"
    assert " ".join(state.value for state in states) == expected
    assert all(is_legal(states[index], states[index + 1]) for index in range(len(states) - 1))


# --- the API ---------------------------------------------------------------------------------------------------------

KEYS = {"ada": "ada-key", "bob": "bob-key", "root": "root-key"}


@pytest.fixture
def api_settings(redis_server: RedisServer, tmp_path: Path) -> ApiSettings:
    lines = [
        f"{name}:{'operator' if name == 'root' else 'user'}:{hashlib.sha256(key.encode()).hexdigest()}"
        for name, key in KEYS.items()
    ]
    (tmp_path / "api_keys").write_text("# keys\n" + "\n".join(lines) + "\n")
    common = Common("api", "test", "info", tmp_path)
    listen = Address("127.0.0.1", 0)
    return ApiSettings(common, redis_server.settings, FAST, listen, tmp_path / "jobs", tmp_path / "api_keys")


@pytest_asyncio.fixture
async def api(api_settings: ApiSettings, queue: Queue) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(api_settings, queue), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://api", headers={"X-Api-Key": "ada-key"}
    ) as client:
        yield client


def as_user(name: str) -> dict[str, str]:
    return {"X-Api-Key": KEYS[name]}


def assert_problem(response: httpx.Response, status: int, slug: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == slug
    assert "Traceback" not in response.text


async def test_submit_read_list_cancel(api: httpx.AsyncClient) -> None:
    response = await api.post("/api/v1/jobs", json={"prompt": "a cat", "frames": 8})
    assert response.status_code == 202
    job = response.json()
    assert (job["state"], job["position"], job["eta_seconds"]) == ("queued", 1, None)
    assert (await api.get(response.headers["location"])).json()["id"] == job["id"]
    listed = (await api.get("/api/v1/jobs", params={"state": "queued"})).json()
    assert [item["id"] for item in listed["jobs"]] == [job["id"]]
    assert (await api.delete(f"/api/v1/jobs/{job['id']}")).json()["state"] == "cancelled"
    assert (await api.delete(f"/api/v1/jobs/{job['id']}")).json()["state"] == "cancelled"


async def test_idempotency_over_http(api: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = await api.post("/api/v1/jobs", json={"prompt": "a", "steps": 5}, headers=key)
    again = await api.post("/api/v1/jobs", json={"steps": 5, "prompt": "a"}, headers=key)
    assert again.json()["id"] == first.json()["id"]
    assert_problem(await api.post("/api/v1/jobs", json={"prompt": "b"}, headers=key), 409, "idempotency-conflict")


async def test_a_full_queue_says_when_to_come_back(api: httpx.AsyncClient) -> None:
    for _ in range(FAST.queue_limit):
        assert (await api.post("/api/v1/jobs", json={"prompt": "a"})).status_code == 202
    response = await api.post("/api/v1/jobs", json={"prompt": "a"})
    assert_problem(response, 503, "queue-full")
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": "a", "width": 65}, "width"),
        ({"prompt": "a", "steps": 151}, "steps"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "model": "../secret"}, "model"),
        ({"prompt": "a" * 4001}, "prompt"),
        ({"prompt": "a", "metadata": {"x": "y" * 5000}}, "metadata"),
        ({"prompt": "a", "loras": [{"name": "x"}] * 9}, "loras"),
        ({"prompt": "a", "format": ["exe"]}, "format.0"),
    ],
)
async def test_bad_requests_are_refused_by_name(api: httpx.AsyncClient, body: object, field: str) -> None:
    response = await api.post("/api/v1/jobs", json=body)
    assert_problem(response, 422, "invalid-request")
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize("content", [b"{", b'{"prompt": "\\ud800"}', b'{"prompt":"a","cfg_scale":NaN}', b"[" * 5000])
async def test_hostile_json_is_the_clients_error(api: httpx.AsyncClient, content: bytes) -> None:
    response = await api.post("/api/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"


async def test_bodies_are_bounded_while_they_stream(api: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    headers = {"Content-Type": "application/json"}
    assert_problem(await api.post("/api/v1/jobs", content=endless(), headers=headers), 413, "body-too-large")
    assert sent <= 18 * 1024 * 1024
    padded = json.dumps({"prompt": "a"}) + " " * 1024 * 1024
    assert_problem(await api.post("/api/v1/jobs", content=padded, headers=headers), 413, "body-too-large")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Api-Key": "ada-key"},
        {"X-Api-Key": "", "Authorization": "Bearer ada-key"},
        {"X-Api-Key": "", "Authorization": "Basic YW55Ym9keTphZGEta2V5"},
    ],
)
async def test_the_three_ways_to_present_a_key(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    if not headers["X-Api-Key"]:
        del headers["X-Api-Key"]
        del api.headers["X-Api-Key"]
    assert (await api.get("/internal/auth", headers=headers)).status_code == 204


async def test_without_a_key_nothing_but_health_answers(api: httpx.AsyncClient) -> None:
    wrong = {"X-Api-Key": "guess"}
    for path in ("/api/v1/jobs", "/api/v1/cluster", "/api/v1/openapi.json", "/nowhere"):
        response = await api.get(path, headers=wrong)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert (await api.get("/internal/auth", headers=wrong)).headers["www-authenticate"].startswith("Basic")
    assert (await api.get("/healthz", headers=wrong)).status_code == 200
    assert (await api.get("/readyz", headers=wrong)).status_code == 200


async def test_a_new_key_works_without_a_restart(api: httpx.AsyncClient, api_settings: ApiSettings) -> None:
    digest = hashlib.sha256(b"late").hexdigest()
    with api_settings.api_keys_file.open("a") as file:
        file.write(f"late:user:{digest}\n")
    await asyncio.sleep(1.1)
    assert (await api.get("/internal/auth", headers={"X-Api-Key": "late"})).status_code == 204


async def test_a_strangers_job_does_not_exist(api: httpx.AsyncClient) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    for path in (f"/api/v1/jobs/{job_id}", f"/api/v1/jobs/{job_id}/events", f"/api/v1/jobs/{job_id}/result"):
        assert_problem(await api.get(path, headers=as_user("bob")), 404, "no-such-job")
    assert_problem(await api.delete(f"/api/v1/jobs/{job_id}", headers=as_user("bob")), 404, "no-such-job")
    assert (await api.get("/api/v1/jobs", headers=as_user("bob"))).json()["jobs"] == []
    assert (await api.get(f"/api/v1/jobs/{job_id}", headers=as_user("root"))).status_code == 200


async def test_pages_join_without_gaps(api: httpx.AsyncClient) -> None:
    ids = [(await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"] for _ in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/api/v1/jobs", params=params)).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)
    assert len(seen) == 7


async def finish_job(queue: Queue, jobs_dir: Path, job_id: str, content: bytes) -> None:
    claim = await take(queue)
    assert claim.job_id == job_id
    folder = jobs_dir / attempt_folder(job_id, claim.fence)
    folder.mkdir(parents=True)
    (folder / "video.mp4").write_bytes(content)
    described = storage.ResultFile("video.mp4", "video/mp4", len(content), hashlib.sha256(content).hexdigest())
    commit = storage.write_commit(jobs_dir, storage.new_commit(job_id, claim.fence, "a/0", (described,)))
    assert await queue.commit(claim, commit.to_json()) is CommitAnswer.DONE


async def test_the_result_with_ranges(api: httpx.AsyncClient, queue: Queue, api_settings: ApiSettings) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    url = f"/api/v1/jobs/{job_id}/result"
    assert_problem(await api.get(url), 409, "not-finished")
    await finish_job(queue, api_settings.jobs_dir, job_id, b"0123456789")
    whole = await api.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "video/mp4")
    part = await api.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (await api.head(url)).headers["content-length"] == "10"
    assert_problem(await api.get(url, params={"file": 1}), 404, "no-such-file")
    view = (await api.get(f"/api/v1/jobs/{job_id}")).json()
    assert view["result"][0]["url"] == f"{url}?file=0"


async def test_events_stream_and_resume(api: httpx.AsyncClient, queue: Queue, api_settings: ApiSettings) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    await finish_job(queue, api_settings.jobs_dir, job_id, b"x")
    url = f"/api/v1/jobs/{job_id}/events"
    text = (await api.get(url)).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["job", "queued", "running", "done"]
    ids = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]
    rest = (await api.get(url, headers={"Last-Event-ID": ids[1]})).text
    assert [line for line in rest.splitlines() if line.startswith("event: ")] == ["event: done"]
    assert (await api.get(url, headers={"Last-Event-ID": ids[2]})).status_code == 204


async def test_the_cluster_shows_workers_and_counts(api: httpx.AsyncClient, queue: Queue) -> None:
    about = {"boot_id": "b", "state": "idle", "engine": "synthetic", "fingerprint": "f", "synthetic": "1"}
    await queue.register("gpu-01/0", **about)
    await api.post("/api/v1/jobs", json={"prompt": "a"})
    await queue.fail(await take(queue, "gpu-01/0"), FailKind.CRASH, "GPU_LOST", "fell off the bus")
    cluster = (await api.get("/api/v1/cluster")).json()
    assert [(w["name"], w["alive"], w["seq"]) for w in cluster["workers"]] == [("gpu-01/0", True, 1)]
    assert cluster["queue"]["waiting"] == 1
    assert cluster["failures_last_hour"] == {"GPU_LOST": 1}


async def test_unknown_paths_and_methods_are_problems(api: httpx.AsyncClient) -> None:
    assert_problem(await api.get("/nowhere"), 404, "not-found")
    response = await api.put("/api/v1/jobs")
    assert_problem(response, 405, "method-not-allowed")
    assert (await api.get("/api/v1/openapi.json")).json()["paths"]["/api/v1/jobs"]["post"]


async def test_bugs_are_hidden_from_clients(
    api: httpx.AsyncClient, queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    await redis.hset(keys.job(job_id), "state", "not-a-state")
    assert_problem(await api.get(f"/api/v1/jobs/{job_id}"), 500, "internal-error")


async def test_the_api_process_ends_open_streams_and_exits_0(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    (tmp_path / "redis_password").write_text(PASSWORD)
    (tmp_path / "api_keys").write_text(f"ada:user:{hashlib.sha256(b'ada-key').hexdigest()}\n")
    (port,) = free_ports(1)
    environment = {
        "PYTHONPATH": str(SERVICES),
        "APPLIANCE_SECRETS_DIR": str(tmp_path),
        "APPLIANCE_NODE_NAME": "test",
        "APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}",
        "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_LISTEN": f"127.0.0.1:{port}",
    }
    process = subprocess.Popen([sys.executable, "-m", "appliance", "api"], env=environment)  # noqa: ASYNC220
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=as_user("ada"), trust_env=False
        ) as client:
            await wait_until_ready(client)
            job_id = (await client.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
            async with client.stream("GET", f"/api/v1/jobs/{job_id}/events") as stream:
                lines = stream.aiter_lines()
                while await lines.__anext__() != "event: queued":
                    pass
                process.terminate()
                assert [line async for line in lines][-1] == ""
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait(5)


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the api was not ready within 15 s"
        await asyncio.sleep(0.1)


async def test_without_redis_the_api_says_so(api_settings: ApiSettings) -> None:
    nowhere = replace(api_settings.redis, address=Address("127.0.0.1", 1))
    app = create_app(api_settings, Queue(RedisLink(nowhere), FAST))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://api", headers=as_user("ada")
    ) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert_problem(await client.get("/readyz"), 503, "queue-unavailable")
        response = await client.post("/api/v1/jobs", json={"prompt": "a"})
        assert_problem(response, 503, "queue-unavailable")
        assert response.headers["retry-after"]
