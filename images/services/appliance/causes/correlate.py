"""Which buckets of parameters failures have in common, beyond what chance and the GPU model explain. Pure.

A bucket is reported when, stratified by GPU model, at least 5 of at least 20 attempts in it failed in this way, at
least 1.3 times as many as expected, with a risk ratio that is above 1.5 with 97.5 % confidence, and a false discovery
rate below 1 % over all that was looked at. Of several that fit only those remain that the stronger ones do not explain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from appliance.causes import exact
from appliance.causes.buckets import LEAST_ATTEMPTS, Bucket, Check
from appliance.causes.exact import Stratum
from appliance.causes.features import PREFERENCE

LEAST_FAILURES: Final = 5
LEAST_LIFT: Final = 1.3
LEAST_RATIO: Final = 1.5
MOST_FALSE: Final = 0.01
MOST_FINDINGS: Final = 3
LEAST_SHARE: Final = 0.05


@dataclass(frozen=True)
class Case:
    """One kind of failure: the attempts that speak about it, one per job, and those of them that failed so. Bits."""

    attempts: int
    failed: int


@dataclass(frozen=True)
class Finding:
    """Counts are of the GPU models in which some attempts are in the bucket and some are not. `low` is the lower end of
    the risk ratio's 95 % interval; `gpus` the models that had more than a twentieth of the bucket's failures;
    `alike` buckets that the data cannot tell from this one."""

    bucket: Bucket
    exposed: int
    exposed_failed: int
    others: int
    others_failed: int
    lift: float
    risk_ratio: float
    low: float
    p: float
    q: float
    surprise: float
    gpus: tuple[str, ...]
    alike: tuple[Bucket, ...] = ()


def correlate(
    cases: Sequence[Case], strata: Mapping[str, int], buckets: Sequence[Bucket], check: Check = lambda: None
) -> list[tuple[Finding, ...]]:
    """The findings of each case, strongest first. `strata` maps each GPU model to its attempts."""
    tests, found = 0, []
    for number, case in enumerate(cases):
        check()
        for bucket in buckets:
            table = _table(case, bucket.members, strata.values())
            if sum(one.exposed for one in table) < LEAST_ATTEMPTS:
                continue  # by the margins alone, whatever failed
            tests += 1
            if _is_strong(table):
                check()
                found.append((number, _finding(case, bucket, table, strata)))
    q_values = exact.false_discovery([finding.p for _, finding in found], tests)
    significant: list[list[Finding]] = [[] for _ in cases]
    for (number, finding), q in zip(found, q_values, strict=True):
        if q < MOST_FALSE:
            significant[number].append(replace(finding, q=q))
    return [_select(case, mine, strata, check) for case, mine in zip(cases, significant, strict=True)]


def _table(case: Case, exposed: int, strata: Iterable[int]) -> list[Stratum]:
    """Without the strata in which all are exposed or none is: they say nothing."""
    table = []
    for members in strata:
        there = members & case.attempts
        size, inside = there.bit_count(), (there & exposed).bit_count()
        if 0 < inside < size:
            failed, failed_inside = (there & case.failed).bit_count(), (there & exposed & case.failed).bit_count()
            table.append(Stratum(inside, failed_inside, size - inside, failed - failed_inside))
    return table


def _is_strong(table: Sequence[Stratum]) -> bool:
    enough = (
        sum(one.exposed_failed for one in table) >= LEAST_FAILURES
        and sum(one.exposed for one in table) >= LEAST_ATTEMPTS
    )
    return enough and exact.lift(table) >= LEAST_LIFT and exact.risk_ratio(table)[1] > LEAST_RATIO


def _finding(case: Case, bucket: Bucket, table: Sequence[Stratum], strata: Mapping[str, int]) -> Finding:
    ratio, low = exact.risk_ratio(table)
    hit = case.failed & bucket.members
    return Finding(
        bucket,
        exposed=sum(one.exposed for one in table),
        exposed_failed=sum(one.exposed_failed for one in table),
        others=sum(one.others for one in table),
        others_failed=sum(one.others_failed for one in table),
        lift=exact.lift(table),
        risk_ratio=ratio,
        low=low,
        p=exact.fisher(table),
        q=1.0,
        surprise=exact.surprise(table),
        gpus=tuple(
            name for name, members in strata.items() if (members & hit).bit_count() > LEAST_SHARE * hit.bit_count()
        ),
    )


def _select(case: Case, findings: Sequence[Finding], strata: Mapping[str, int], check: Check) -> tuple[Finding, ...]:
    """The strongest of each parameter; then only those that still hold among attempts which are alike in the stronger
    ones too. What goes away then, and would have taken the stronger one with it, is told as `alike`."""
    ranked = sorted(findings, key=lambda one: (-round(one.surprise, 6), PREFERENCE[one.bucket.parameter]))
    best = {one.bucket.parameter: one for one in reversed(ranked)}
    chosen: list[Finding] = []
    for finding in sorted(best.values(), key=ranked.index):
        check()
        if _holds(case, finding.bucket, [one.bucket for one in chosen], strata):
            if len(chosen) == MOST_FINDINGS:
                break
            chosen.append(finding)
            continue
        for index, stronger in enumerate(chosen):
            if not _holds(case, stronger.bucket, [finding.bucket], strata):
                chosen[index] = replace(stronger, alike=(*stronger.alike, finding.bucket))
    return tuple(chosen)


def _holds(case: Case, bucket: Bucket, given: Sequence[Bucket], strata: Mapping[str, int]) -> bool:
    parts = list(strata.values())
    for other in given:
        parts = [part & side for part in parts for side in (other.members, ~other.members)]
    return _is_strong(_table(case, bucket.members, parts))
