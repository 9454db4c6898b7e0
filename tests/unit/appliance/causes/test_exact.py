"""The statistics against brute force, textbook values and simulation."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.causes.exact import (
    LEAST_P,
    Stratum,
    _hypergeometric,
    false_discovery,
    fisher,
    lift,
    risk_ratio,
    surprise,
)


@st.composite
def strata(draw: st.DrawFn) -> Stratum:
    exposed, others = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return Stratum(exposed, draw(st.integers(0, exposed)), others, draw(st.integers(0, others)))


def probability(stratum: Stratum, count: int) -> Fraction:
    """Of so many failures among the exposed, all margins given; counted out."""
    ways = math.comb(stratum.exposed, count) * math.comb(stratum.others, stratum.failed - count)
    return Fraction(ways, math.comb(stratum.size, stratum.failed))


def counted_out(table: list[Stratum]) -> float:
    observed = sum(one.exposed_failed for one in table)
    ranges = [range(max(0, one.failed - one.others), min(one.exposed, one.failed) + 1) for one in table]
    tail = Fraction(0)
    for counts in product(*ranges):
        if sum(counts) >= observed:
            tail += math.prod((probability(*pair) for pair in zip(table, counts, strict=True)), start=Fraction(1))
    return float(tail)


@settings(max_examples=150, deadline=None)
@given(st.lists(strata(), min_size=1, max_size=3))
def test_fisher_is_exact(table: list[Stratum]) -> None:
    assert fisher(table) == pytest.approx(max(LEAST_P, counted_out(table)), rel=1e-9)


def test_fisher_of_the_lady_tasting_tea() -> None:
    assert fisher([Stratum(4, 3, 4, 1)]) == pytest.approx(17 / 70)


def test_fisher_of_large_counts_is_quick_and_finite() -> None:
    assert fisher([Stratum(50_000, 5_000, 50_000, 5_000)] * 4) == pytest.approx(0.5, abs=0.01)
    assert fisher([Stratum(50_000, 9_000, 50_000, 1_000)]) == LEAST_P
    assert fisher([Stratum(50_000, 1_000, 50_000, 9_000)]) == 1
    assert fisher([]) == fisher([Stratum(10, 0, 10, 0)]) == fisher([Stratum(10, 10, 10, 10)]) == 1


def test_what_is_negligible_is_not_carried_along() -> None:
    """Of five thousand possible counts some hundred are ever seen; to fold all of them would take minutes."""
    first, weights = _hypergeometric(Stratum(50_000, 2_500, 50_000, 2_500))
    assert len(weights) < 800
    assert first + len(weights) // 2 == pytest.approx(2_500, abs=2)


def test_one_stratum_is_the_plain_risk_ratio() -> None:
    ratio, low = risk_ratio([Stratum(100, 30, 200, 15)])
    assert ratio == pytest.approx(4)
    # Katz: exp(ln 4 - 1.96 sqrt(1/30 - 1/100 + 1/15 - 1/200))
    assert low == pytest.approx(4 * math.exp(-1.959964 * math.sqrt(1 / 30 - 1 / 100 + 1 / 15 - 1 / 200)))
    assert lift([Stratum(100, 30, 200, 15)]) == pytest.approx(2)


def test_what_only_the_strata_explain_is_nothing() -> None:
    """Simpson's paradox: pooled, the exposed fail 8 times as often; within each stratum there is no difference."""
    table = [Stratum(900, 450, 100, 50), Stratum(100, 1, 900, 9)]
    pooled = [Stratum(1000, 451, 1000, 59)]
    assert risk_ratio(pooled)[0] > 7
    assert risk_ratio(table)[0] == pytest.approx(1)
    assert lift(table) == pytest.approx(1)
    assert surprise(table) == pytest.approx(0, abs=1e-9)


def test_where_nobody_else_failed_the_ratio_is_finite_and_careful() -> None:
    ratio, low = risk_ratio([Stratum(100, 5, 100, 0), Stratum(10, 0, 10, 0)])
    assert ratio == pytest.approx(10, rel=0.1)
    assert low < 1, "five of a hundred may be chance"
    assert risk_ratio([Stratum(100, 30, 100, 0)])[1] > 1.5
    assert risk_ratio([]) == risk_ratio([Stratum(5, 0, 5, 0)]) == (0, 0)


def test_the_lower_end_is_too_high_as_seldom_as_it_says() -> None:
    """Of a thousand worlds without an effect, about 25 have a 95 % interval that lies above 1."""
    chance, wrong, worlds = random.Random(4), 0, 1000
    for _ in range(worlds):
        table = []
        for rate in (0.02, 0.1, 0.3):
            exposed, others = chance.randrange(40, 200), chance.randrange(40, 200)
            failed = [sum(chance.random() < rate for _ in range(size)) for size in (exposed, others)]
            table.append(Stratum(exposed, failed[0], others, failed[1]))
        wrong += risk_ratio(table)[1] > 1
    print(f"\nlower end above 1 without an effect: {wrong / worlds:.1%}")
    assert wrong / worlds < 0.045


def test_false_discovery_of_a_textbook_example() -> None:
    """Benjamini and Hochberg's own example (1995): 15 tests, of which 4 are below 5 %."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p_values += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert sum(q < 0.05 for q in false_discovery(p_values, 15)) == 4
    few = false_discovery(p_values[:4], 15)
    assert few == pytest.approx(false_discovery(p_values, 15)[:4]), "those left out count as 1"
    assert false_discovery([0.5, 0.001], 4) == pytest.approx([1, 0.004])
    assert false_discovery([], 0) == []
