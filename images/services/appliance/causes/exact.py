"""What counts in tables say about a risk. Pure.

A table is one 2 x 2 table per stratum: who is exposed and who is not, and how many of each failed. Within a stratum
everybody is alike but for the exposure, so that a stratum with another risk cannot pass for an effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

LEAST_P: Final = 1e-15
"""Smaller ones are not told apart."""
_NEGLIGIBLE: Final = 1e-20
_Z_95: Final = 1.959964


@dataclass(frozen=True)
class Stratum:
    exposed: int
    exposed_failed: int
    others: int
    others_failed: int

    @property
    def size(self) -> int:
        return self.exposed + self.others

    @property
    def failed(self) -> int:
        return self.exposed_failed + self.others_failed

    @property
    def expected(self) -> float:
        """Failures among the exposed, were the exposure without effect."""
        return self.exposed * self.failed / self.size

    @property
    def variance(self) -> float:
        """Of that number, with all margins given (hypergeometric)."""
        if self.size < 2:
            return 0.0
        share = self.exposed * self.others / self.size**2
        return share * self.failed * (self.size - self.failed) / (self.size - 1)


Table = Sequence[Stratum]


def lift(table: Table) -> float:
    """How many times more of the exposed failed than their strata would have let expect."""
    expected = sum(stratum.expected for stratum in table)
    return sum(stratum.exposed_failed for stratum in table) / expected if expected else 0.0


def surprise(table: Table) -> float:
    """By how many standard deviations (Mantel and Haenszel, 1959)."""
    variance = sum(stratum.variance for stratum in table)
    excess = sum(stratum.exposed_failed - stratum.expected for stratum in table)
    return excess / math.sqrt(variance) if variance else 0.0


def risk_ratio(table: Table) -> tuple[float, float]:
    """Mantel and Haenszel's risk ratio over all strata and the lower end of its 95 % interval (Greenland and Robins,
    1985). Where nobody failed without the exposure, half a failure is added to the largest stratum's others."""
    if table and not any(stratum.others_failed for stratum in table):
        return _ratio(table, half=max(range(len(table)), key=lambda index: table[index].others))
    return _ratio(table)


def _ratio(table: Table, half: int = -1) -> tuple[float, float]:
    exposed_side = others_side = spread = 0.0
    for index, one in enumerate(table):
        others_failed = one.others_failed + (0.5 if index == half else 0.0)
        exposed_side += one.exposed_failed * one.others / one.size
        others_side += others_failed * one.exposed / one.size
        failed = one.exposed_failed + others_failed
        spread += (failed * one.exposed * one.others - one.exposed_failed * others_failed * one.size) / one.size**2
    if not exposed_side or not others_side:
        return 0.0, 0.0
    ratio = exposed_side / others_side
    deviation = math.sqrt(max(spread, 0.0) / (exposed_side * others_side))
    return ratio, ratio * math.exp(-_Z_95 * deviation)


def fisher(table: Table) -> float:
    """One-sided exact p-value: as many failures among the exposed or more, with every stratum's margins given."""
    first, weights = 0, [1.0]
    for stratum in table:
        low, more = _hypergeometric(stratum)
        first, weights = _trim(first + low, _convolve(weights, more))
    observed = sum(stratum.exposed_failed for stratum in table)
    tail = math.fsum(weights[max(0, observed - first) :])
    return min(1.0, max(LEAST_P, tail / math.fsum(weights)))


def _hypergeometric(stratum: Stratum) -> tuple[int, list[float]]:
    """The least count that is not negligible, and the weights from there on, by ratios from the most likely one: no
    factorials, nothing that overflows."""
    exposed, failed, size = stratum.exposed, stratum.failed, stratum.size
    low, high = max(0, failed - stratum.others), min(exposed, failed)
    mode = min(high, max(low, (exposed + 1) * (failed + 1) // (size + 2)))

    def up(count: int) -> float:
        return (exposed - count) * (failed - count) / ((count + 1) * (stratum.others - failed + count + 1))

    above = _walk(up(count) for count in range(mode, high))
    below = _walk(1 / up(count - 1) for count in range(mode, low, -1))
    return mode - len(below), [*reversed(below), 1.0, *above]


def _walk(ratios: Iterable[float]) -> list[float]:
    weights = []
    for weight in accumulate(ratios, lambda before, ratio: before * ratio, initial=1.0):
        if weight < _NEGLIGIBLE:
            break
        weights.append(weight)
    return weights[1:]


def _convolve(one: list[float], other: list[float]) -> list[float]:
    together = [0.0] * (len(one) + len(other) - 1)
    for index, weight in enumerate(one):
        for offset, more in enumerate(other):
            together[index + offset] += weight * more
    return together


def _trim(first: int, weights: list[float]) -> tuple[int, list[float]]:
    least = max(weights) * _NEGLIGIBLE
    kept = [index for index, weight in enumerate(weights) if weight >= least]
    return first + kept[0], weights[kept[0] : kept[-1] + 1]


def false_discovery(p_values: Sequence[float], tests: int) -> list[float]:
    """Benjamini and Hochberg's q of each p-value, in the same order; `tests` counts those too that are not among them,
    whose p-values are taken as 1."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index], reverse=True)
    q_values, least = [1.0] * len(p_values), 1.0
    for rank, index in zip(range(len(order), 0, -1), order, strict=True):
        least = min(least, p_values[index] * tests / rank)
        q_values[index] = least
    return q_values
