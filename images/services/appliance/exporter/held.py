"""Counts that come from Redis never go back: Prometheus takes that for a restart, and counts all of them anew. Pure.

A failover may lose the last moment's writes, and with them the ends of some attempts. Those are told to the queue again
and counted again, so until then the highest count seen so far is right. What stays lower for longer was really lost
(an older backup put back): then counting goes on from where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_SECONDS = 120.0


@dataclass
class _Held:
    told: int = 0
    lost: int = 0
    """What Redis has lost for good, and is added to what it says."""
    lower_since: float | None = None


class HeldCounts:
    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def update(self, fields: Mapping[str, int], now: float) -> dict[str, int]:
        """What is to be told, by the fields that Redis has now or has had; `now` in monotonic seconds."""
        for name in fields:
            self._held.setdefault(name, _Held())
        return {name: self._next(held, fields.get(name, 0), now) for name, held in self._held.items()}

    def _next(self, held: _Held, value: int, now: float) -> int:
        if value + held.lost >= held.told:
            held.told, held.lower_since = value + held.lost, None
            return held.told
        if held.lower_since is None:
            held.lower_since = now
        if now - held.lower_since >= PATIENCE_SECONDS:
            held.lost, held.lower_since = held.told - value, None
        return held.told
