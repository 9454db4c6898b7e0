"""What is read from the queue's records, and that no record can spoil the rest."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from appliance.causes.features import NUMBERS, features_of
from appliance.causes.outcome import outcomes_of
from appliance.gpu import Gpu
from appliance.job import Reason
from appliance.queue.past import PastJob


def past(*history: dict[str, Any], **more: Any) -> PastJob:
    plain = PastJob("id", "done", 100.0, "", "", '{"steps":20}', json.dumps(list(history)))
    return PastJob(**{**vars(plain), **more})


def attempt(kind: str = "done", at: float = 50_000, **more: Any) -> dict[str, Any]:
    return {"fence": "1", "worker": "a/0", "kind": kind, "reason": None, "message": None, "at": at, **more}


def test_ends_that_speak_of_nobody_are_left_out() -> None:
    kinds = ("release", "refused", "cancelled", "error", "oom", "crash", "permanent", "done")
    job = outcomes_of(past(*(attempt(kind, reason=None if kind == "done" else "OOM") for kind in kinds)), 0)
    assert [one.reason for one in job.attempts] == [Reason.OOM] * 4 + [None]
    assert job.parameters == {"steps": 20}


def test_only_the_attempts_of_the_time_asked_for() -> None:
    assert len(outcomes_of(past(attempt(at=1000), attempt(at=50_000)), 10).attempts) == 1


def test_an_attempt_is_read_as_it_was_written() -> None:
    told = attempt("oom", reason="OOM", message="m", memory="context 12, vae tiling", gpu="RTX, 100 MiB", where="w:f")
    (one,) = outcomes_of(past(told), 0).attempts
    assert (one.at, one.worker, one.gpu, one.context) == (50.0, "a/0", "RTX, 100 MiB", 12)
    assert (one.reason, one.message, one.where) == (Reason.OOM, "m", "w:f")


def test_a_job_that_died_in_the_line_is_a_failure_too() -> None:
    late = {"state": "dead", "reason": "TIMEOUT", "message": "its deadline passed before a worker was free"}
    (one,) = outcomes_of(past(history="", **late), 0).attempts
    assert (one.reason, one.at, one.worker) == (Reason.TIMEOUT, 100.0, "")


@pytest.mark.parametrize(
    "history",
    ["", "{", "[" * 5000, "null", "7", '["x", 3, null]', '[{"kind": ["done"], "at": 1}]', '[{"kind": "done"}]',
     '[{"kind": "done", "at": true}]', '[{"kind": "done", "at": "x"}]'],
)  # fmt: skip
def test_odd_records_are_left_out(history: str) -> None:
    assert outcomes_of(past(history=history), 0).attempts == ()


def test_odd_words_within_a_record_count_as_nothing() -> None:
    odd = attempt("error", reason=["OOM"], message=7, memory={}, gpu=3, where=[], worker="w" * 5000)
    (one,) = outcomes_of(past(odd, parameters="[1]"), 0).attempts
    assert (one.reason, one.message, one.context, one.gpu, one.where) == (Reason.UNKNOWN, "", None, "", "")
    assert len(one.worker) == 128


def test_frames_together_are_what_the_engine_looks_at_at_once() -> None:
    def together(context: int | None = None, **asked: Any) -> float | None:
        return features_of(asked, context).numbers[NUMBERS.index("context_batch_size")]

    assert together(frames=32) == 32, "without a context, all"
    assert together(frames=32, context_batch_size=16) == together(frames=16, context_batch_size=24) == 16
    assert together(12, frames=32, context_batch_size=24) == 12
    assert together() is None


def test_numbers_that_are_none_and_names_without_end_count_as_not_set() -> None:
    odd = {"steps": "20", "fps": True, "width": math.nan, "height": 10**400, "cfg_scale": math.inf, "model": 3}
    features = features_of({**odd, "loras": ["x" * 500, 4, None] + ["y"] * 50, "closed_loop": True}, None)
    assert set(features.numbers) == {None}
    named = [name for names in features.names for name in names]
    assert len(named) < 10
    assert max(map(len, named)) == 100
    assert "true" in named
    assert features_of({"cfg_scale": 7.123456}, None).numbers[NUMBERS.index("cfg_scale")] == 7.12


def test_a_gpu_is_one_short_label() -> None:
    told = {"name": "NVIDIA A100-SXM4-80GB", "memory_total_mib": 81_920, "memory_used_mib": 5}
    gpu = Gpu.of_ping(told)
    assert gpu is not None
    assert gpu.label == "NVIDIA A100-SXM4-80GB, 81920 MiB"
    assert Gpu.parse(gpu.label) == gpu
    hostile = Gpu.of_ping({"name": "a\nb, 7 MiB\x1b" + "c" * 900, "memory_total_mib": 1})
    assert hostile is not None
    assert hostile.label.isprintable()
    assert len(hostile.label) <= 64
    assert Gpu.parse(hostile.label) == hostile


@pytest.mark.parametrize(("name", "memory"), [(None, 1), (7, 1), ("x", -1), ("x", "1"), (" \n", 1)])
def test_what_is_no_gpu_has_no_label(name: object, memory: object) -> None:
    assert Gpu.of_ping({"name": name, "memory_total_mib": memory}) is None
    assert Gpu.of_ping(None) is None


@pytest.mark.parametrize("label", ["", None, 7, "RTX", "RTX, MiB", ", 5 MiB", "RTX, 5 MiB\n"])
def test_what_is_no_label_is_no_gpu(label: object) -> None:
    assert Gpu.parse(label) is None
