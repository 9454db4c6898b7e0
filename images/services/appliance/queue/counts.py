"""What the queue's scripts count for each host (scripts/counting.lua), as values. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

BOUNDS: Final = (0.1, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600)
"""Upper bounds in seconds of both spreads; the scripts get them from here."""
MORE: Final = "more"
LABEL_LIMIT_CHARS: Final = 80
USUAL_SIZES: Final = (
    *("256x256", "384x384", "512x512", "640x640", "768x768", "1024x1024"),
    *("512x768", "768x512", "512x640", "640x512", "576x1024", "1024x576"),
)
"""Have their place among the labels, whatever else is asked for first."""
NANO: Final = 1e-9


def label_text(text: str) -> str:
    """Fit to be a label, and a part of a field's name: bounded, and without tabs and line ends."""
    return "".join(sign for sign in text if sign.isprintable())[:LABEL_LIMIT_CHARS].strip()


@dataclass
class Spread:
    """How many were at most as long as each of `BOUNDS`, those beyond the last one at the end."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum_seconds: float = 0.0

    def note(self, bound: str, number: int) -> None:
        """A bound of another version's scripts counts for the next higher one of ours."""
        if bound == "sum":
            self.sum_seconds = number / 1000
            return
        seconds = float("inf") if bound == MORE else float(bound)
        self.counts[sum(seconds > known for known in BOUNDS)] += number

    def cumulative(self) -> list[tuple[float, int]]:
        total, steps = 0, []
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            total += count
            steps.append((bound, total))
        return steps


@dataclass(frozen=True)
class Counts:
    """Of one host, by resolution (`size`) and what else the name says; times in seconds."""

    waits: dict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))
    took: dict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))
    done_by_size_model: dict[tuple[str, str], int] = field(default_factory=dict)
    failed_by_reason_size: dict[tuple[str, str], int] = field(default_factory=dict)
    video_seconds: dict[str, float] = field(default_factory=dict)
    gpu_seconds_by_size_model: dict[tuple[str, str], float] = field(default_factory=dict)
    cost_usd: dict[str, float] = field(default_factory=dict)

    @property
    def sizes(self) -> set[str]:
        """All resolutions that this host has met."""
        pairs = (*self.done_by_size_model, *self.gpu_seconds_by_size_model)
        return {*self.waits, *self.took, *(size for size, _ in pairs), *(s for _, s in self.failed_by_reason_size)}

    def note(self, name: str, parts: list[str], number: int) -> None:
        """Raises ValueError for what is none of its fields."""
        match name, parts:
            case "wait", [size, bound]:
                self.waits[size].note(bound, number)
            case "took", [size, bound]:
                self.took[size].note(bound, number)
            case "done", [size, model]:
                self.done_by_size_model[size, model] = number
            case "failed", [reason, size]:
                self.failed_by_reason_size[reason, size] = number
            case "video", [size]:
                self.video_seconds[size] = number / 1000
            case "gpu", [size, model]:
                self.gpu_seconds_by_size_model[size, model] = number / 1000
            case "cost", [size]:
                self.cost_usd[size] = number * NANO
            case _:
                raise ValueError(f"{name} is not counted")


def whole_numbers(fields: Mapping[str, str]) -> dict[str, int]:
    """The fields as Redis has them; what is no count is left out."""
    return {name: int(text) for name, text in fields.items() if text.isdecimal() and len(text) < 20}


def parse_counts(fields: Mapping[str, int]) -> Counts:
    """Fields of another version, or of nobody's, are left out: they must not cost the others."""
    counts = Counts()
    for name, number in fields.items():
        kind, *parts = name.split("\t")
        try:
            counts.note(kind, parts, number)
        except ValueError:
            continue
    return counts
