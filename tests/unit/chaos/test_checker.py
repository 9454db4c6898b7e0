"""Hand-written histories: each thing that may not happen is found, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.chaos import checker
from tests.integration.chaos.checker import check
from tests.integration.chaos.history import (
    Cancel,
    CommitFile,
    Event,
    Fault,
    Final,
    History,
    Leftover,
    Read,
    Record,
    Submit,
    load,
)
from tests.integration.chaos.watcher import GAP, merge

JOB = "01-job"
SUBMIT = Submit("key", "ada", "plain", "api-1", 1.0, 1.1, "accepted", 202, JOB)
LOST_TRY = replace(SUBMIT, start=0.5, end=0.9, outcome="unknown", status=0, job="")
QUEUED = Event(JOB, "1-0", "queued", 0, "", "")
RUNNING = Event(JOB, "2-0", "running", 10, "a/0", "")
DONE = Event(JOB, "9-0", "done", 10, "a/0", "")
COMMIT = CommitFile(JOB, 10, "a/0", "sum", whole=True)
FINAL = Final(JOB, "done", 10, "sum", "", "", 1, 0)
SAW_DONE = Read(JOB, "api-1", 9.0, 9.1, "done", 10, "sum")
CLEAN: tuple[Record, ...] = (LOST_TRY, SUBMIT, QUEUED, RUNNING, DONE, COMMIT, FINAL, SAW_DONE)

REQUEUED = Event(JOB, "3-0", "queued", 10, "a/0", "WORKER_LOST")
SECOND = Event(JOB, "4-0", "running", 20, "b/0", "")
SECOND_DONE = Event(JOB, "9-0", "done", 20, "b/0", "")
CANCELLED = Event(JOB, "5-0", "cancelled", 0, "", "CANCELLED")
CANCEL = Cancel(JOB, "waiting", "api-1", 4.0, 4.1, 200, "cancelled")
ENDED_CANCELLED = replace(FINAL, state="cancelled", result="")


def kinds(*records: Record) -> set[str]:
    return {violation.kind for violation in check(records)}


def without(*left_out: Record) -> tuple[Record, ...]:
    return tuple(record for record in CLEAN if record not in left_out)


def test_a_clean_history_passes() -> None:
    assert check(CLEAN) == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, REQUEUED, SECOND, SECOND_DONE, COMMIT, replace(FINAL, fence=20), SAW_DONE),
            id="the second attempt adopts what the first one committed on storage",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, REQUEUED, CANCELLED, CANCEL, ENDED_CANCELLED, COMMIT),
            id="a zombie leaves a COMMIT that nobody is shown",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, CANCELLED, replace(CANCEL, state="running"), ENDED_CANCELLED),
            id="cancelled while running",
        ),
        pytest.param((*CLEAN, replace(CANCEL, status=409, state="")), id="a cancel that came too late"),
        pytest.param((*without(QUEUED, RUNNING),), id="a stream of which the beginning has expired"),
        pytest.param(
            (*without(RUNNING), Event(JOB, "1-0", checker.GAP, 0, "", "")), id="a stream that has expired in the middle"
        ),
        pytest.param(
            (replace(SUBMIT, kind="poison"), QUEUED, RUNNING, replace(DONE, type="dead"), replace(FINAL, state="dead")),
            id="poison ends dead",
        ),
        pytest.param((replace(SUBMIT, outcome="unknown", job=""),), id="what nobody acknowledged may be gone"),
        pytest.param((*CLEAN, Fault("agent killed", "a/0", 1, 2, JOB)), id="faults are not violations"),
    ],
)
def test_what_is_allowed(records: tuple[Record, ...]) -> None:
    assert check(records) == []


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param((SUBMIT,), {checker.LOST}, id="Redis has forgotten an acknowledged job"),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, replace(FINAL, state="running", result="")), {checker.LOST}, id="it never ends"
        ),
        pytest.param(without(COMMIT), {checker.LOST}, id="done without COMMIT"),
        pytest.param((*without(COMMIT), replace(COMMIT, whole=False)), {checker.LOST}, id="done without its files"),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, CANCELLED, SAW_DONE, replace(CANCEL, state="running"), ENDED_CANCELLED),
            {checker.LOST},
            id="a result that was shown is gone",
        ),
        pytest.param(
            (*CLEAN, replace(DONE, entry="10-0")),
            {checker.TWO_COMMITS, checker.FENCED_COMMIT},
            id="committed twice by one attempt",
        ),
        pytest.param((*CLEAN, replace(SAW_DONE, result="other")), {checker.TWO_COMMITS}, id="another result was shown"),
        pytest.param(
            (*without(COMMIT), replace(COMMIT, result="other")),
            {checker.TWO_COMMITS},
            id="storage and Redis name different results",
        ),
        pytest.param((*CLEAN, CANCEL), {checker.COMMIT_AFTER_CANCEL}, id="done after the cancel was confirmed"),
        pytest.param(
            (*CLEAN, replace(CANCEL, state="running"), replace(SAW_DONE, state="cancelled", result="", end=5.0)),
            {checker.COMMIT_AFTER_CANCEL},
            id="confirmed by a read only",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, CANCELLED, DONE, CANCEL, COMMIT, FINAL),
            {checker.COMMIT_AFTER_CANCEL, checker.FENCED_COMMIT},
            id="the queue itself revived it",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, REQUEUED, SECOND, DONE, COMMIT, replace(FINAL, fence=20)),
            {checker.FENCED_COMMIT},
            id="a zombie commits while another attempt runs",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, REQUEUED, DONE, COMMIT, FINAL),
            {checker.FENCED_COMMIT},
            id="a zombie commits while the job waits",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, REQUEUED, replace(SECOND, fence=9), replace(SECOND_DONE, fence=9), COMMIT, FINAL),
            {checker.FENCED_COMMIT},
            id="fences go backwards",
        ),
        pytest.param(
            (SUBMIT, QUEUED, RUNNING, replace(DONE, type="dead"), replace(FINAL, state="dead", result="")),
            {checker.INNOCENT},
            id="an innocent job is dead",
        ),
        pytest.param((SUBMIT, QUEUED, CANCELLED, ENDED_CANCELLED), {checker.UNASKED}, id="nobody had cancelled it"),
        pytest.param(
            (*CLEAN, replace(SUBMIT, job="02-job"), replace(FINAL, job="02-job"), replace(COMMIT, job="02-job")),
            {checker.DUPLICATED},
            id="one key, two jobs",
        ),
        pytest.param((*CLEAN, Leftover("{q}:lease", JOB)), {checker.LEAK}, id="a lease is left"),
    ],
)
def test_what_is_found(records: tuple[Record, ...], expected: set[str]) -> None:
    assert kinds(*records) == expected


def test_events_are_read_in_the_order_of_their_entries() -> None:
    tenth = replace(DONE, entry="10-0")
    assert check((tenth, *without(DONE))) == []


def test_a_history_outlives_its_process(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for record in (*CLEAN, CANCEL, Leftover("{q}:run", "1-0"), Fault("agent killed", "a/0", 1, 2, JOB)):
        history.add(record)
    history.close()
    assert load(tmp_path / "history.jsonl") == history.records


def entries(*ids: str) -> list[tuple[str, dict[str, str]]]:
    return [(entry, {"type": "queued", "data": "{}"}) for entry in ids]


def test_an_expired_stream_is_remembered_and_an_undone_one_is_not() -> None:
    assert merge(entries("1-0", "2-0"), []) == entries("1-0", "2-0")
    assert merge(entries("1-0", "2-0"), entries("5-0")) == [*entries("1-0", "2-0"), ("2-0", GAP), *entries("5-0")]
    assert merge(entries("1-0", "2-0", "3-0"), entries("1-0", "2-0", "4-0")) == entries("1-0", "2-0", "4-0")
