"""What the lines that are kept say of one job of each kind of failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from generator.console import plain
from generator.errors import GeneratorError
from generator.ops.log_line import LogLine
from generator.ops.log_source import LogSource
from generator.ops.trace import ASIDE_SECONDS, time_of
from generator.progress import Progress

MOST_KINDS = 10
MOST_LINES = 3
"""Of each; `generator trace` has them all."""
BAD = ("critical", "error", "warning")
LINE_CHARS = 400


@dataclass(frozen=True)
class Evidence:
    """Fingerprint → the worst lines of the example. `missing` says who could not be asked."""

    lines: Mapping[str, tuple[LogLine, ...]]
    missing: tuple[str, ...] = ()

    def put_into(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The api's answer with what was found, for programs."""
        kinds = [{**kind, "log_lines": [asdict(line) for line in self.of(kind)]} for kind in answer["kinds"]]
        return {**answer, "kinds": kinds, "missing": list(self.missing)}

    def of(self, kind: Mapping[str, Any]) -> tuple[LogLine, ...]:
        return self.lines.get(kind["fingerprint"], ())


def gather(answer: Mapping[str, Any], stores: Sequence[LogSource], progress: Progress) -> Evidence:
    """Asks the stores in turn; one that fails is not asked again."""
    lines: dict[str, tuple[LogLine, ...]] = {}
    missing: list[str] = []
    left, kinds = list(stores), answer["kinds"][:MOST_KINDS]
    if not left:
        return Evidence({})
    with progress.task("log lines") as task:
        for number, kind in enumerate(kinds, start=1):
            task.update(kind["fingerprint"], number, len(kinds))
            found: list[LogLine] = []
            for store in list(left):
                try:
                    found += _of_example(store, kind)
                except GeneratorError as error:
                    left.remove(store)
                    missing.append(plain(f"{store.name}: {error}", LINE_CHARS))
            lines[kind["fingerprint"]] = _worst(found)
        task.finish(f"{sum(map(len, lines.values()))} of {len(kinds)} kinds")
    return Evidence(lines, tuple(missing))


def _of_example(store: LogSource, kind: Mapping[str, Any]) -> list[LogLine]:
    began, ended = time_of(kind["example_job"]), kind["last_at"]
    return list(store.lines(kind["example_job"], began - ASIDE_SECONDS, ended + ASIDE_SECONDS))


def _worst(lines: Sequence[LogLine]) -> tuple[LogLine, ...]:
    """The first ones of the worst level, each text once, in the order of time."""
    once = {line.message: line for line in sorted(lines, key=lambda line: -line.at) if line.level in BAD}
    ranked = sorted(once.values(), key=lambda line: (BAD.index(line.level), line.at))
    return tuple(sorted(ranked[:MOST_LINES], key=lambda line: line.at))
