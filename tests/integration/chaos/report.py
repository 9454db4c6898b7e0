"""What a run amounted to, as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.integration.chaos.checker import PLAIN, tell
from tests.integration.chaos.history import Cancel, Fault, History, Submit
from tests.integration.chaos.watcher import JobNow


def summary(seed: str, history: History, jobs: Mapping[str, JobNow]) -> str:
    lines = [f"seed {seed}", *_faults(history, jobs), *_jobs(history), *_calls(history)]
    return "\n".join(lines)


def _faults(history: History, jobs: Mapping[str, JobNow]) -> list[str]:
    faults = list(history.of(Fault))
    recoveries: dict[str, list[float]] = {}
    pauses: dict[str, list[float]] = {}
    for fault in faults:
        if fault.hit and (recovery := _recovery(fault, jobs.get(fault.hit))) is not None:
            recoveries.setdefault(fault.kind, []).append(recovery)
        if (pause := _pause(fault, history)) is not None:
            pauses.setdefault(fault.kind, []).append(pause)
    lines = [f"{'fault':48} {'times':>5}  {'runs again (s)':>20}  {'longest submission (s)':>22}"]
    for kind, count in sorted(Counter(fault.kind for fault in faults).items()):
        again, waited = _range(recoveries.get(kind, [])), _range(pauses.get(kind, []))
        lines.append(f"{kind:48} {count:5}  {again:>20}  {waited:>22}")
    return [*lines, f"{'all':48} {len(faults):5}"]


def _recovery(fault: Fault, job: JobNow | None) -> float | None:
    """Until another attempt at the job was seen; None where the first one went on, or the job was cancelled."""
    if job is None:
        return None
    later = [seen for fence, seen in job.fences.items() if fence and seen > fault.start]
    return min(later) - fault.start if later and min(later) - fault.start < 60 else None


def _pause(fault: Fault, history: History) -> float | None:
    """How long the submissions took that were begun while the fault lasted, tries and all."""
    begun: dict[str, float] = {}
    took: list[float] = []
    for submit in sorted(history.of(Submit), key=lambda one: one.start):
        first = begun.setdefault(submit.key, submit.start)
        if submit.outcome == "accepted" and fault.start <= first <= max(fault.end, fault.start + 1):
            took.append(submit.end - first)
    return max(took, default=None)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f} (n={len(values)})" if values else "-"


def _jobs(history: History) -> list[str]:
    ends = Counter(
        (story.kind, story.final.state if story.final else "unknown")
        for story in tell(history.records)
        if story.acknowledged
    )
    text = ", ".join(f"{count} {kind} {state}" for (kind, state), count in sorted(ends.items()))
    orphans = sum(1 for story in tell(history.records) if story.commit and story.final and story.final.state != "done")
    attempts = [story.final.attempts for story in tell(history.records) if story.final and story.kind == PLAIN]
    return [
        f"jobs by end: {text}",
        f"attempts of plain jobs: {sum(attempts)} for {len(attempts)}, at most {max(attempts, default=0)}",
        f"COMMIT files of jobs that did not end done: {orphans}",
    ]


def _calls(history: History) -> list[str]:
    submits, cancels = list(history.of(Submit)), list(history.of(Cancel))
    outcomes = Counter(submit.outcome for submit in submits)
    phases = Counter((cancel.phase, cancel.state or cancel.status) for cancel in cancels)
    return [
        f"submissions: {len({submit.key for submit in submits})} in {len(submits)} tries, {dict(outcomes)}",
        f"cancels: {', '.join(f'{phase}: {end} {count}' for (phase, end), count in sorted(phases.items(), key=str))}",
    ]
