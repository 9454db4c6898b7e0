"""What is known of a GPU, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count

READ_SECONDS = 5.0
"""From one reading to the next."""
FRESH_SECONDS = 3 * READ_SECONDS
HUNG_SECONDS = 5.0


@dataclass(frozen=True)
class GpuReading:
    """None, or nothing in a mapping: this GPU or its driver does not tell."""

    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    sm_clock_hz: float | None = None
    throttled: Mapping[str, bool] = field(default_factory=dict)
    ecc_errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return all(getattr(self, part.name) in (None, {}) for part in fields(self))


@dataclass(frozen=True)
class GpuFacts:
    """What does not change while the driver is loaded."""

    name: str
    driver_version: str
    pci_bus_id: str


@dataclass(frozen=True)
class Seen:
    """A reading and when (monotonic seconds) it ended."""

    at: float
    facts: GpuFacts
    reading: GpuReading


@dataclass(frozen=True)
class Track:
    """What a GPU's thread has done; `began` and `ended` are those of its latest try. Times are monotonic seconds."""

    known_since: float
    began: float = 0.0
    ended: float = 0.0
    is_lost: bool = False
    """The latest try that ended found no GPU."""
    seen: Seen | None = None

    def is_hung(self, now: float) -> bool:
        return self.began > self.ended and now - self.began >= HUNG_SECONDS

    def is_up(self, now: float) -> bool | None:
        """None: too early to say."""
        if self.is_hung(now) or self.is_lost:
            return False
        if self.seen is None:
            return None if now - self.known_since < HUNG_SECONDS else False
        return now - self.seen.at <= FRESH_SECONDS


@dataclass(frozen=True)
class GpuState:
    """One GPU now. `up` None: not known yet, or a worker's that this process has never met though NVML has all that it
    counts. `xids`: how often each XID has come since this process began; None where the driver tells of none."""

    gpu_id: str
    uuid: str
    up: bool | None
    facts: GpuFacts | None
    reading: GpuReading | None
    xids: Mapping[str, int] | None = None


def gpu_id_of(uuid: str, index: int, workers: Sequence[str], taken: Collection[str]) -> str:
    """The number of the worker that has it, so that `<node_name>/<gpu_id>` is that worker's name. A GPU that no worker
    has is `nvml-<index>`, which is no worker's number; indices move when a GPU is lost, so one that is taken by another
    GPU is not given again."""
    known = [worker.casefold() for worker in workers]
    if uuid.casefold() in known:
        return str(known.index(uuid.casefold()))
    return next(gpu_id for number in count(index) if (gpu_id := f"nvml-{number}") not in taken)
