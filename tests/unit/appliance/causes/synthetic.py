"""Made-up clusters whose jobs fail for known reasons."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from appliance.causes.outcome import JobOutcomes, Outcome
from appliance.causes.report import KindReport, Report, report_of
from appliance.causes.study import Budget, Study
from appliance.causes.suggest import knowledge
from appliance.job import Reason, new_job_id

NOW = 1_795_000_000.0
SMALL = ("NVIDIA GeForce RTX 4090, 24564 MiB", "NVIDIA GeForce RTX 3090, 24576 MiB")
LARGE = ("NVIDIA RTX A6000, 49140 MiB", "NVIDIA A100-SXM4-80GB, 81920 MiB")
GPUS = (*SMALL, *LARGE)
SICK = SMALL[1]
OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
ASSERT = "RuntimeError: CUDA error: device-side assert triggered"


def parameters(chance: random.Random, gpu: str) -> dict[str, Any]:
    """As jobs are: some parameters go together, and 50 steps are asked for mostly where the sick GPUs are."""
    size = chance.choice((256, 512, 512, 768))
    fine = chance.random() < (0.8 if gpu == SICK else 0.1)
    return {
        "frames": chance.choice((32, 32, 48, 64)),
        "context_batch_size": chance.choice((8, 12, 16, 24, 32)),
        "width": size,
        "height": chance.choice((size, 512)),
        "steps": 50 if fine else chance.choice((10, 20, 25, 30)),
        "cfg_scale": round(chance.uniform(1, 15), 2),
        "fps": chance.choice((8, 12, 24)),
        "clip_skip": chance.choice((1, 2)),
        "denoising_strength": 0.75,
        "sampler": chance.choice(("DDIM", "Euler a", "DPM++ 2M", "LCM")),
        "format": [chance.choice(("mp4", "gif", "webp"))],
        "model": chance.choice(("realistic", "toon", "dream", "sd15")),
        "motion_module": chance.choice(("mm_sd15_v3", "mm_sd15_v2")),
        "loras": chance.sample(("zoom-in", "pan-left", "film", "ink"), chance.choice((0, 0, 1, 2))),
    }


def outcome(gpu: str, worker: str, reason: Reason | None = None, message: str = "", **more: Any) -> Outcome:
    return Outcome(NOW, worker, gpu, more.pop("context", None), reason, message, **more)


def jobs_with_a_cause(seed: int, count: int) -> Iterator[JobOutcomes]:
    """Out of memory with more than 16 frames together on less than 40 GB. The sick GPUs fail whatever is asked of them,
    which makes 50 steps look guilty."""
    chance = random.Random(seed)
    for _ in range(count):
        gpu = chance.choice(GPUS)
        worker = f"gpu-0{1 + GPUS.index(gpu)}/{chance.randrange(4)}"
        asked = parameters(chance, gpu)
        attempts = [outcome(gpu, worker)]
        tight = gpu in SMALL and asked["context_batch_size"] > 16
        if chance.random() < (0.3 if tight else 0.004):
            attempts = [outcome(gpu, worker, Reason.OOM, OOM), outcome(gpu, worker, context=12)]
        elif chance.random() < (0.15 if gpu == SICK else 0.01):
            attempts = [outcome(gpu, worker, Reason.CUDA_ERROR, ASSERT), outcome(LARGE[0], "gpu-03/0")]
        yield JobOutcomes(new_job_id(), asked, tuple(attempts))


def jobs_without_a_cause(seed: int, count: int, rate: float = 0.05) -> Iterator[JobOutcomes]:
    """Each GPU model fails at a rate of its own, and nothing else makes a difference."""
    chance = random.Random(seed)
    rates = {gpu: rate * chance.choice((0.3, 1, 1, 3)) for gpu in GPUS}
    for _ in range(count):
        gpu = chance.choice(GPUS)
        worker = f"gpu-0{1 + GPUS.index(gpu)}/{chance.randrange(4)}"
        failed = chance.random() < rates[gpu]
        reason, message = chance.choice(((Reason.OOM, OOM), (Reason.CUDA_ERROR, ASSERT)))
        end = outcome(gpu, worker, reason, message) if failed else outcome(gpu, worker)
        yield JobOutcomes(new_job_id(), parameters(chance, gpu), (end,))


def study(jobs: Iterator[JobOutcomes] | list[JobOutcomes], seconds: float = 60.0) -> Report:
    made = Study(Budget(seconds))
    for job in jobs:
        made.add(job)
    return report_of(made, knowledge(), at=NOW, days=7, limit=None)


def kind(report: Report, reason: str) -> KindReport:
    (found,) = [one for one in report.kinds if one.reason == reason]
    return found
