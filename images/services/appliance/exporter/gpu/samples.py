"""GPUs → metrics 1 to 13. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import Metric

from appliance.exporter.families import counter, gauge
from appliance.exporter.gpu.readings import GpuReading, GpuState

_GAUGES: tuple[tuple[str, str, Callable[[GpuReading], float | None]], ...] = (
    (
        "nvidia_smi_utilization_gpu_ratio",
        "Share of the time that kernels ran",
        lambda r: r.utilization_ratio,
    ),
    (
        "nvidia_smi_utilization_memory_ratio",
        "Share of the time that the GPU's memory was read or written",
        lambda r: r.memory_utilization_ratio,
    ),
    (
        "nvidia_smi_memory_used_bytes",
        "GPU memory that processes have allocated, without what the driver keeps for itself",
        lambda r: r.memory_used_bytes,
    ),
    ("nvidia_smi_memory_total_bytes", "GPU memory in all", lambda r: r.memory_total_bytes),
    ("nvidia_smi_temperature_gpu_celsius", "Temperature of the GPU", lambda r: r.temperature_celsius),
    ("nvidia_smi_power_draw_watts", "What the GPU draws now", lambda r: r.power_watts),
    ("nvidia_smi_clocks_current_sm_clock_hz", "Clock of the streaming multiprocessors", lambda r: r.sm_clock_hz),
)


def gpu_families(gpus: Sequence[GpuState]) -> Iterator[Metric]:
    known = [(_labels(gpu), gpu) for gpu in gpus if gpu.up is not None]
    yield gauge(
        "nvidia_smi_gpu_up",
        "1 while the GPU answers; 0 when it is lost or hangs, and nothing else is known of it",
        ((labels, float(gpu.up or 0)) for labels, gpu in known),
    )
    read = [(labels, gpu.reading) for labels, gpu in known if gpu.reading is not None]
    for name, help_, value_of in _GAUGES:
        values = ((labels, value_of(reading)) for labels, reading in read)
        yield gauge(name, help_, ((labels, value) for labels, value in values if value is not None))
    yield counter(
        "nvidia_smi_energy_joules_total",
        "What the GPU has drawn since the driver was loaded",
        ((labels, r.energy_joules) for labels, r in read if r.energy_joules is not None),
    )
    yield gauge(
        "nvidia_smi_clocks_throttled",
        "1 while the clocks are held down for this reason; neither idleness nor a wanted clock is one",
        (({**labels, "reason": reason}, float(is_so)) for labels, r in read for reason, is_so in r.throttled.items()),
    )
    yield counter(
        "nvidia_smi_ecc_errors_total",
        "Memory errors over the GPU's life",
        (({**labels, "type": kind}, count) for labels, r in read for kind, count in r.ecc_errors.items()),
    )
    yield counter(
        "nvidia_smi_xid_errors_total",
        "The driver's error reports (XIDs) since the exporter began to listen; a lost GPU keeps its own",
        (({**labels, "xid": xid}, count) for labels, gpu in known for xid, count in (gpu.xids or {}).items()),
    )
    yield gauge(
        "nvidia_smi_gpu_info",
        "Always 1: what the GPU is",
        (({**labels, **vars(gpu.facts)}, 1.0) for labels, gpu in known if gpu.facts is not None),
    )


def _labels(gpu: GpuState) -> dict[str, str]:
    return {"gpu_id": gpu.gpu_id, "uuid": gpu.uuid}
