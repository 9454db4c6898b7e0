"""Directed schedules for broken builds: what fencing and WAIT are there to prevent, made to happen every time."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from appliance.errors import QueueError
from appliance.queue import scripts
from tests.integration.chaos.cluster import WEBUI_PORT, ChaosCluster, Options, Worker
from tests.integration.chaos.faults import freeze, part
from tests.integration.chaos.history import Fault
from tests.integration.chaos.storm import Storm, find_master, wait_until_in_step

SCRIPTS_IN_CONTAINER = "/opt/appliance/appliance/queue/scripts"
LONG_STEPS = 60
PATIENCE_SECONDS = 40.0
SUBMITTED_WHILE_PARTED = 30

FENCES = {
    "passing.lua": (r"^(local function owns\(.*\))$", r"\1 do return true, 'running', true end"),
    "beat.lua": (r"^if .* then return 'fenced' end$", ""),
    "committing.lua": (r"^ +if .* then return .*'fenced' end$", ""),
}

# From step 0, or the second attempt would be done before the first one is.
_NO_CHECKPOINTS = {"webui": {"APPLIANCE_CHECKPOINT_SECONDS": "0"}}


def sound() -> Options:
    return Options(environment=_NO_CHECKPOINTS, gpus_per_host=(1, 1, 1))


def fencing_off(folder: Path) -> Options:
    """Whoever asks is taken for the holder of the job."""
    mounts = {}
    for name, (fence, nothing) in FENCES.items():
        source = (Path(scripts.__file__).parent / name).read_text()
        text, found = re.subn(fence, nothing, source, flags=re.MULTILINE)
        if not found:
            raise RuntimeError(f"{fence!r} is not in {name}; find what fences there now, and switch it off")
        broken = folder / name
        broken.write_text(text)
        mounts[f"{SCRIPTS_IN_CONTAINER}/{name}"] = broken
    return Options(environment=_NO_CHECKPOINTS, mounts={"api": mounts, "agent": mounts}, gpus_per_host=(1, 1, 1))


def wait_off() -> Options:
    return Options(environment={"api": {"APPLIANCE_REDIS_REPLICAS": "0"}}, gpus_per_host=(1, 1, 1))


async def a_zombie_commits(storm: Storm) -> None:
    """An agent stands still until its job runs elsewhere and its own webui has finished; then it goes on."""
    job = await _submit_long(storm)
    first = await _holder(storm, job)
    await asyncio.sleep(0.5)
    start, thaw = time.monotonic(), await asyncio.to_thread(freeze, storm.cluster, first.agent)
    try:
        second = await _holder(storm, job, other_than=first)
        await _until(lambda: _is_idle(first), f"the webui of {first.name} has finished")
        assert storm.watcher.holders.get(second.name) == job, "the second attempt was over too early"
    finally:
        await asyncio.to_thread(thaw)
        storm.history.add(Fault("agent frozen", first.name, start, time.monotonic(), job))


async def the_old_master_acknowledges(storm: Storm) -> None:
    """The master is parted from its replicas, and users on its side go on submitting."""
    master = await find_master(storm.cluster)
    url, chance = storm.cluster.apis[master], random.Random("parted")
    start, rejoin = time.monotonic(), await asyncio.to_thread(part, storm.cluster, master)
    try:
        body = {"prompt": "a boat", "width": 64, "height": 64, "frames": 8, "steps": 2}
        for _ in range(SUBMITTED_WHILE_PARTED):
            key = f"parted-{chance.getrandbits(64):x}"
            await storm.users.try_submit("ada", key, "plain", body, url)
            if time.monotonic() - start > 6:
                break
        await _until(lambda: _is_elsewhere(storm.cluster, master), "another master is elected")
    finally:
        await asyncio.to_thread(rejoin)
        storm.history.add(Fault("Redis master partitioned", master, start, time.monotonic()))
    await wait_until_in_step(storm.cluster)


# --- steps -------------------------------------------------------------------------------------------------------


async def _submit_long(storm: Storm) -> str:
    body = {"prompt": "a boat", "width": 64, "height": 64, "frames": 8, "steps": LONG_STEPS}
    job = await storm.users.submit("ada", "long", "plain", body, random.Random("long"))
    assert job is not None, "no submission was accepted"
    return job


async def _holder(storm: Storm, job: str, other_than: Worker | None = None) -> Worker:
    def holders() -> list[Worker]:
        seen = storm.watcher.jobs.get(job)
        owner = seen.facts.get("owner") if seen and seen.facts.get("state") == "running" else None
        return [worker for name, worker in storm.cluster.workers.items() if name == owner and worker != other_than]

    async def held() -> bool:
        return bool(holders())

    await _until(held, f"{job} is run by a worker other than {other_than.name if other_than else None}")
    return holders()[0]


async def _is_idle(worker: Worker) -> bool:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        answer = await http.get(f"http://{worker.machine.address}:{WEBUI_PORT}/internal/ping")
    return not answer.json().get("busy")


async def _is_elsewhere(cluster: ChaosCluster, old: str) -> bool:
    return await find_master(cluster) != old


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not await _true(condition):
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {what}")
        await asyncio.sleep(0.1)


async def _true(condition: Callable[[], Awaitable[bool]]) -> bool:
    """What cannot be told now may be told in a moment."""
    try:
        return await condition()
    except (QueueError, httpx.HTTPError, ValueError):
        return False
