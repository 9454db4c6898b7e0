"""What was loaded before, kept in main memory while there is room: going back to it needs no disk and no conversion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

GIB = 1 << 30
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
SHARE = 0.5  # of the container's memory: the rest is for what is being made


class Sized(Protocol):
    @property
    def size(self) -> int: ...


Loaded = TypeVar("Loaded", bound=Sized)


class Shelf:
    """The least recently used goes first. Whoever still uses what went keeps it alive, and nothing breaks."""

    def __init__(self, budget: int, count: int) -> None:
        """`budget` in bytes, `count` in models; either may be 0."""
        self._budget = budget
        self._count = count
        self._items: OrderedDict[str, Any] = OrderedDict()

    def take(self, key: str, size: int, load: Callable[[], Loaded]) -> tuple[Loaded, bool]:
        """The model and whether it was there. `size` is the loaded size's estimate, to make room before."""
        if key in self._items:
            self._items.move_to_end(key)
            kept: Loaded = self._items[key]
            return kept, True
        self._make_room(size)
        loaded = load()
        self._items[key] = loaded
        self._make_room(0)
        return loaded, False

    def _make_room(self, size: int) -> None:
        while self._items and (
            len(self._items) > self._count or sum(item.size for item in self._items.values()) + size > self._budget
        ):
            self._items.popitem(last=False)


def budget_bytes(gib: float, limit: Path = CONTAINER_LIMIT) -> int:
    """The budget asked for, but never more than a share of what the container may use."""
    try:
        allowed = int(limit.read_text())
    except (OSError, ValueError):  # no container, or one without a limit, which says `max`
        return int(gib * GIB)
    return min(int(gib * GIB), int(allowed * SHARE))
