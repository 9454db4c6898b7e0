"""Figures → tables of absolute values and of ratios, and which aims this run has met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.queue_peers.systems import OURS, OWN, REFERENCE

NOT_PYTHON = {"bullmq"}
REFERENCE_SHARE = 0.9
P50, P99 = "pickup_p50_ms", "pickup_p99_ms"
RATES = ("enqueue_per_s", "end_to_end_1_per_s", "end_to_end_4_per_s")
DEFAULT, TUNED = "recovery_default_s", "recovery_tuned_s"
RECOVERIES = (DEFAULT, TUNED)
HEADS = {
    "enqueue_per_s": "enqueue/s",
    "end_to_end_1_per_s": "e2e/s 1w",
    "end_to_end_4_per_s": "e2e/s 4w",
    P50: "pickup p50",
    P99: "p99 ms",
    "worker_cpu_1_ms": "cpu/job 1w",
    "worker_cpu_4_ms": "4w ms",
    "redis_cpu_1_ms": "redis 1w",
    "redis_cpu_4_ms": "4w ms",
    DEFAULT: "kill -9: s",
    TUNED: "tuned s",
}


@dataclass
class Figures:
    """One system's figures: medians over the rounds, the pickup latency over all samples."""

    values: dict[str, float] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)  # recoveries in which a live worker's job ran a second time
    never: set[str] = field(default_factory=set)  # recoveries that had not happened when the limit passed
    failed: str = ""

    @property
    def without_figure(self) -> set[str]:
        return self.twice | self.never


def summarise(rounds: Iterable[Mapping[str, float]], samples: Sequence[float]) -> Figures:
    gathered: dict[str, list[float]] = {}
    for row in rounds:
        for name, value in row.items():
            gathered.setdefault(name, []).append(value)
    figures = Figures({name: statistics.median(values) for name, values in gathered.items()})
    if samples:
        figures.values[P50], figures.values[P99] = percentile(samples, 50), percentile(samples, 99)
    return figures


def percentile(samples: Sequence[float], percent: float) -> float:
    ranked = sorted(samples)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def add_recoveries(figures: Figures, name: str, trials: Sequence[Mapping[str, float | bool | None]]) -> None:
    """The slowest kind of answer counts: one trial without a recovery makes the figure `never`."""
    seconds = [trial["seconds"] for trial in trials]
    if any(trial["twice"] for trial in trials):
        figures.twice.add(name)
    elif None in seconds:
        figures.never.add(name)
    elif seconds:
        figures.values[name] = statistics.median(float(value or 0) for value in seconds)


def absolute_table(all_figures: Mapping[str, Figures], limit: float) -> str:
    def cell(figures: Figures, name: str) -> str:
        if name in figures.twice:
            return "ran twice"
        if name in figures.never:
            return f"> {limit:g}"
        return _number(figures.values.get(name))

    return _table(all_figures, cell)


def ratio_table(all_figures: Mapping[str, Figures], limit: float) -> str:
    """How many times better ours is than each: rates ours/theirs, times and costs theirs/ours."""
    ours = all_figures[OURS]

    def cell(figures: Figures, name: str) -> str:
        mine = ours.values.get(name, ours.values.get(DEFAULT) if name == TUNED else None)
        if mine and name in figures.never:
            return f"> {_number(limit / mine)} x"
        theirs = figures.values.get(name)
        if not mine or not theirs:
            return "-"
        return f"{_number(mine / theirs if name in RATES else theirs / mine)} x"

    return _table({name: figures for name, figures in all_figures.items() if name != OURS}, cell)


def _table(all_figures: Mapping[str, Figures], cell: Callable[[Figures, str], str]) -> str:
    rows = [["", *HEADS.values()]]
    for name, figures in all_figures.items():
        rows.append([name, *(cell(figures, key) for key in HEADS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def aims(all_figures: Mapping[str, Figures]) -> list[str]:
    """One line per aim of this queue: met, missed, or why this run cannot tell."""
    libraries = [name for name in all_figures if name not in OWN]
    python = [name for name in libraries if name not in NOT_PYTHON]
    lines = [
        _aim(all_figures, "best pickup latency, p50", P50, P50, libraries),
        _aim(all_figures, "best pickup latency, p99", P99, P99, libraries),
        _aim(all_figures, "best recovery, all with defaults", DEFAULT, DEFAULT, libraries),
        _aim(all_figures, "best recovery, ours with defaults, theirs tuned", DEFAULT, TUNED, libraries),
    ]
    for workers in (1, 4):
        name, words = f"end_to_end_{workers}_per_s", f"end-to-end with {workers} worker{'s' * (workers > 1)}"
        lines.append(_aim(all_figures, f"{words} level with the fastest Python peer", name, name, python))
        share = f"{words} at least {REFERENCE_SHARE} of the reference"
        lines.append(_aim(all_figures, share, name, name, [REFERENCE], REFERENCE_SHARE))
    return lines


def _aim(
    all_figures: Mapping[str, Figures], words: str, mine: str, theirs: str, peers: Sequence[str], share: float = 1.0
) -> str:
    """`share` is of the others' rate that has to be reached; times have to be at most the others'."""
    own = all_figures[OURS].values.get(mine)
    others = {
        name: all_figures[name].values[theirs] for name in peers if theirs in all_figures.get(name, Figures()).values
    }
    if own is None:
        lost = mine in all_figures[OURS].without_figure
        return f"{'MISSED ' if lost else 'unknown'}  {words}: ours has no figure"
    if not others:
        spoilt = [name for name in peers if name in all_figures and theirs in all_figures[name].without_figure]
        return f"{'met    ' if spoilt else 'unknown'}  {words}: {_number(own)}; nobody else has a figure"
    best = (max if mine in RATES else min)(others, key=lambda name: others[name])
    met = own >= share * others[best] if mine in RATES else own <= others[best]
    ratio = own / others[best] if mine in RATES else others[best] / own
    verdict = "met    " if met else "MISSED "
    return f"{verdict}  {words}: {_number(own)} against {_number(others[best])} of {best} ({ratio:.2f} x)"
