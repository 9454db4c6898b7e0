"""Process trees by /proc: what a worker and its children have used, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, tuple[int, float]]:
    """pid → parent, CPU seconds with those of the children it has waited for."""
    rows = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            rows[int(folder.name)] = (int(fields[1]), TICK * sum(map(int, fields[11:15])))
    return rows


def _tree(root: int, stats: dict[int, tuple[int, float]]) -> list[int]:
    found = [root] if root in stats else []
    for pid in found:
        found.extend(child for child, (parent, _) in stats.items() if parent == pid)
    return found


def tree(root: int) -> list[int]:
    return _tree(root, _stats())


def cpu_seconds(roots: list[int]) -> float:
    stats = _stats()
    return sum(stats[pid][1] for root in roots for pid in _tree(root, stats))


def kill_tree(root: int) -> None:
    """kill -9 of everything at once, as when a container is killed."""
    for pid in tree(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
