"""The storm keeps within what the queue promises to forgive, also where it cannot see who holds what."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from appliance.errors import QueueUnavailable
from tests.integration.chaos import storm as chaos_storm
from tests.integration.chaos.cluster import ChaosCluster, Worker
from tests.integration.chaos.history import History
from tests.integration.chaos.storm import BLIND_SECONDS, UNSEEN_SECONDS, Storm, Weather
from tests.integration.chaos.watcher import SIGHT_SECONDS, JobNow

HOLDER, OTHER = (cast(Worker, SimpleNamespace(name=name)) for name in ("gpu-01/0", "gpu-02/0"))


@pytest.fixture
async def storm() -> AsyncIterator[Storm]:
    cluster = SimpleNamespace(
        link=lambda: SimpleNamespace(close=_nothing, run=_no_master), workers={HOLDER.name: HOLDER}
    )
    storm = Storm(cast(ChaosCluster, cluster), History(), Weather("any"))
    yield storm
    await storm.users.close()


async def _nothing() -> None: ...


async def _no_master(_: object) -> None:
    raise QueueUnavailable("no master")


BOTH = {HOLDER.name, OTHER.name}
THIRD, FOURTH = "gpu-03/0", "gpu-03/1"


@pytest.mark.parametrize(
    ("blind", "lost", "errors", "state", "kind", "spared"),
    [
        pytest.param(False, 0, 0, "running", "plain", set(), id="nothing lost"),
        pytest.param(False, 1, 0, "running", "plain", set(), id="one lost worker of three"),
        pytest.param(False, 2, 0, "running", "plain", BOTH, id="the next would be one too many"),
        pytest.param(False, 0, 2, "running", "plain", BOTH, id="so would an error, whoever is next"),
        pytest.param(False, 2, 0, "running", "poison", set(), id="a harmful one"),
        pytest.param(False, 2, 0, "done", "plain", set(), id="over"),
        pytest.param(True, 0, 0, "running", "plain", set(), id="blind, and nobody has lost anything"),
        pytest.param(True, 1, 0, "running", "plain", BOTH, id="blind: it may have lost another"),
        pytest.param(True, 0, 1, "queued", "plain", BOTH, id="blind: wherever it is by now"),
        pytest.param(True, 2, 0, "done", "plain", set(), id="blind, but it has ended"),
        pytest.param(True, 2, 0, "running", "poison", set(), id="blind, and only a harmful one has"),
    ],
)
async def test_a_worker_is_spared(
    storm: Storm, blind: bool, lost: int, errors: int, state: str, kind: str, spared: set[str]
) -> None:
    hold(storm, lost, errors, state, kind)
    storm.watcher.last_look -= 2 * SIGHT_SECONDS * blind
    assert spared_by(storm) == spared


@pytest.mark.parametrize(
    ("lost", "held", "busy", "cut_off", "ended", "spared"),
    [
        pytest.param(0, True, {THIRD}, set(), {}, set(), id="nothing lost, one in trouble"),
        pytest.param(1, True, {THIRD}, set(), {}, {HOLDER.name}, id="the one in trouble could be the next"),
        pytest.param(1, True, set(), {THIRD, FOURTH}, {}, {HOLDER.name}, id="so could one behind a partition"),
        pytest.param(1, False, set(), set(), {}, set(), id="waits: one more is forgiven"),
        pytest.param(1, False, {THIRD}, set(), {}, BOTH, id="waits: one after the other could have it"),
        pytest.param(1, True, set(), set(), {HOLDER.name: 0.0}, {OTHER.name}, id="perhaps lost, not known yet"),
        pytest.param(1, True, set(), set(), {HOLDER.name: 2 * UNSEEN_SECONDS}, set(), id="not lost"),
        pytest.param(1, True, {HOLDER.name}, set(), {}, {OTHER.name}, id="its worker is in trouble"),
    ],
)
async def test_no_job_can_meet_more_than_is_forgiven(
    storm: Storm,
    lost: int,
    held: bool,
    busy: set[str],
    cut_off: set[str],
    ended: dict[str, float],
    spared: set[str],
) -> None:
    hold(storm, lost, 0, "running" if held else "queued", "plain")
    if not held:
        storm.watcher.holders.clear()
    storm.busy_workers, storm.cut_off = busy, cut_off
    storm.struck_at = {name: time.monotonic() - ago for name, ago in ended.items()}
    assert spared_by(storm) == spared


def hold(storm: Storm, lost: int, errors: int, state: str, kind: str) -> None:
    workers = {f"w{number}": 1 for number in range(lost)}
    facts = {"state": state, "errs": str(errors), "crash_workers": json.dumps(workers)}
    storm.watcher.jobs["job"] = JobNow(facts)
    storm.watcher.holders[HOLDER.name] = "job"
    if kind == "plain":
        storm.users.plain.add("job")


def spared_by(storm: Storm) -> set[str]:
    free = [worker for worker in (HOLDER, OTHER) if worker.name not in storm.busy_workers]
    return {worker.name for worker in free if storm._spared(worker, storm._tried())}


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


async def test_a_partition_does_not_wait_for_ever(storm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_storm, "SETTLE_SECONDS", 0.1)
    hold(storm, 1, 0, "running", "plain")
    await storm._until_nobody_is_near_the_end()
    hold(storm, 2, 0, "running", "plain")
    with pytest.raises(RuntimeError, match="last attempt"):
        await asyncio.wait_for(storm._until_nobody_is_near_the_end(), 5)
