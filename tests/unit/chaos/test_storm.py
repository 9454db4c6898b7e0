"""The storm keeps within what the queue promises to forgive, also where it cannot see who holds what."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from tests.integration.chaos.cluster import ChaosCluster, Worker
from tests.integration.chaos.history import History
from tests.integration.chaos.storm import BLIND_SECONDS, Storm, Weather
from tests.integration.chaos.watcher import SIGHT_SECONDS, JobNow

HOLDER, OTHER = (cast(Worker, SimpleNamespace(name=name)) for name in ("gpu-01/0", "gpu-02/0"))


@pytest.fixture
async def storm() -> AsyncIterator[Storm]:
    cluster = SimpleNamespace(link=lambda: SimpleNamespace(close=_nothing), workers={HOLDER.name: HOLDER})
    storm = Storm(cast(ChaosCluster, cluster), History(), Weather("any"))
    yield storm
    await storm.users.close()


async def _nothing() -> None: ...


@pytest.mark.parametrize(
    ("blind", "lost", "errors", "state", "kind", "spared"),
    [
        pytest.param(False, 1, 0, "running", "plain", set(), id="one lost worker of three"),
        pytest.param(False, 2, 0, "running", "plain", {HOLDER.name}, id="the next would be one too many"),
        pytest.param(False, 0, 2, "running", "plain", {HOLDER.name}, id="so would an error"),
        pytest.param(True, 0, 0, "running", "plain", set(), id="blind, and nobody has lost anything"),
        pytest.param(True, 1, 0, "running", "plain", {HOLDER.name, OTHER.name}, id="blind: it may have lost another"),
        pytest.param(True, 0, 1, "queued", "plain", {HOLDER.name, OTHER.name}, id="blind: wherever it is by now"),
        pytest.param(True, 2, 0, "done", "plain", set(), id="blind, but it has ended"),
        pytest.param(True, 2, 0, "running", "poison", set(), id="blind, and only a harmful one has"),
    ],
)
async def test_a_worker_is_spared(
    storm: Storm, blind: bool, lost: int, errors: int, state: str, kind: str, spared: set[str]
) -> None:
    workers = {f"w{number}": 1 for number in range(lost)}
    facts = {"state": state, "errs": str(errors), "crash_workers": json.dumps(workers)}
    storm.watcher.jobs["job"] = JobNow(facts)
    storm.watcher.holders[HOLDER.name] = "job"
    storm.watcher.last_look -= 2 * SIGHT_SECONDS * blind
    if kind == "plain":
        storm.users.plain.add("job")
    assert {worker.name for worker in (HOLDER, OTHER) if storm._spared(worker)} == spared


@pytest.mark.timeout(10)
async def test_a_storm_that_stays_blind_gives_up(storm: Storm) -> None:
    storm.users.plain.add("job")
    storm.watcher.jobs["job"] = JobNow({"state": "running", "crash_workers": json.dumps({"w0": 1})})
    storm.watcher.last_look -= BLIND_SECONDS
    with pytest.raises(RuntimeError, match="look into Redis"):
        await storm._victim(random.Random(0))


async def test_why_the_watcher_ended_is_told(storm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise KeyError("state")

    async def all_of_it() -> None:
        async with storm.watched():
            await asyncio.sleep(0.1)
            raise RuntimeError("blind")

    monkeypatch.setattr(storm.watcher, "run", broken)
    with pytest.raises(KeyError):
        await all_of_it()
