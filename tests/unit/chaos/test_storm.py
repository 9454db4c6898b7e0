"""The storm keeps within what the queue promises to forgive, also where it cannot see who holds what."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

import pytest

from tests.integration.chaos.cluster import ChaosCluster, Worker
from tests.integration.chaos.history import History
from tests.integration.chaos.storm import Storm, Weather
from tests.integration.chaos.watcher import SIGHT_SECONDS, JobNow

HOLDER, OTHER = (cast(Worker, SimpleNamespace(name=name)) for name in ("gpu-01/0", "gpu-02/0"))


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
async def test_a_worker_is_spared(blind: bool, lost: int, errors: int, state: str, kind: str, spared: set[str]) -> None:
    storm = Storm(cast(ChaosCluster, SimpleNamespace(link=lambda: None)), History(), Weather("any"))
    workers = {f"w{number}": 1 for number in range(lost)}
    facts = {"state": state, "errs": str(errors), "crash_workers": json.dumps(workers)}
    storm.watcher.jobs["job"] = JobNow(facts)
    storm.watcher.holders[HOLDER.name] = "job"
    storm.watcher.last_look -= 2 * SIGHT_SECONDS * blind
    if kind == "plain":
        storm.users.plain.add("job")
    assert {worker.name for worker in (HOLDER, OTHER) if storm._spared(worker)} == spared
    await storm.users.close()
