"""When to ask the directory. Pure: moments are seconds since the epoch.

Directories count what fails (Let's Encrypt: 5 failed validations per account, name and hour), so at most
`MOST_FAILURES` tries fail within a day, however often the container is started anew.
"""

from __future__ import annotations

from collections.abc import Sequence

EVERY_SECONDS = 12 * 3600.0
JITTER_SECONDS = 3600.0
"""So that the gateways of the world do not all ask at the same minute."""
DELAYS_SECONDS = (600.0, 3600.0, 6 * 3600.0)
"""After the first failure, the second, and any further one."""
MOST_FAILURES = 4
DAY_SECONDS = 86_400.0


def after_success(now: float, chance: float) -> float:
    """`chance`: 0 to 1, drawn by the caller."""
    return now + EVERY_SECONDS + (2 * chance - 1) * JITTER_SECONDS


def after_failures(now: float, failures: Sequence[float]) -> float:
    """When the next try may be. `failures`: the moments of the tries since the last success, in order."""
    recent = recent_failures(now, failures)
    if not recent:
        return now
    earliest = recent[-1] + DELAYS_SECONDS[min(len(recent), len(DELAYS_SECONDS)) - 1]
    if len(recent) >= MOST_FAILURES:
        earliest = max(earliest, recent[-MOST_FAILURES] + DAY_SECONDS)
    return max(now, earliest)


def recent_failures(now: float, failures: Sequence[float]) -> list[float]:
    """Those that still count. One in the future comes from a clock that was wrong."""
    return sorted(moment for moment in failures if now - DAY_SECONDS < moment <= now)
