"""A whole run: users, faults in three lanes, and the wait for everything to settle. One seed drives all of it.

The lanes keep within what is promised: one queue host in trouble at a time and the next only when all three Redis are
in step again; at most two workers by themselves (a partition may take two more), one stays; one api of three; no
innocent job meets more faults than the queue promises to forgive, wherever it is handed on to meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from appliance.errors import QueueError
from tests.integration.chaos.clients import Users
from tests.integration.chaos.cluster import ChaosCluster, Worker
from tests.integration.chaos.faults import (
    API_FAULTS,
    HOST_FAULTS,
    WORKER_FAULTS,
    HostFault,
    Undo,
    host_deck,
    nothing,
    worker_deck,
)
from tests.integration.chaos.history import Fault, History
from tests.integration.chaos.watcher import FORGIVEN, SIGHT_SECONDS, JobNow, Watcher

USERS = 5
WORKER_LANES = 2
IN_STEP_SECONDS = 40.0
SETTLE_SECONDS = 150.0
BACK_SECONDS = 30.0
BLIND_SECONDS = 60.0
UNSEEN_SECONDS = 4.0
"""After a fault its worker's job may be lost and not be known to be: the lease and the next tick."""
BETWEEN_WORKER_FAULTS = (1.0, 3.0)
BETWEEN_HOST_FAULTS = (1.0, 4.0)


@dataclass(frozen=True)
class Weather:
    """How much of it: at least so many jobs, and the decks of faults dealt so many times."""

    seed: str
    jobs: int = 300
    rounds: int = 1
    pause: tuple[float, float] = (1.5, 3.5)


@dataclass
class Storm:
    cluster: ChaosCluster
    history: History
    weather: Weather
    watcher: Watcher = field(init=False)
    users: Users = field(init=False)
    busy_workers: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)
    """The workers on the small side of a partition."""
    struck_at: dict[str, float] = field(default_factory=dict)
    """When each worker's last fault ended."""

    def __post_init__(self) -> None:
        self.watcher = Watcher(self.cluster)
        self.users = Users(self.cluster, self.history, self.weather.seed)

    async def run(self) -> None:
        async with self.watched():
            await self._blow()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Around whatever happens: recorded, and at the end settled and collected."""
        watching = asyncio.create_task(self.watcher.run(), name="watcher")
        try:
            try:
                yield
                await wait_until_in_step(self.cluster)
                await self._settle()
                # All that was broken has been mended: whoever does not come back now never will.
                await asyncio.to_thread(self.cluster.wait_ready, BACK_SECONDS)
            finally:
                watching.cancel()
                (why,) = await asyncio.gather(watching, return_exceptions=True)
                await self.users.close()
                if isinstance(why, Exception):
                    raise why
            await self.watcher.collect(self.history, self.users.acknowledged)
        finally:
            await self.watcher.close()

    async def _blow(self) -> None:
        seed, over = self.weather.seed, asyncio.Event()
        deck = [name for number in range(self.weather.rounds) for name in worker_deck(_chance(seed, "workers", number))]
        decks = [deck[lane::WORKER_LANES] for lane in range(WORKER_LANES)]
        lanes = [
            asyncio.create_task(self._worker_lane(part, _chance(seed, "lane", lane))) for lane, part in enumerate(decks)
        ]
        for faults, work in ((HOST_FAULTS, self._redis_lane), (API_FAULTS, self._api_lane)):
            dealt = [
                name
                for number in range(self.weather.rounds)
                for name in host_deck(faults, _chance(seed, work.__name__, number))
            ]
            lanes.append(asyncio.create_task(work(dealt, _chance(seed, work.__name__, "lane"))))

        def enough() -> bool:
            return over.is_set() and self.users.submitted >= self.weather.jobs

        submitting = [
            asyncio.create_task(self.users.submit_for_ever(number, self.weather.pause, enough))
            for number in range(USERS)
        ]
        try:
            await asyncio.gather(*lanes)
            over.set()
            await asyncio.gather(*submitting)
        finally:
            for task in (*lanes, *submitting):
                task.cancel()
            await asyncio.gather(*lanes, *submitting, return_exceptions=True)

    # --- the lanes -----------------------------------------------------------------------------------------------

    async def _worker_lane(self, deck: Sequence[str], chance: random.Random) -> None:
        for name in deck:
            await asyncio.sleep(chance.uniform(*BETWEEN_WORKER_FAULTS))
            worker = await self._victim(chance)
            fault = WORKER_FAULTS[name]
            hit = self.watcher.holders.get(worker.name, "")
            self.busy_workers.add(worker.name)
            try:
                await self._strike(
                    name,
                    worker.name,
                    lambda fault=fault, worker=worker: fault.do(self.cluster, worker),  # type: ignore[misc]
                    chance.uniform(*fault.seconds),
                    hit,
                )
            finally:
                self.busy_workers.discard(worker.name)
                self.struck_at[worker.name] = time.monotonic()

    async def _victim(self, chance: random.Random) -> Worker:
        """Rather one that works; never one that might cost an innocent job more than the queue forgives."""
        while self.watcher.blind_for < BLIND_SECONDS:
            if not self.watcher.is_blind:
                with contextlib.suppress(QueueError, asyncio.TimeoutError):  # it soon will be
                    await asyncio.wait_for(self.watcher.look(), SIGHT_SECONDS)
            tried = self._tried()
            free = [worker for worker in self.cluster.workers.values() if worker.name not in self.busy_workers]
            may = [worker for worker in free if not self._spared(worker, tried)]
            working = [worker for worker in may if worker.name in self.watcher.holders]
            if may:
                return chance.choice(working if working and chance.random() < 0.9 else may)
            await asyncio.sleep(0.2)
        raise RuntimeError(f"nobody has been able to look into Redis for {BLIND_SECONDS:g} s")

    def _tried(self) -> dict[str, JobNow]:
        """The innocent jobs that have lost something and are not over."""
        seen = ((job, self.watcher.jobs.get(job)) for job in self.users.plain)
        return {job: now for job, now in seen if now is not None and now.failures and not now.final}

    def _spared(self, worker: Worker, tried: Mapping[str, JobNow]) -> bool:
        if self.watcher.is_blind or any(job.near_its_budget for job in tried.values()):
            # Any worker may hold any job by now, or be the next to.
            return bool(tried)
        return any(self._could_end(worker, job, now) for job, now in tried.items())

    def _could_end(self, worker: Worker, job: str, now: JobNow) -> bool:
        """Whether the job could lose, one after the other, all workers that are in trouble, with this one."""
        struck = {worker.name, *self.busy_workers, *self.cut_off}
        holder = next((name for name, held in self.watcher.holders.items() if held == job), None)
        if holder is not None and holder not in struck:
            if time.monotonic() - self.struck_at.get(holder, float("-inf")) > UNSEEN_SECONDS:
                return False  # it is in good hands
            struck.add(holder)
        return now.failures + len(struck) > FORGIVEN

    async def _redis_lane(self, deck: Sequence[str], chance: random.Random) -> None:
        for name in deck:
            await wait_until_in_step(self.cluster)
            await asyncio.sleep(chance.uniform(*BETWEEN_HOST_FAULTS))
            fault = HOST_FAULTS[name]
            if fault.cuts_workers:
                await self._until_nobody_is_near_the_end()
            await self._strike_host(fault, name, chance)

    async def _until_nobody_is_near_the_end(self) -> None:
        end = time.monotonic() + SETTLE_SECONDS
        while any(job.near_its_budget for job in self._tried().values()):
            if time.monotonic() > end:
                raise RuntimeError(f"a job at its last attempt does not end within {SETTLE_SECONDS:g} s")
            await asyncio.sleep(0.2)

    async def _api_lane(self, deck: Sequence[str], chance: random.Random) -> None:
        for name in deck:
            await asyncio.sleep(chance.uniform(10, 20))
            await self._strike_host(API_FAULTS[name], name, chance)

    async def _strike_host(self, fault: HostFault, name: str, chance: random.Random) -> None:
        host = await self._host(fault.victim, chance)
        if fault.cuts_workers:
            self.cut_off = {worker.name for worker in self.cluster.workers.values() if worker.host == host}
        try:
            await self._strike(name, host, lambda: fault.do(self.cluster, host), chance.uniform(*fault.seconds))
        finally:
            if fault.cuts_workers:
                self.struck_at |= dict.fromkeys(self.cut_off, time.monotonic())
                self.cut_off = set()

    async def _host(self, victim: str, chance: random.Random) -> str:
        hosts = list(self.cluster.hosts)
        if victim == "any":
            return chance.choice(hosts)
        master = await find_master(self.cluster)
        return master if victim == "master" else chance.choice([host for host in hosts if host != master])

    async def _strike(self, name: str, target: str, do: Callable[[], Undo], seconds: float, hit: str = "") -> None:
        start, undo = time.monotonic(), nothing
        try:
            undo = await asyncio.to_thread(do)
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(undo)
            self.history.add(Fault(name, target, start, time.monotonic(), hit))

    # --- afterwards ----------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Until every job has ended; what has not by then is for the checker to tell."""
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            try:
                await self.watcher.look()
            except QueueError:
                await asyncio.sleep(0.5)
                continue
            # A job without facts is gone, and no waiting brings it back.
            if all(job.final or not job.facts for job in self.watcher.jobs.values()):
                await asyncio.sleep(3)  # the followers' last looks, and the workers' last words
                return
            await asyncio.sleep(0.5)


def _chance(*parts: object) -> random.Random:
    return random.Random(" ".join(map(str, parts)))


# --- the three Redis ---------------------------------------------------------------------------------------------


async def find_master(cluster: ChaosCluster) -> str:
    return cluster.host_of(str((await _replication(cluster))["host"]))


async def wait_until_in_step(cluster: ChaosCluster, seconds: float = IN_STEP_SECONDS) -> None:
    """One master with two replicas that follow it; a cluster that does not heal by itself is a failure."""
    end = time.monotonic() + seconds
    seen: object = None
    while time.monotonic() < end:
        try:
            facts = await _replication(cluster)
            replicas = [facts.get(f"slave{number}", {}) for number in range(2)]
            if all(one.get("state") == "online" and int(one.get("lag", 9)) <= 1 for one in replicas):
                return
            seen = facts
        except QueueError as error:
            seen = error
        await asyncio.sleep(0.3)
    raise RuntimeError(f"the three Redis are not in step after {seconds:g} s: {seen}")


async def _replication(cluster: ChaosCluster) -> dict[str, Any]:
    link = cluster.link()

    async def ask(client: Redis) -> dict[str, Any]:
        facts = dict(await client.info("replication"))
        facts["host"] = client.connection_pool.connection_kwargs["host"]
        return facts

    try:
        return await link.run(ask)
    finally:
        await link.close()
