"""Attempts as bits: each bucket of a parameter is one large integer in which an attempt's bit says that it is in there.

Counting a hundred thousand attempts in two buckets is one `and` and one population count, some microseconds. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from appliance.causes.attempts import Attempts, mask_of
from appliance.causes.features import ASKED_NAMES, NUMBERS

MOST_CUTS: Final = 8
MOST_VALUES: Final = 20
LEAST_ATTEMPTS: Final = 20
"""In a bucket, for it to be looked at."""
Check = Callable[[], None]
"""Called now and then by what takes long; raises when its time is over."""


@dataclass(frozen=True)
class Bucket:
    """`value` is the bound of a range of numbers, or a name."""

    parameter: str
    kind: Literal["above", "at most", "is"]
    value: float | str
    members: int

    @property
    def text(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return value if self.kind == "is" else f"{self.kind} {value}"


def make_buckets(attempts: Attempts, check: Check = lambda: None) -> list[Bucket]:
    """Ranges between the values that occur (at most `MOST_CUTS` of each number, in both directions) and the most
    frequent names."""
    size, buckets = len(attempts), list[Bucket]()
    by_features = attempts.by_features()
    for index, parameter in enumerate(NUMBERS):
        check()
        numbers = [features.numbers[index] for features in by_features]
        buckets += _ranges(parameter, numbers, list(by_features.values()), size)
    for index, parameter in enumerate(ASKED_NAMES):
        check()
        names = [features.names[index] for features in by_features]
        buckets += _named(parameter, names, list(by_features.values()), size)
    check()
    by_worker = attempts.by_worker()
    workers = list(_named("worker", [(worker,) for worker in by_worker], list(by_worker.values()), size))
    hosts = _named("host", [(worker.rpartition("/")[0],) for worker in by_worker], list(by_worker.values()), size)
    alone = {worker.members for worker in workers}
    return [*buckets, *workers, *(host for host in hosts if host.members not in alone)]


def _ranges(
    parameter: str, values: Sequence[float | None], groups: Sequence[Sequence[int]], size: int
) -> Iterator[Bucket]:
    """`values` holds each group's value, `groups` the places of its attempts."""
    counts: Counter[float] = Counter()
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            counts[value] += len(group)
    cuts = _cuts(counts)
    inside: list[list[int]] = [[] for _ in range(len(cuts) + 1)]
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            inside[bisect_left(cuts, value)] += group
    masks = [mask_of(places, size) for places in inside]
    everyone = 0
    for mask in masks:
        everyone |= mask
    below = 0
    for cut, mask in zip(cuts, masks, strict=False):
        below |= mask
        yield Bucket(parameter, "above", float(cut), everyone & ~below)
        yield Bucket(parameter, "at most", float(cut), below)


def _cuts(counts: Counter[float]) -> list[float]:
    """Values to cut behind, so that the parts hold about equally many attempts where there are too many values."""
    values = sorted(counts)[:-1]
    if len(values) <= MOST_CUTS:
        return values
    share, seen, cuts = counts.total() / (MOST_CUTS + 1), 0, list[float]()
    for value in values:
        seen += counts[value]
        if seen >= share * (len(cuts) + 1):
            cuts.append(value)
    return cuts[:MOST_CUTS]


def _named(
    parameter: str, values: Sequence[Sequence[str]], groups: Sequence[Sequence[int]], size: int
) -> Iterator[Bucket]:
    counts: Counter[str] = Counter()
    for names, group in zip(values, groups, strict=True):
        for name in set(names) - {""}:
            counts[name] += len(group)
    frequent = {name for name, count in counts.most_common(MOST_VALUES) if count >= LEAST_ATTEMPTS}
    places: dict[str, list[int]] = {name: [] for name in sorted(frequent)}
    for names, group in zip(values, groups, strict=True):
        for name in frequent.intersection(names):
            places[name] += group
    for name, members in places.items():
        yield Bucket(parameter, "is", name, mask_of(members, size))
