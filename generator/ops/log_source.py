"""Where the services' log lines about a job come from.

A source is asked for the lines of one job within a time; what it cannot tell, it says by raising `GeneratorError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from generator import processes
from generator.errors import Unhealthy
from generator.ops.cluster import Place

LOG_SECONDS = 120.0
MOST_LINES = 20_000
"""About one job on one host; more is a log gone mad, and says nothing more."""
# Compose clears the terminal's line first, also where there is no terminal, and no option keeps it from that.
_LINE = re.compile(r"(?:\x1b\[\d*K)?(?P<service>[\w.-]+?)-\d+\s*\| (?P<moment>\d{4}-\d\d-\d\dT[0-9:.]+)Z (?P<text>.*)")


@dataclass(frozen=True)
class LogLine:
    """`at` is a Unix time in seconds, by the clock of the host that the line comes from."""

    at: float
    host: str
    service: str
    message: str
    level: str = ""


class LogSource(Protocol):
    @property
    def name(self) -> str:
        """What is said to be missing where it cannot be asked."""

    def lines(self, job_id: str, start: float, end: float) -> Iterator[LogLine]:
        """All lines that name the job, of every service, in any order; Unix times. Raises `GeneratorError`."""


class ComposeLogs:
    """What Docker keeps of one host's containers: the newest 50 MB of each, gone with the container."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def name(self) -> str:
        return f"the logs of {self._place.host.name}"

    def command(self, start: float, end: float) -> list[str]:
        times = ("--since", _iso(start), "--until", _iso(end))
        return self._place.compose("logs", "--no-color", "--timestamps", *times)

    def lines(self, job_id: str, start: float, end: float) -> Iterator[LogLine]:
        found = 0
        for text in processes.stream(self.command(start, end), timeout=LOG_SECONDS):
            if job_id in text and (line := parse_line(self._place.host.name, text)) is not None:
                found += 1
                if found > MOST_LINES:
                    raise Unhealthy(f"more than {MOST_LINES} lines name the job; the rest was not read")
                yield line


def log_sources(places: Sequence[Place]) -> list[LogSource]:
    return [ComposeLogs(place) for place in places]


def parse_line(host: str, text: str) -> LogLine | None:
    """One line of `docker compose logs --timestamps`; None for what is none. Our own services' lines are JSON."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    moment, _, fraction = found["moment"].partition(".")
    at = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc).timestamp() + float(f"0.{fraction or 0}")
    fields = _fields(found["text"])
    message = fields.get("message")
    if not isinstance(message, str):
        return LogLine(at, host, found["service"], found["text"])
    told = " ".join(f"{name}={fields[name]}" for name in ("event", "reason", "result", "detail") if fields.get(name))
    level = fields.get("log.level")
    message = f"{message} ({told})" if told else message
    return LogLine(at, host, found["service"], message, level if isinstance(level, str) else "")


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
