"""Each alias has the very samples of its canonical twin."""

from __future__ import annotations

from appliance.exporter.aliases import Aliases
from appliance.exporter.gpu.readings import GpuFacts, GpuReading, GpuState
from appliance.exporter.gpu.samples import gpu_families
from appliance.exporter.queue_samples import job_families
from appliance.queue.counts import parse_counts


def test_utilization_in_percent() -> None:
    gpus = [
        GpuState(str(number), f"u{number}", True, GpuFacts("x", "", ""), GpuReading(utilization_ratio=ratio))
        for number, ratio in enumerate((0.0, 0.37, 1.0, None))
    ]
    families = list(gpu_families(gpus))
    twin = next(family for family in families if family.name == "nvidia_smi_utilization_gpu_ratio")
    (alias,) = Aliases().families(families, 0)
    assert (alias.name, alias.type) == ("nvidia_smi_utilization_gpu_percent", "gauge")
    assert [(s.labels, s.value) for s in alias.samples] == [(s.labels, 100 * s.value) for s in twin.samples]
    assert len(alias.samples) == 3


def test_failure_reasons() -> None:
    families = list(job_families(parse_counts({"failed\tOOM\t64x64": 3, "wait\t64x64\t1": 4}), ()))
    twin = next(family for family in families if family.name == "animatediff_job_failures")
    (alias,) = Aliases().families(families, 0)
    assert (alias.name, alias.type) == ("animatediff_job_failure_reason", "gauge")
    assert [(s.labels, s.value) for s in alias.samples] == [(s.labels, s.value) for s in twin.samples]
    assert {sample.name for sample in alias.samples} == {"animatediff_job_failure_reason"}


def test_what_is_not_there_has_no_alias() -> None:
    assert [family for family in Aliases().families([], 0) if family.samples] == []
