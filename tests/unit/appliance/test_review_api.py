"""What a client can send or a broken disk can do to the API."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from redis.exceptions import MasterDownError, ResponseError, TryAgainError

from appliance.api import results
from appliance.api.events import known_position
from appliance.api.problems import Problem
from appliance.api.views import estimate_eta, seconds_until_room
from appliance.job import JobRequest, JobState
from appliance.queue import JobRecord
from appliance.queue.types import QueueStats
from appliance.redis_link import is_outage

LAST_OF_REDIS = 2**64 - 1


@pytest.mark.parametrize(
    "given",
    [f"{LAST_OF_REDIS + 1}-0", f"5-{LAST_OF_REDIS + 1}", f"{LAST_OF_REDIS}-{LAST_OF_REDIS}", "٣-٤", "1-", "1-2 ", None],
)
def test_a_position_that_redis_would_refuse_is_none_at_all(given: str | None) -> None:
    assert known_position(given) is None


@pytest.mark.parametrize("given", ["0-0", "1764000000000-12", f"{LAST_OF_REDIS}-0"])
def test_a_position_of_redis_is_kept(given: str) -> None:
    assert known_position(given) == given


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels > 1 else {}


def test_nested_metadata_is_kept() -> None:
    assert JobRequest.model_validate({"prompt": "x", "metadata": nested(100)}).canonical_json().count("{") == 101


@pytest.mark.parametrize("levels", [101, 260, 500])
def test_metadata_too_deep_for_the_serializer_is_refused(levels: int) -> None:
    with pytest.raises(ValidationError, match="nested too deeply"):
        JobRequest.model_validate({"prompt": "x", "metadata": nested(levels)})


@pytest.mark.parametrize("metadata", [{"a": "\ud800"}, {"\udfff": 1}, {"a": [["\ud83d"]]}])
def test_half_a_surrogate_pair_is_refused_in_metadata_too(metadata: dict[str, Any]) -> None:
    """The webui would refuse it: better now than after waiting for a GPU."""
    with pytest.raises(ValidationError, match="Unicode"):
        JobRequest.model_validate({"prompt": "x", "metadata": metadata})


@pytest.mark.parametrize(
    "error",
    [
        MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        TryAgainError("Multiple keys request during rehashing of slot"),
        ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    ],
)
def test_answers_that_time_heals_are_outages(error: Exception) -> None:
    assert is_outage(error)


def test_an_answer_that_time_does_not_heal_is_none() -> None:
    assert not is_outage(ResponseError("BUSYGROUP Consumer Group name already exists"))


async def test_a_hung_disk_holds_up_one_answer_and_not_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> None:
        time.sleep(0.6)

    async def find(*_: object) -> JobRecord:
        return JobRecord.parse({"id": "x", "user": "u", "state": "done", "prio": "normal", "created": "0"}, None)

    services = SimpleNamespace(settings=SimpleNamespace(jobs_dir=Path("/nonexistent")))

    monkeypatch.setattr(results, "find_job", find)
    monkeypatch.setattr(results, "locate", hang)
    monkeypatch.setattr(results, "STORAGE_SECONDS", 0.2)
    begin = time.monotonic()
    asking = asyncio.create_task(results.read_result(services, None, "x"))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert time.monotonic() - begin < 0.15
    with pytest.raises(Problem) as caught:
        await asking
    assert (caught.value.status, caught.value.slug) == (503, "storage-unavailable")


STATS = QueueStats(
    waiting=4,
    delayed=0,
    running=2,
    oldest_waiting_seconds=1,
    live_workers=2,
    submitted_total=9,
    done_total=3,
    dead_total=0,
    cancelled_total=0,
    average_run_ms=10_000,
    average_ratio=1.0,
    ratios={"512x512": 2.0},
)


def record(**changes: object) -> JobRecord:
    raw = {"id": "x", "user": "u", "state": "queued", "prio": "normal", "created": "0", "cost": "20000"}
    plain = JobRecord.parse(raw, None)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_eta_counts_rounds_of_all_workers_and_knows_the_resolution() -> None:
    assert estimate_eta(record(position=1, resolution="512x512"), STATS, 0) == 10 + 40
    assert estimate_eta(record(position=1, resolution="64x64"), STATS, 0) == 10 + 20
    assert estimate_eta(record(position=3), STATS, 0) == 20 + 20
    assert estimate_eta(record(position=1), replace(STATS, running=0), 0) == 20
    assert estimate_eta(record(position=1), replace(STATS, live_workers=0), 0) is None
    assert estimate_eta(record(position=1), replace(STATS, average_run_ms=0), 0) is None


def test_eta_of_a_resumed_job_counts_the_steps_of_this_attempt_only() -> None:
    running = record(state=JobState.RUNNING, started_at=100.0, step=30, total_steps=40, resumed_from=20)
    assert estimate_eta(running, STATS, 110.0) == 10.0
    assert estimate_eta(replace(running, step=20), STATS, 110.0) == 10.0  # by its cost: 20 s less the 10 it ran


@pytest.mark.parametrize(
    ("stats", "seconds"),
    [
        (None, 10),
        (replace(STATS, average_run_ms=0), 10),
        (STATS, 5),
        (replace(STATS, live_workers=30), 1),
        (replace(STATS, average_run_ms=3_600_000), 300),
    ],
)
def test_a_full_queue_names_the_time_until_the_next_job_ends(stats: QueueStats | None, seconds: int) -> None:
    assert seconds_until_room(stats) == seconds
