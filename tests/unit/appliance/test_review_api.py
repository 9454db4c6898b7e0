"""What a client can send or a broken disk can do to the API."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from redis.exceptions import MasterDownError, ResponseError, TryAgainError

from appliance.api import results, sdapi_calls
from appliance.api.events import known_position
from appliance.api.problems import Problem
from appliance.api.sdapi_calls import CHUNK_BYTES, Answer, Calls
from appliance.api.views import estimate_eta, seconds_until_room
from appliance.disk import Disk, Threads
from appliance.errors import StorageError
from appliance.job import JobRequest, JobState
from appliance.queue import JobRecord
from appliance.queue.types import QueueStats
from appliance.redis_link import is_outage
from sdapi import generation
from sdapi.errors import ApiError
from sdapi.generation import Generation
from sdapi.offer import Offer
from sdapi.options import Chosen

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

    services = SimpleNamespace(disk=Disk(Path("/nonexistent"), 0.2, Threads(1)))

    monkeypatch.setattr(results, "find_job", find)
    monkeypatch.setattr(results, "locate", hang)
    begin = time.monotonic()
    asking = asyncio.create_task(results.read_result(services, None, "x"))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert time.monotonic() - begin < 0.15
    with pytest.raises(Problem) as caught:
        await asking
    assert (caught.value.status, caught.value.slug) == (503, "storage-unavailable")


async def test_who_leaves_a_hung_disk_does_not_hold_up_the_api(tmp_path: Path) -> None:
    """A pipe that nobody writes into, in the place of a file whose next bytes never come."""
    os.mkfifo(tmp_path / "result.mp4")
    pipe = os.open(tmp_path / "result.mp4", os.O_RDWR)

    async def send() -> None:
        answer = Answer(b"[", (tmp_path / "result.mp4",), b"]", 100)
        async for _ in answer.chunks(Disk(tmp_path, 30.0, Threads(1))):
            pass

    thaw = threading.Timer(3.0, os.write, (pipe, b"x" * CHUNK_BYTES))
    try:
        sending = asyncio.create_task(send())
        await asyncio.sleep(0.2)
        begin = time.monotonic()
        thaw.start()
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        assert time.monotonic() - begin < 1
    finally:
        thaw.cancel()
        os.close(pipe)


async def test_an_answer_whose_disk_hangs_breaks_off(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.mp4")
    answer = Answer(b"[", (tmp_path / "result.mp4",), b"]", 100)
    with pytest.raises(StorageError, match=r"no answer for 0\.1 s"):
        _ = [piece async for piece in answer.chunks(Disk(tmp_path, 0.1, Threads(1)))]


async def test_an_answer_is_its_files_in_base64(tmp_path: Path) -> None:
    content = [os.urandom(CHUNK_BYTES + 1), b""]
    for name, data in zip("ab", content, strict=True):
        (tmp_path / name).write_bytes(data)
    answer = Answer(b"[", (tmp_path / "a", tmp_path / "b"), b"]", 0)
    text = b"".join([piece async for piece in answer.chunks(Disk(tmp_path, 5.0, Threads(1)))])
    assert [base64.b64decode(one) for one in json.loads(text)] == content


@pytest.mark.parametrize(
    ("named", "stopping", "kept"), [(True, True, True), (True, False, False), (False, True, False)]
)
async def test_what_a_named_call_asked_for_outlives_its_api(
    monkeypatch: pytest.MonkeyPatch, named: bool, stopping: bool, kept: bool
) -> None:
    """Its client has just lost its connection, most likely to the same restart, and asks again elsewhere."""
    monkeypatch.setattr(sdapi_calls, "RETURN_SECONDS", 0)
    given_up = []

    async def give_up(_: Calls, __: object, note: object) -> None:
        given_up.append(note)

    async def work(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Calls, "_give_up", give_up)
    monkeypatch.setattr(Calls, "_work", work)
    services: Any = SimpleNamespace(stopping=asyncio.Event())
    if stopping:
        services.stopping.set()
    leaving = asyncio.get_running_loop().create_future()
    leaving.set_result(None)
    call: Any = SimpleNamespace(is_named=named, caller="ada", note="n")
    with pytest.raises(ApiError):
        await Calls(services, SimpleNamespace())._made(call, leaving)  # type: ignore[arg-type]
    assert given_up == ([] if kept else ["n"])


async def test_the_seeds_told_are_those_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {}

    async def wait(*_: object) -> list[JobRecord]:
        return [record(state=JobState.CANCELLED), record(state=JobState.DONE)]

    async def collect(_: Calls, made: Generation, jobs: list[JobRecord]) -> None:
        kept.update(seeds=made.seeds, jobs=[job.state for job in jobs])

    monkeypatch.setattr(Calls, "_wait", wait)
    monkeypatch.setattr(Calls, "_collect", collect)
    both = generation.read("txt2img", {"seed": 100, "n_iter": 2}, Offer(), Chosen(), 7)
    call: Any = SimpleNamespace(generation=both, note=SimpleNamespace(jobs=("a", "b")))
    await Calls(SimpleNamespace(), SimpleNamespace())._work(call)  # type: ignore[arg-type]
    assert kept == {"seeds": [101], "jobs": [JobState.DONE]}


async def test_a_disk_that_says_what_is_wrong_is_one_that_fails(tmp_path: Path) -> None:
    """An NFS export that was made anew, for one: no defect of ours, which would end the agent."""

    def stale(_: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "/srv/jobs/secret")

    with pytest.raises(StorageError, match=r"^Stale file handle$"):
        await Disk(tmp_path, 5.0).do(stale)


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
