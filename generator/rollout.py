"""An upgrade as values: releases, stages, what may be mixed on the way, and when to go back. Pure.

The workers change one at a time, each stopped before its successor starts (a GPU has no room for two): first one that
gets a tenth of the sessions and is watched, then a quarter of all, half, the rest. A stage that fails its gate ends the
upgrade where it began.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from generator.errors import UserError
from generator.model import Cluster

CANARY_SHARE = 0.1
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Release:
    """What an upgrade can change."""

    tag: str
    checkpoint: str
    motion_module: str

    def __str__(self) -> str:
        return f"{self.tag} with {self.checkpoint} and {self.motion_module}"


def release_of(cluster: Cluster) -> Release:
    return Release(cluster.images.tag, cluster.models.checkpoint, cluster.models.motion_module)


def with_release(cluster: Cluster, release: Release) -> Cluster:
    """The same cluster with another release; as unchecked as if it had been written so."""
    images = cluster.images.model_copy(update={"tag": release.tag})
    models = {"checkpoint": release.checkpoint, "motion_module": release.motion_module}
    return cluster.model_copy(update={"images": images, "models": cluster.models.model_copy(update=models)})


@dataclass(frozen=True)
class Stage:
    """`workers` change in it, in this order; `share` of the sessions is what the new ones get all together (a plan:
    nothing measures it), None where each counts like any other."""

    name: str
    workers: tuple[str, ...]
    share: float | None = None


def stages(workers: Sequence[str]) -> tuple[Stage, ...]:
    """`workers` in the order of the file, which is host by host."""
    if not workers:
        raise UserError("the cluster has no worker that could be upgraded")
    found = [Stage("canary", (workers[0],), CANARY_SHARE if len(workers) > 1 else None)]
    done = 1
    for share in SHARES:
        wanted = math.ceil(share * len(workers))
        if wanted > done:
            found.append(Stage(f"{share:.0%}", tuple(workers[done:wanted])))
            done = wanted
    return tuple(found)


@dataclass(frozen=True)
class Figures:
    """What was seen of some workers since a moment. `slow_seconds`: their p95, None without a request."""

    requests: int = 0
    errors: int = 0
    slow_seconds: float | None = None
    jobs: int = 0
    failed_jobs: int = 0
    pace: float | None = None
    """How long a job takes, in units of what was expected of it; None without one that was done."""
    restarts: int = 0
    sick: tuple[str, ...] = ()
    """Workers that are not fit for traffic, each with why: `gpu-01/0: ping answered status 'error'`."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def failure_rate(self) -> float:
        return self.failed_jobs / self.jobs if self.jobs else 0.0


BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends in seconds, ascending, of `Counts.within`."""


@dataclass(frozen=True)
class Counts:
    """What some workers have done since they were first seen; the difference of two is what they did in between.
    `within[i]`: requests that took at most `BOUNDS[i]`."""

    requests: int = 0
    errors: int = 0
    within: tuple[int, ...] = (0,) * len(BOUNDS)
    jobs: int = 0
    failed_jobs: int = 0
    pace_sum: float = 0.0
    """Of the jobs that were done: how long each took, in units of its estimate."""

    def __add__(self, other: Counts) -> Counts:
        within = tuple(one + another for one, another in zip(self.within, other.within, strict=True))
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            within,
            self.jobs + other.jobs,
            self.failed_jobs + other.failed_jobs,
            self.pace_sum + other.pace_sum,
        )

    def __sub__(self, earlier: Counts) -> Counts:
        """Never below nothing: a part that was started anew counts from 0."""
        within = tuple(max(0, one - other) for one, other in zip(self.within, earlier.within, strict=True))
        return Counts(
            max(0, self.requests - earlier.requests),
            max(0, self.errors - earlier.errors),
            within,
            max(0, self.jobs - earlier.jobs),
            max(0, self.failed_jobs - earlier.failed_jobs),
            max(0.0, self.pace_sum - earlier.pace_sum),
        )

    def figures(self, sick: tuple[str, ...] = (), restarts: int = 0) -> Figures:
        done = self.jobs - self.failed_jobs
        return Figures(
            requests=self.requests,
            errors=self.errors,
            slow_seconds=self._slow_seconds(),
            jobs=self.jobs,
            failed_jobs=self.failed_jobs,
            pace=self.pace_sum / done if done > 0 else None,
            restarts=restarts,
            sick=sick,
        )

    def _slow_seconds(self) -> float | None:
        """The bound that 95 % of the requests stay within; None without one, infinite beyond the last bound."""
        if not self.requests:
            return None
        enough = 0.95 * self.requests
        return next((bound for bound, count in zip(BOUNDS, self.within, strict=True) if count >= enough), math.inf)


@dataclass(frozen=True)
class Gate:
    """What a stage has to show before the next. `minimum`: requests and jobs together."""

    dwell_seconds: float = 60.0
    longest_seconds: float = 600.0
    minimum: int = 20
    errors_to_fail: int = 3
    more_errors: float = 0.01
    times_slower: float = 1.5
    seconds_slower: float = 0.25
    jobs_to_compare: int = 3
    sick_seconds: float = 10.0


@dataclass(frozen=True)
class Verdict:
    """`passed` None: not yet. `reason` is for people."""

    passed: bool | None
    reason: str


def judge(new: Figures, old: Figures, seconds: float, sick_since: float | None, gate: Gate) -> Verdict:
    """`seconds` into the dwell; the new workers have been sick for `sick_since` seconds (None: they are not)."""
    if new.restarts:
        return Verdict(False, f"restarted {new.restarts} times")
    if new.sick and sick_since is not None and sick_since >= gate.sick_seconds:
        return Verdict(False, f"not fit for {sick_since:.0f} s: {'; '.join(new.sick)}")
    for what, failed, rate, usual in (
        ("requests", new.errors, new.error_rate, old.error_rate),
        ("jobs", new.failed_jobs, new.failure_rate, old.failure_rate),
    ):
        if failed >= gate.errors_to_fail and rate > usual + gate.more_errors:
            return Verdict(False, f"{rate:.1%} of the {what} failed ({failed}), of the others {usual:.1%}")
    slower = _slower(new, old, gate)
    if slower and seconds >= gate.dwell_seconds:
        return Verdict(False, slower)
    return _patience(new, seconds, gate)


def _slower(new: Figures, old: Figures, gate: Gate) -> str:
    enough = new.jobs >= gate.jobs_to_compare
    if enough and new.pace is not None and old.pace is not None and new.pace > gate.times_slower * old.pace:
        return f"its jobs take {new.pace / old.pace:.1f} times as long as the others'"
    if new.slow_seconds is None or old.slow_seconds is None or new.requests < gate.minimum:
        return ""
    limit = max(gate.times_slower * old.slow_seconds, old.slow_seconds + gate.seconds_slower)
    if new.slow_seconds <= limit:
        return ""
    return f"95 % of the requests within {new.slow_seconds:.2f} s, of the others within {old.slow_seconds:.2f} s"


def _patience(new: Figures, seconds: float, gate: Gate) -> Verdict:
    seen = new.requests + new.jobs
    if new.sick or seconds < gate.dwell_seconds:
        return Verdict(None, f"{seen} requests and jobs in {seconds:.0f} s")
    if seen >= gate.minimum:
        return Verdict(True, f"{seen} requests and jobs in {seconds:.0f} s, as good as the others")
    if seconds < gate.longest_seconds:
        return Verdict(None, f"{seen} of {gate.minimum} requests and jobs in {seconds:.0f} s")
    return Verdict(True, f"only {seen} requests and jobs in {seconds:.0f} s, none of them a reason to go back")
