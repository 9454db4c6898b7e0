"""What people and programs are told about failures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from appliance.causes.correlate import LEAST_FAILURES, Finding
from appliance.causes.outcome import plain
from appliance.causes.study import Conclusion, Study
from appliance.causes.suggest import Knowledge, suggest

MOST_KINDS: Final = 50
MOST_WORKERS: Final = 5
EXAMPLE_CHARS: Final = 300


@dataclass(frozen=True)
class GpuCount:
    """`gpu` is empty for attempts without a GPU."""

    gpu: str
    failures: int
    attempts: int


@dataclass(frozen=True)
class FindingReport:
    """Attempts count one per job. `lift`: how many times more failures than expected from the GPU models alone; the
    risk ratio with the lower end of its 95 % interval; `q`: the share of false ones to expect among such findings."""

    parameter: str
    bucket: str
    failures: int
    attempts: int
    other_failures: int
    other_attempts: int
    lift: float
    risk_ratio: float
    risk_ratio_low: float
    p: float
    q: float
    gpus: tuple[str, ...]
    alike: tuple[str, ...]
    suggestion: str | None


@dataclass(frozen=True)
class KindReport:
    """One kind of failure. Times are Unix seconds; `verdict` says in words what was found, or why nothing."""

    fingerprint: str
    reason: str
    xid: int | None
    where: str
    title: str
    failures: int
    jobs: int
    first_at: float
    last_at: float
    example_job: str
    example_message: str
    gpus: tuple[GpuCount, ...]
    workers: Mapping[str, int]
    findings: tuple[FindingReport, ...]
    verdict: str
    suggestion: str | None


@dataclass(frozen=True)
class Looked:
    """What the answer rests on. `limit` says why not all was looked at; None: it was."""

    days: float
    jobs: int
    attempts: int
    failures: int
    without_parameters: int
    limit: str | None


@dataclass(frozen=True)
class Report:
    at: float
    looked_at: Looked
    kinds: tuple[KindReport, ...]
    more_kinds: int
    more_failures: int


def report_of(study: Study, known: Knowledge, *, at: float, days: float, limit: str | None) -> Report:
    conclusions = study.conclusions()
    told, rest = conclusions[:MOST_KINDS], conclusions[MOST_KINDS:]
    return Report(
        at=at,
        looked_at=Looked(days, study.jobs, study.attempts, study.failures, study.without_parameters, limit),
        kinds=tuple(_kind(one, known, study.attempts_of_gpu) for one in told),
        more_kinds=len(rest),
        more_failures=sum(one.kind.failures for one in rest),
    )


def _kind(conclusion: Conclusion, known: Knowledge, attempts: Counter[str]) -> KindReport:
    fingerprint, kind = conclusion.fingerprint, conclusion.kind
    findings = tuple(
        _finding(finding, suggest(known, fingerprint, finding, safe))
        for finding, safe in zip(conclusion.findings or (), conclusion.safe, strict=True)
    )
    return KindReport(
        fingerprint=fingerprint.key,
        reason=fingerprint.reason.value,
        xid=fingerprint.xid,
        where=fingerprint.where,
        title=fingerprint.title,
        failures=kind.failures,
        jobs=kind.jobs,
        first_at=kind.first,
        last_at=kind.last,
        example_job=kind.example_job,
        example_message=plain(kind.example.message, EXAMPLE_CHARS) if kind.example else "",
        # Where there are too many models to count, one may be among this kind's and not among all.
        gpus=tuple(GpuCount(gpu, count, max(count, attempts[gpu])) for gpu, count in kind.gpus.most_common()),
        workers=dict(kind.workers.most_common(MOST_WORKERS)),
        findings=findings,
        verdict=_verdict(conclusion),
        suggestion=next((one.suggestion for one in findings if one.suggestion), suggest(known, fingerprint)),
    )


def _finding(finding: Finding, suggestion: str | None) -> FindingReport:
    return FindingReport(
        parameter=finding.bucket.parameter,
        bucket=finding.bucket.text,
        failures=finding.exposed_failed,
        attempts=finding.exposed,
        other_failures=finding.others_failed,
        other_attempts=finding.others,
        lift=_rounded(finding.lift),
        risk_ratio=_rounded(finding.risk_ratio),
        risk_ratio_low=_rounded(finding.low),
        p=_rounded(finding.p),
        q=_rounded(finding.q),
        gpus=finding.gpus,
        alike=tuple(f"{bucket.parameter} {bucket.text}" for bucket in finding.alike),
        suggestion=suggestion,
    )


def _verdict(conclusion: Conclusion) -> str:
    if conclusion.findings is None:
        return "not compared: the time was over, or too many other kinds are more frequent"
    if conclusion.findings:
        return "; ".join(_words(finding) for finding in conclusion.findings)
    if len(conclusion.kind.voices) < LEAST_FAILURES:
        return f"too few to compare: fewer than {LEAST_FAILURES} jobs with known parameters failed like this"
    return "no correlation"


def _words(finding: Finding) -> str:
    share, rest = finding.exposed_failed / finding.exposed, finding.others_failed / finding.others
    alike = "".join(f", or {one.parameter} {one.text}: the jobs cannot tell" for one in finding.alike[:1])
    return (
        f"{finding.bucket.parameter} {finding.bucket.text}{alike}: {share:.0%} of {finding.exposed} failed, "
        f"{rest:.1%} of the {finding.others} others ({finding.risk_ratio:.1f} times the risk on the same GPU)"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
