"""What a container may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """At most."""

    cpus: float
    memory_mib: int
    pids: int

    @property
    def memory(self) -> str:
        return f"{self.memory_mib}m"

    @property
    def go_environment(self) -> dict[str, str]:
        """A Go program takes the whole machine for its own where it is not told of the container's limits."""
        return {"GOMAXPROCS": str(max(1, round(self.cpus))), "GOMEMLIMIT": f"{self.memory_mib * 9 // 10}MiB"}
