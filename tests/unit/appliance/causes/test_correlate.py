"""Planted causes are found, guilt by association is not, and where there is no cause none is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.causes import correlate as rules
from appliance.causes.outcome import JobOutcomes
from appliance.job import Reason, new_job_id
from tests.unit.appliance.causes.synthetic import (
    ASSERT,
    GPUS,
    LARGE,
    OOM,
    SMALL,
    jobs_with_a_cause,
    jobs_without_a_cause,
    kind,
    outcome,
    study,
)

PLANTED = ("context_batch_size", "above 16")
RATES = (0.02, 0.05, 0.1, 0.2)


def found_of(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    report = study(jobs_with_a_cause(seed, 5000))
    planted, confounded = kind(report, "OOM"), kind(report, "CUDA_ERROR")
    if not confounded.findings:
        assert confounded.verdict == "no correlation"
    pairs = [[(one.parameter, one.bucket) for one in found.findings] for found in (planted, confounded)]
    return pairs[0], pairs[1], planted.suggestion or ""


def measure_planted(seeds: range) -> None:
    missed, more, confounded, advised = 0, 0, 0, 0
    for seed in seeds:
        planted, guilty, suggestion = found_of(seed)
        missed += PLANTED not in planted
        more += bool(set(planted) - {PLANTED})
        confounded += bool(guilty)
        advised += suggestion.startswith("ask for a context_batch_size of 16 at most on GPUs with less than 40 GB")
    count = len(seeds)
    print(
        f"\n{count} x 5000 attempts: planted cause missed {missed / count:.1%}, another beside it {more / count:.1%}, "
        f"right suggestion {advised / count:.1%}, confounded one reported {confounded / count:.1%}"
    )
    assert missed == 0
    assert advised == count
    assert more + confounded <= 0.01 * count


def measure_nothing(seeds: range) -> None:
    for rate in RATES:
        wrong = sum(any(one.findings for one in study(jobs_without_a_cause(seed, 1000, rate)).kinds) for seed in seeds)
        print(f"\n{len(seeds)} x 1000 attempts, {rate:.0%} fail without a cause: {wrong / len(seeds):.2%} report one")
        assert wrong <= 0.01 * len(seeds)


def test_the_planted_cause_is_found_and_the_confounded_one_is_not() -> None:
    measure_planted(range(3))


def test_without_a_cause_nothing_is_found() -> None:
    measure_nothing(range(8))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_same_with_many_seeds() -> None:
    measure_planted(range(1000, 1100))
    measure_nothing(range(1000, 1500))


def test_without_strata_the_confounded_one_would_be_found() -> None:
    """Else the test above would say nothing."""
    one_model = [
        replace(job, attempts=tuple(replace(one, gpu="x", worker="x") for one in job.attempts))
        for job in jobs_with_a_cause(0, 5000)
    ]
    assert ("steps", "above 30") in [
        (one.parameter, one.bucket) for one in kind(study(one_model), "CUDA_ERROR").findings
    ]


def jobs(count: int, asked: dict[str, object], reason: Reason | None = None, gpu: str = GPUS[0]) -> list[JobOutcomes]:
    end = outcome(gpu, "a/0", reason, ASSERT if reason else "")
    return [JobOutcomes(new_job_id(), asked, (end,)) for _ in range(count)]


def test_four_failures_are_too_few_and_are_told_so() -> None:
    bad, good = {"steps": 50}, {"steps": 20}
    four = study([*jobs(4, bad, Reason.CUDA_ERROR), *jobs(16, bad), *jobs(400, good)])
    assert kind(four, "CUDA_ERROR").findings == ()
    assert "too few to compare" in kind(four, "CUDA_ERROR").verdict
    eight = study([*jobs(8, bad, Reason.CUDA_ERROR), *jobs(12, bad), *jobs(400, good)])
    (finding,) = kind(eight, "CUDA_ERROR").findings
    assert (finding.parameter, finding.bucket, finding.failures, finding.attempts) == ("steps", "above 20", 8, 20)
    nineteen = study([*jobs(8, bad, Reason.CUDA_ERROR), *jobs(11, bad), *jobs(400, good)])
    assert kind(nineteen, "CUDA_ERROR").verdict == "no correlation"


def test_a_clear_but_small_difference_is_not_reported() -> None:
    """Certainly more, but perhaps only a quarter more: nothing that somebody should act upon."""
    bad, good = {"steps": 50}, {"steps": 20}
    data = [*jobs(80, bad, Reason.CUDA_ERROR), *jobs(420, bad), *jobs(250, good, Reason.CUDA_ERROR), *jobs(2250, good)]
    assert kind(study(data), "CUDA_ERROR").verdict == "no correlation"


def test_a_gpu_model_that_was_asked_for_nothing_else_says_nothing() -> None:
    """Of nine failures with 50 steps, five are of a model that has had no others: four remain, which is too few."""
    data = [*jobs(5, {"steps": 50}, Reason.CUDA_ERROR, GPUS[1]), *jobs(4, {"steps": 50}, Reason.CUDA_ERROR)]
    data += [*jobs(16, {"steps": 50}), *jobs(400, {"steps": 20})]
    assert kind(study(data), "CUDA_ERROR").verdict == "no correlation"


def test_one_jobs_many_attempts_are_one_voice() -> None:
    """Two unlucky jobs that failed five times each are two cases, not ten."""
    again = [outcome(GPUS[0], "a/0", Reason.CUDA_ERROR, ASSERT)] * 5
    unlucky = [JobOutcomes(new_job_id(), {"steps": 50}, tuple(again)) for _ in range(2)]
    found = kind(study([*unlucky, *jobs(40, {"steps": 50}), *jobs(400, {"steps": 20})]), "CUDA_ERROR")
    assert (found.failures, found.jobs, found.findings) == (10, 2, ())


def test_what_cannot_be_told_apart_is_told_together() -> None:
    both = {"steps": 50, "sampler": "LCM"}
    data = [*jobs(30, both, Reason.CUDA_ERROR), *jobs(70, both), *jobs(400, {"steps": 20, "sampler": "DDIM"})]
    (finding,) = kind(study(data), "CUDA_ERROR").findings
    assert (finding.parameter, finding.bucket, finding.alike) == ("steps", "above 20", ("sampler LCM",))
    assert "the jobs cannot tell" in kind(study(data), "CUDA_ERROR").verdict


def test_what_the_cause_explains_is_not_a_second_cause() -> None:
    """LCM is used with 50 steps mostly, but fails with them only."""
    data = [*jobs(40, {"steps": 50, "sampler": "LCM"}, Reason.CUDA_ERROR), *jobs(60, {"steps": 50, "sampler": "LCM"})]
    data += [
        *jobs(16, {"steps": 50, "sampler": "DDIM"}, Reason.CUDA_ERROR),
        *jobs(24, {"steps": 50, "sampler": "DDIM"}),
    ]
    data += [*jobs(100, {"steps": 20, "sampler": "LCM"}), *jobs(400, {"steps": 20, "sampler": "DDIM"})]
    (finding,) = kind(study(data), "CUDA_ERROR").findings
    assert (finding.parameter, finding.bucket, finding.alike) == ("steps", "above 20", ())


def test_one_sick_worker_among_its_equals_is_found() -> None:
    sick = [outcome(GPUS[0], "gpu-01/0", Reason.GPU_LOST, "NVRM: Xid (PCI:0000:3b:00): 79")] * 12
    well = [outcome(GPUS[0], f"gpu-01/{number % 4}") for number in range(400)]
    data = [JobOutcomes(new_job_id(), {"steps": 20}, (end,)) for end in (*sick, *well)]
    found = kind(study(data), "GPU_LOST")
    assert [(one.parameter, one.bucket) for one in found.findings] == [("worker", "gpu-01/0")]
    assert (found.suggestion or "").startswith("gpu-01/0 fails like this far more often")


def test_workers_of_unknown_gpus_are_not_taken_for_equals() -> None:
    """A foreign A1111 does not say what it runs on: one of two may be the sick model, and gets the jobs of 50 steps."""

    def jobs_of(worker: str, steps: int, failed: int, count: int) -> list[JobOutcomes]:
        ends = [outcome("", worker, Reason.CUDA_ERROR, ASSERT)] * failed + [outcome("", worker)] * (count - failed)
        return [JobOutcomes(new_job_id(), {"steps": steps}, (end,)) for end in ends]

    data = [
        *jobs_of("a/0", 50, 90, 300),
        *jobs_of("a/0", 20, 10, 33),
        *jobs_of("b/0", 50, 0, 33),
        *jobs_of("b/0", 20, 2, 300),
    ]
    assert kind(study(data), "CUDA_ERROR").verdict == "no correlation"
    known = [replace(job, attempts=(replace(job.attempts[0], gpu=GPUS[0], worker="x"),)) for job in data]
    assert [one.parameter for one in kind(study(known), "CUDA_ERROR").findings] == ["steps"]


def test_nothing_seen_safe_leaves_what_is_known() -> None:
    """Five attempts with 16 frames together, all well, are not enough to call 16 safe."""
    data = [
        *jobs(40, {"frames": 32, "context_batch_size": 24}, Reason.OOM),
        *jobs(20, {"frames": 32, "context_batch_size": 24}),
    ]
    data += [*jobs(5, {"frames": 32, "context_batch_size": 16}), *jobs(19, {"frames": 32, "context_batch_size": 8})]
    suggestion = kind(study(data), "OOM").suggestion
    assert suggestion == "ask for a context_batch_size of 12 at most on GPUs with less than 40 GB"


def test_a_value_that_fails_less_is_not_safe() -> None:
    """16 frames fail every fifth time, 8 never: 8 is what to ask for."""

    def together(frames: int, failed: int, count: int) -> list[JobOutcomes]:
        asked: dict[str, object] = {"frames": 32, "context_batch_size": frames}
        return [*jobs(failed, asked, Reason.OOM), *jobs(count - failed, asked)]

    found = kind(study([*together(24, 90, 100), *together(16, 20, 100), *together(8, 0, 100)]), "OOM")
    assert (found.findings[0].bucket, found.findings[0].parameter) == ("above 16", "context_batch_size")
    assert (found.suggestion or "").startswith("ask for a context_batch_size of 8 at most")


def test_the_attempt_that_failed_counts_not_the_one_that_was_made_cheaper() -> None:
    """All those jobs ended well, with 12 frames together; it is 24 that they failed with."""
    ends = (outcome(SMALL[0], "a/0", Reason.OOM, OOM), outcome(SMALL[0], "a/0", context=12))
    rescued = [JobOutcomes(new_job_id(), {"frames": 32, "context_batch_size": 24}, ends) for _ in range(40)]
    data = [*rescued, *jobs(200, {"frames": 32, "context_batch_size": 16}, gpu=SMALL[0])]
    found = kind(study(data), "OOM")
    assert [(one.parameter, one.bucket) for one in found.findings] == [PLANTED]
    assert (found.findings[0].failures, found.findings[0].attempts) == (40, 40)
    assert found.findings[0].other_attempts == 200, "their second attempts are no others"
    assert (found.suggestion or "").startswith("ask for a context_batch_size of 16 at most")


def test_a_large_gpu_gets_advice_of_its_own() -> None:
    data = [*jobs(40, {"frames": 64, "context_batch_size": 64}, Reason.OOM, LARGE[1])]
    data += jobs(200, {"frames": 64, "context_batch_size": 32}, gpu=LARGE[1])
    suggestion = kind(study(data), "OOM").suggestion or ""
    assert suggestion.startswith("ask for a context_batch_size of 32 at most (seen safe: 200 attempts")


def test_more_gpu_models_than_can_be_counted_are_counted_together() -> None:
    data = [job for number in range(300) for job in jobs(1, {"steps": 20}, Reason.OOM, f"GPU {number}, 1 MiB")]
    counts = kind(study(data), "OOM").gpus
    assert sum(one.failures for one in counts) == 300
    assert len(counts) == 65
    assert all(one.failures <= one.attempts for one in counts)


def test_the_time_may_be_over() -> None:
    report = study(jobs_with_a_cause(0, 400), seconds=0.0)
    assert {one.verdict.split(":")[0] for one in report.kinds} <= {"not compared", "too few to compare"}
    assert sum(one.failures for one in report.kinds) == report.looked_at.failures > 0


def test_the_promised_thresholds() -> None:
    assert (rules.LEAST_FAILURES, rules.LEAST_ATTEMPTS, rules.LEAST_LIFT) == (5, 20, 1.3)
    assert (rules.LEAST_RATIO, rules.MOST_FALSE) == (1.5, 0.01)
