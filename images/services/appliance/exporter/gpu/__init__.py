"""The host's GPUs through NVML, read by threads that may hang without anybody waiting for them."""

from appliance.exporter.gpu.readings import GpuState
from appliance.exporter.gpu.watch import GpuWatch

__all__ = ["GpuState", "GpuWatch"]
