"""NVML through NVIDIA's own bindings (nvidia-ml-py): one GPU's readings as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pynvml

from appliance.exporter.gpu.door import Door
from appliance.exporter.gpu.readings import GpuFacts, GpuReading

T = TypeVar("T")
Handle = Any
NvmlError = pynvml.NVMLError

# The whole GPU is gone, or NVML is; any other error speaks of one reading only.
_LOST = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
# An idle GPU and one whose clocks somebody has set are slower on purpose.
_THROTTLES = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
}
_ECC_TYPES = {
    "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
    "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
}


class LostGpuError(Exception):
    """The GPU does not answer any more."""


@dataclass(frozen=True)
class Found:
    index: int
    uuid: str
    handle: Handle


@dataclass(frozen=True)
class Listing:
    """The GPUs that NVML has now. `silent`: how many more it counts that do not even tell their UUID."""

    found: list[Found]
    silent: int = 0

    @property
    def is_whole(self) -> bool:
        """What is not in it is not in the host. A driver that knows none at all may have lost them."""
        return bool(self.found) and not self.silent


def make_door() -> Door:
    return Door(pynvml.nvmlInit, pynvml.nvmlShutdown)


def find_gpus() -> Listing:
    """All that answer to their index, and how many do not."""
    found, count = [], pynvml.nvmlDeviceGetCount()
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(Found(index, pynvml.nvmlDeviceGetUUID(handle), handle))
        except NvmlError as error:
            if error.value == pynvml.NVML_ERROR_UNINITIALIZED:
                raise
    return Listing(found, silent=count - len(found))


def read_facts(handle: Handle) -> GpuFacts:
    pci = _told(lambda: pynvml.nvmlDeviceGetPciInfo(handle).busId)
    return GpuFacts(
        name=_told(lambda: pynvml.nvmlDeviceGetName(handle)) or "unknown",
        driver_version=_told(pynvml.nvmlSystemGetDriverVersion) or "unknown",
        pci_bus_id=pci.decode(errors="replace") if isinstance(pci, bytes) else pci or "",
    )


def read_gpu(handle: Handle) -> GpuReading:
    """Raises LostGpuError where the GPU is gone, or tells nothing at all."""
    used, total = _memory(handle)
    rates = _told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
    milliwatts = _told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    millijoules = _told(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    megahertz = _told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
    reading = GpuReading(
        utilization_ratio=None if rates is None else rates.gpu / 100,
        memory_utilization_ratio=None if rates is None else rates.memory / 100,
        memory_used_bytes=used,
        memory_total_bytes=total,
        temperature_celsius=_temperature(handle),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        energy_joules=None if millijoules is None else millijoules / 1000,
        sm_clock_hz=None if megahertz is None else megahertz * 1e6,
        throttled=_throttled(handle),
        ecc_errors=_ecc_errors(handle),
    )
    if reading.is_empty:
        raise LostGpuError
    return reading


def _told(ask: Callable[[], T]) -> T | None:
    """None where NVML does not tell it. Raises LostGpuError where nothing more is to be expected."""
    try:
        return ask()
    except NvmlError as error:
        if error.value in _LOST:
            raise LostGpuError(str(error)) from error
        return None


def _memory(handle: Handle) -> tuple[int | None, int | None]:
    """What processes have allocated. The older call counts what the driver keeps for itself as used, too."""
    memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
    if memory is None:
        memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    return (None, None) if memory is None else (memory.used, memory.total)


def _temperature(handle: Handle) -> int | None:
    """The newer call first: drivers are losing the older one."""
    celsius: int | None = _told(lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
    if celsius is None:
        celsius = _told(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    return celsius


def _throttled(handle: Handle) -> dict[str, bool]:
    current = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if current is None:
        current = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return {} if current is None else {reason: bool(current & bit) for reason, bit in _THROTTLES.items()}


def _ecc_errors(handle: Handle) -> dict[str, int]:
    """Over the GPU's life: those since the driver was loaded would begin anew with it."""
    ask = partial(pynvml.nvmlDeviceGetTotalEccErrors, handle)
    counts = {name: _told(partial(ask, kind, pynvml.NVML_AGGREGATE_ECC)) for name, kind in _ECC_TYPES.items()}
    return {name: count for name, count in counts.items() if count is not None}
