"""What a new plan would do to the queue that the rendered folders know of."""

from __future__ import annotations

from pathlib import Path

from generator.errors import UserError
from generator.planned import Plan

REDIS, SENTINEL = "config/redis/redis.conf", "config/redis/sentinel.conf"


def refuse_to_lose_the_queue(plan: Plan, out: Path) -> str | None:
    """What to tell of a queue that stays behind; raises UserError where a queue of one host grows, and another host
    would be the first master: an empty one.

    Once there are Sentinels they know the master, whatever is listed first."""
    before = [folder.parents[2].name for folder in out.glob(f"*/{REDIS}")]
    if len(before) != 1 or (out / before[0] / SENTINEL).exists():
        return None
    (holder,) = before
    now = [host.name for host in plan.hosts if host.queue]
    if holder not in now:
        return (
            f"the queue was on {holder} alone, and what waits in it stays there. To take it along, before the next "
            "`up`: `render` with the former cluster.yaml, `backup`, then `render` and `restore` with this one"
        )
    if now[0] != holder:
        raise UserError(
            f"the queue is on {holder} alone, and one of more hosts begins on the first that has the role queue, which "
            f"would be {now[0]}: list {holder} before {', '.join(now[: now.index(holder)])} in cluster.yaml"
        )
    return None
