"""Looks into Redis all the time: who holds what, and every job's stream before a clock that jumps makes it expire."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from redis.asyncio import Redis

from appliance import keys, storage
from appliance.errors import QueueError, StorageError
from appliance.job import attempt_folder
from tests.integration.chaos import checker
from tests.integration.chaos.checker import FINAL_STATES, entry_order
from tests.integration.chaos.cluster import ChaosCluster
from tests.integration.chaos.history import CommitFile, Event, Final, History, Leftover

POLL_SECONDS = 0.3
SIGHT_SECONDS = 1.0
LINGER_SECONDS = 8.0
LAST_TRIES = 20
FORGIVEN = 2
"""Lost workers, or failed attempts: with one more a job may be given up (budgets of 3)."""
T = TypeVar("T")
Entries = list[tuple[str, dict[str, str]]]
GAP = {"type": checker.GAP, "data": "{}"}


@dataclass
class JobNow:
    """One job as last seen. `fences` holds when (monotonic) each attempt was first seen."""

    facts: dict[str, str] = field(default_factory=dict)
    stream: Entries = field(default_factory=list)
    fences: dict[int, float] = field(default_factory=dict)
    settled: float | None = None

    @property
    def final(self) -> bool:
        return self.facts.get("state") in FINAL_STATES

    @property
    def failures(self) -> int:
        """Of the kind that it has most of: lost workers, or attempts that failed."""
        return max(len(json.loads(self.facts.get("crash_workers", "{}"))), int(self.facts.get("errs", 0)))

    @property
    def near_its_budget(self) -> bool:
        """One more lost worker or failed attempt could be one more than the queue promises to forgive."""
        return self.failures >= FORGIVEN


class Watcher:
    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self._link = cluster.link()
        self.jobs: dict[str, JobNow] = {}
        self.holders: dict[str, str] = {}
        """Worker → job."""
        self.last_look = time.monotonic()

    @property
    def blind_for(self) -> float:
        """Seconds since the last look."""
        return time.monotonic() - self.last_look

    @property
    def is_blind(self) -> bool:
        """Jobs may have changed hands since the last look, and lost workers."""
        return self.blind_for > SIGHT_SECONDS

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except QueueError:
                await asyncio.sleep(POLL_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        await self._link.close()

    async def look(self) -> None:
        """One poll; raises QueueError while no master answers."""
        for job in await self._link.run(_all_jobs):
            self.jobs.setdefault(job, JobNow())
        now = time.monotonic()
        due = [job for job, seen in self.jobs.items() if seen.settled is None or now - seen.settled < LINGER_SECONDS]
        await self._read(due)
        workers = list(self._cluster.workers)
        held = await self._link.run(lambda client: _holders(client, workers))
        self.holders = {worker: job for worker, job in zip(workers, held, strict=True) if job}
        self.last_look = now

    async def read_all(self) -> None:
        for job in await self._link.run(_all_jobs):
            self.jobs.setdefault(job, JobNow())
        await self._read(list(self.jobs))

    async def _read(self, jobs: list[str]) -> None:
        if not jobs:
            return
        answers = await self._link.run(lambda client: _hashes_and_streams(client, jobs))
        now = time.monotonic()
        for job, facts, stream in zip(jobs, answers[::2], answers[1::2], strict=True):
            seen = self.jobs[job]
            seen.facts, seen.stream = facts, merge(seen.stream, stream)
            seen.fences.setdefault(int(facts.get("fence", 0)), now)
            seen.settled = (seen.settled or now) if seen.final else None

    # --- the end -------------------------------------------------------------------------------------------------

    async def collect(self, history: History, acknowledged: Iterable[str]) -> None:
        """Everything the checker wants to know, once nothing runs or waits any more."""
        await answered(self.read_all)
        for job in {*self.jobs, *acknowledged}:
            seen = self.jobs.get(job, JobNow())
            for entry, values in seen.stream:
                if values["type"] != "progress":
                    history.add(event_of(job, entry, values))
            if seen.facts.get("state"):
                history.add(final_of(job, seen.facts))
            commit = read_commit_file(self._cluster.jobs_dir, job)
            if commit is not None:
                history.add(commit)
        for leftover in await answered(lambda: self._link.run(find_leftovers)):
            history.add(leftover)


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """A kept connection may be one that its server gave up when it became a replica: the next one is a new one."""
    for _ in range(LAST_TRIES):
        try:
            return await ask()
        except QueueError:
            await asyncio.sleep(POLL_SECONDS)
    return await ask()


def merge(before: Entries, now: Entries) -> Entries:
    """What the present master has; what expired there is kept, what a failover undid is not.

    A clock that jumps by more than a stream's hour makes it expire between two looks, with what nobody has seen.
    """
    if not now or not before:
        return now or before
    first = entry_order(now[0][0])
    if first > entry_order(before[-1][0]):
        return [*before, (before[-1][0], GAP), *now]
    return [entry for entry in before if entry_order(entry[0]) < first] + now


def event_of(job: str, entry: str, values: dict[str, str]) -> Event:
    data: dict[str, Any] = json.loads(values["data"])
    return Event(
        job,
        entry,
        values["type"],
        int(data.get("fence") or 0),
        str(data.get("worker") or ""),
        str(data.get("reason") or ""),
    )


def final_of(job: str, facts: dict[str, str]) -> Final:
    result = json.loads(facts["result"]) if facts.get("result") else {"files": []}
    return Final(
        job,
        facts["state"],
        int(facts.get("fence", 0)),
        " ".join(file["sha256"] for file in result["files"]),
        facts.get("reason", ""),
        facts.get("message", ""),
        int(facts.get("attempts", 0)),
        len(json.loads(facts.get("crash_workers", "{}"))),
    )


def read_commit_file(jobs_dir: Path, job: str) -> CommitFile | None:
    try:
        commit = storage.read_commit(jobs_dir, job)
    except StorageError as error:
        return CommitFile(job, 0, str(error), "", whole=False)
    if commit is None:
        return None
    folder = jobs_dir / attempt_folder(job, commit.fence)
    whole = all(_checksum(folder / file.name) == file.sha256 for file in commit.files)
    result = " ".join(file.sha256 for file in commit.files)
    return CommitFile(job, commit.fence, commit.worker, result, whole=whole and bool(commit.files))


def _checksum(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


# --- what is asked of Redis --------------------------------------------------------------------------------------


async def members(client: Redis, key: str) -> list[str]:
    return cast("list[str]", await client.zrange(key, 0, -1))


async def _all_jobs(client: Redis) -> list[str]:
    return await members(client, keys.ALL_JOBS)


async def _holders(client: Redis, workers: list[str]) -> list[str | None]:
    pipeline = client.pipeline(transaction=False)
    for worker in workers:
        pipeline.hget(keys.worker(worker), "job")
    return list(await pipeline.execute())


async def _hashes_and_streams(client: Redis, jobs: list[str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for job in jobs:
        pipeline.hgetall(keys.job(job))
        pipeline.xrange(keys.job_events(job))
    return list(await pipeline.execute())


async def find_leftovers(client: Redis) -> list[Leftover]:
    """Empty when nothing runs and nothing waits."""
    left: list[Leftover] = []
    lines = [str(key) async for key in client.scan_iter(match=f"{keys.READY}*", count=1000)]
    for key in (*lines, keys.LEASE, keys.DELAYED, keys.DEADLINE):
        left += [Leftover(key, job) for job in await members(client, key)]
    ledger = cast("Entries", await client.xrange(keys.RUN))
    left += [Leftover(keys.RUN, f"{entry}: {values}") for entry, values in ledger]
    if await client.exists(keys.RUN):
        pending = (await client.xpending(keys.RUN, keys.RUN_GROUP))["pending"]
        left += [Leftover(keys.RUN, f"{pending} pending")] if pending else []
    workers = await members(client, keys.WORKERS)
    held = await _holders(client, workers)
    left += [Leftover(keys.worker(worker), job) for worker, job in zip(workers, held, strict=True) if job]
    known, ended = set(await _all_jobs(client)), set(await members(client, keys.DONE))
    left += [Leftover(keys.ALL_JOBS, f"{job} is in no list of ended jobs") for job in sorted(known - ended)]
    return left
