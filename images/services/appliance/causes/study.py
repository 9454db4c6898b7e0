"""Many attempts' ends, put together: which kinds of failures there are, and what each of them has in common. Pure.

One job is one voice: its attempts are as alike as can be, and three failures of one job are no coincidence. About a
kind of failure a job speaks with its first attempt that failed so, else with its last one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from appliance.causes.attempts import Attempts, mask_of
from appliance.causes.buckets import Bucket, make_buckets
from appliance.causes.correlate import LEAST_FAILURES, Case, Finding, correlate
from appliance.causes.features import NUMBERS, features_of
from appliance.causes.fingerprint import Fingerprint, Fingerprinter, Unknown
from appliance.causes.outcome import JobOutcomes, Outcome
from appliance.job import Reason

MOST_KINDS: Final = 500
MOST_ANALYSED: Final = 50
MOST_COUNTED: Final = 64
"""GPU models and workers of one kind; the rest counts together, as OTHERS."""
OTHERS: Final = "others"
SAFE_ATTEMPTS: Final = 20
SAFE_SHARE: Final = 0.05


class TimeIsOverError(Exception):
    """What was found so far counts; the rest was not looked at."""


class Budget:
    """Seconds from now on, and somebody who may end it earlier."""

    def __init__(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> None:
        self._end = time.monotonic() + seconds
        self._stopped = stopped

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end or self._stopped()

    def check(self) -> None:
        if self.over:
            raise TimeIsOverError


@dataclass
class Kind:
    """One kind of failure. `places` are those of its attempts that can be compared, `voices` the first one of each job
    among them, `silenced` these jobs' last attempts, which speak for them about anything else."""

    failures: int = 0
    jobs: int = 0
    first: float = 0.0
    last: float = 0.0
    example: Outcome | None = None
    example_job: str = ""
    gpus: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    places: list[int] = field(default_factory=list)
    voices: list[int] = field(default_factory=list)
    silenced: list[int] = field(default_factory=list)

    def add(self, job_id: str, failure: Outcome) -> None:
        self.failures += 1
        self.first = min(self.first or failure.at, failure.at)
        if failure.at >= self.last:
            self.last, self.example, self.example_job = failure.at, failure, job_id
        _count(self.gpus, failure.gpu)
        _count(self.workers, failure.worker)

    def absorb(self, other: Kind) -> None:
        """Of two templates that have grown equal."""
        if other.last >= self.last:
            self.last, self.example, self.example_job = other.last, other.example, other.example_job
        self.first = min(self.first, other.first)
        self.failures += other.failures
        self.jobs += other.jobs  # one that failed in both ways counts twice
        self.gpus += other.gpus
        self.workers += other.workers
        self.places += other.places
        self.voices += other.voices
        self.silenced += other.silenced


@dataclass(frozen=True)
class Safe:
    """A value with which many attempts ran, of which next to none failed in the way in question."""

    value: float
    attempts: int
    failures: int


@dataclass(frozen=True)
class Conclusion:
    """`findings` is None where this kind was not looked at: the time was over, or others are too many. `safe` has for
    each finding the largest value below its range that is safe on its GPU models."""

    fingerprint: Fingerprint
    kind: Kind
    findings: tuple[Finding, ...] | None
    safe: tuple[Safe | None, ...] = ()


class Study:
    """Feed it with `add`, newest jobs first, then ask for `conclusions`. For one thread at a time."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._fingerprinter = Fingerprinter()
        self._kinds: dict[Fingerprint | Unknown, Kind] = {}
        self._attempts = Attempts()
        self._lasts: list[int] = []
        self.jobs = self.attempts = self.failures = self.without_parameters = 0
        self.attempts_of_gpu: Counter[str] = Counter()

    def add(self, job: JobOutcomes) -> None:
        if not job.attempts:
            return
        self.jobs += 1
        self.attempts += len(job.attempts)
        self.without_parameters += job.parameters is None
        places = [self._place(job, attempt) for attempt in job.attempts]
        last = next((place for place in reversed(places) if place is not None), None)
        if last is not None:
            self._lasts.append(last)
        heard: set[int] = set()
        for attempt, place in zip(job.attempts, places, strict=True):
            _count(self.attempts_of_gpu, attempt.gpu)
            if attempt.reason is None:
                continue
            kind = self._kind_of(attempt)
            kind.add(job.job_id, attempt)
            self.failures += 1
            if id(kind) not in heard:
                kind.jobs += 1
            if place is not None and last is not None:
                kind.places.append(place)
                if id(kind) not in heard:
                    kind.voices.append(place)
                    kind.silenced.append(last)
            heard.add(id(kind))

    def _place(self, job: JobOutcomes, attempt: Outcome) -> int | None:
        if job.parameters is None:
            return None
        equals = attempt.gpu or f"unknown, of {attempt.worker}"  # whether others have the same one nobody knows
        return self._attempts.append(features_of(job.parameters, attempt.context), attempt.worker, equals)

    def _kind_of(self, failure: Outcome) -> Kind:
        known = self._fingerprinter.read(failure)
        if known not in self._kinds and len(self._kinds) >= MOST_KINDS:
            reason = known.reason if isinstance(known, Fingerprint) else Reason.UNKNOWN
            known = Fingerprint(reason, None, OTHERS, "", "too many kinds to tell apart")
        return self._kinds.setdefault(known, Kind())

    def conclusions(self) -> list[Conclusion]:
        """Of each kind, the most frequent ones first."""
        settled = sorted(self._settled().items(), key=lambda one: (-one[1].failures, one[0].key))
        asked = [(number, kind) for number, (_, kind) in enumerate(settled) if len(kind.voices) >= LEAST_FAILURES]
        try:
            found = self._correlate([kind for _, kind in asked[:MOST_ANALYSED]])
        except TimeIsOverError:
            found = []
        findings: dict[int, tuple[Finding, ...] | None] = {number: None for number, _ in asked}
        findings |= {number: mine for (number, _), mine in zip(asked, found, strict=False)}
        return [
            Conclusion(fingerprint, kind, mine, tuple(self._safe(kind, one) for one in mine or ()))
            for number, (fingerprint, kind) in enumerate(settled)
            for mine in [findings.get(number, ())]
        ]

    def _settled(self) -> dict[Fingerprint, Kind]:
        """To be asked once: what has grown equal is put together for good."""
        settled: dict[Fingerprint, Kind] = {}
        for known, kind in self._kinds.items():
            fingerprint = known.settle() if isinstance(known, Unknown) else known
            if settled.setdefault(fingerprint, kind) is not kind:
                settled[fingerprint].absorb(kind)
        return settled

    def _correlate(self, kinds: Sequence[Kind]) -> list[tuple[Finding, ...]]:
        if not kinds:
            return []
        size = len(self._attempts)
        lasts = mask_of(self._lasts, size)
        cases = []
        for kind in kinds:
            voices = mask_of(kind.voices, size)
            cases.append(Case(lasts & ~mask_of(kind.silenced, size) | voices, voices))
        self._budget.check()
        buckets = make_buckets(self._attempts, self._budget.check)
        return correlate(cases, self._attempts.strata(), buckets, self._budget.check)

    def _safe(self, kind: Kind, finding: Finding) -> Safe | None:
        bucket = finding.bucket
        if bucket.kind != "above":
            return None
        size, strata, concerned = len(self._attempts), self._attempts.strata(), 0
        for gpu in finding.gpus:
            concerned |= strata[gpu]
        failed, found = mask_of(kind.places, size), list[Safe]()
        for value, places in self._by_value(bucket).items():
            there = mask_of(places, size) & concerned
            found.append(Safe(value, there.bit_count(), (there & failed).bit_count()))
        safe = [one for one in found if one.attempts >= SAFE_ATTEMPTS and one.failures <= SAFE_SHARE * one.attempts]
        return max(safe, key=lambda one: one.value, default=None)

    def _by_value(self, bucket: Bucket) -> dict[float, list[int]]:
        """The places of each value below the bucket's range."""
        index, places = NUMBERS.index(bucket.parameter), dict[float, list[int]]()
        for features, mine in self._attempts.by_features().items():
            value = features.numbers[index]
            if value is not None and isinstance(bucket.value, float) and value <= bucket.value:
                places.setdefault(value, []).extend(mine)
        return places


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < MOST_COUNTED else OTHERS] += 1
