"""Nodes that answer their pings but fail their visitors, told by what became of real requests. Pure.

As Envoy's outlier detection: so many failures in a row end a node's turn, for longer each time. It comes back on trial,
with a small share of the sessions and only such requests as the gateway asks elsewhere when they fail, so that nobody
notices a trial that ends badly, until one request has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from appliance.controller.policy import Rules


@dataclass(frozen=True)
class Tally:
    """How many requests to a node have succeeded and failed since its gateway started."""

    passed: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Record:
    """One node's tally at the last look and what follows from it; moments are monotonic seconds."""

    tally: Tally
    streak: int = 0
    """Failures since the last success."""
    out_until: float = 0.0
    trial_until: float = 0.0
    times: int = 0
    """How often it was out without a success in between."""

    def is_out(self, now: float) -> bool:
        return now < self.out_until

    def is_on_trial(self, now: float) -> bool:
        return self.out_until <= now < self.trial_until


Records = Mapping[str, Record]


def look(records: Records, tallies: Mapping[str, Tally], now: float, rules: Rules) -> dict[str, Record]:
    """The records by node after one more look at the tallies. A node without a tally keeps its record; one whose tally
    shrank is counted by a new gateway, which knows nothing of before."""
    seen = dict(records)
    for name, tally in tallies.items():
        seen[name] = _count(seen[name], tally, now) if name in seen else Record(tally)
    for name in sorted(seen, key=lambda one: -seen[one].streak):
        if _is_due(name, seen, now, rules):
            seen[name] = _put_out(seen[name], now, rules)
    return seen


def _count(record: Record, tally: Tally, now: float) -> Record:
    passed, failed = tally.passed - record.tally.passed, tally.failed - record.tally.failed
    if passed < 0 or failed < 0:
        return replace(record, tally=tally, streak=0)
    if record.is_out(now):  # what comes now began before
        return replace(record, tally=tally)
    if passed:  # in which order is not known: in doubt for the node
        return Record(tally)
    return replace(record, tally=tally, streak=record.streak + failed)


def _is_due(name: str, records: Records, now: float, rules: Rules) -> bool:
    """Where all fail it is the requests; and never more than half of the nodes are out for this."""
    record = records[name]
    limit = rules.trial_failures if record.is_on_trial(now) else rules.failures_in_a_row
    if record.is_out(now) or record.streak < limit:
        return False
    others = [other for key, other in records.items() if key != name]
    out = sum(other.is_out(now) for other in others)
    sound = any(other.streak == 0 and not other.is_out(now) for other in others)
    return sound and out < max(1, len(records) // 2)


def _put_out(record: Record, now: float, rules: Rules) -> Record:
    seconds = min(rules.longest_hold_seconds, rules.first_out_seconds * 2 ** min(record.times, 16))
    until = now + seconds
    return replace(record, streak=0, out_until=until, trial_until=until + rules.trial_seconds, times=record.times + 1)


def describe(record: Record, rules: Rules) -> str:
    limit = rules.failures_in_a_row if record.times < 2 else rules.trial_failures
    return f"its last {limit} requests or more failed while other nodes serve theirs"
