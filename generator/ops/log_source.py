"""Where the services' log lines about a job come from.

A source is asked for the lines of one job within a time; what it cannot tell, it says by raising `GeneratorError`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, Protocol

from generator import processes
from generator.errors import GeneratorError, Unhealthy
from generator.ops.cluster import Place
from generator.ops.elastic_logs import Access, ElasticLogs
from generator.ops.log_line import MOST_LINES, LogLine, described

LOG_SECONDS = 120.0
AT_A_TIME = 8
# Compose clears the terminal's line first, also where there is no terminal, and no option keeps it from that.
_LINE = re.compile(r"(?:\x1b\[\d*K)?(?P<service>[\w.-]+?)-\d+\s*\| (?P<moment>\d{4}-\d\d-\d\dT[0-9:.]+)Z (?P<text>.*)")


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


class KeptLogs:
    """What the cluster's Elasticsearch keeps; where one of them does not answer, or knows nothing, the containers' own
    logs as well. Lines that both tell are told once."""

    name = "the logs that are kept"

    def __init__(self, stores: Sequence[LogSource], containers: Sequence[LogSource]) -> None:
        self._stores, self._containers = stores, containers

    def lines(self, job_id: str, start: float, end: float) -> Iterator[LogLine]:
        kept, wrong = _ask_all(self._stores, job_id, start, end)
        yield from kept
        if kept and not wrong:
            return
        wrong = wrong or [f"{', '.join(store.name for store in self._stores)}: no line of this job"]
        held, lacking = _ask_all(self._containers, job_id, start, end)
        known = Counter(map(_identity, kept))
        for line in held:
            if known[_identity(line)]:
                known[_identity(line)] -= 1
            else:
                yield line
        raise Unhealthy(f"the containers' own logs were read as well, for {'; '.join([*wrong, *lacking])}")


def _identity(line: LogLine) -> tuple[str, str, str]:
    """Their times differ: one is the service's, the other Docker's."""
    return line.host, line.service, line.message


def _ask_all(sources: Sequence[LogSource], job_id: str, start: float, end: float) -> tuple[list[LogLine], list[str]]:
    """All lines, and what is wrong with those that have not told all."""

    def ask(source: LogSource) -> tuple[list[LogLine], str | None]:
        lines: list[LogLine] = []
        try:
            for line in source.lines(job_id, start, end):
                lines.append(line)  # what it has told until it failed counts
        except GeneratorError as error:
            return lines, f"{source.name}: {error}"
        return lines, None

    with ThreadPoolExecutor(max_workers=AT_A_TIME) as threads:
        answers = list(threads.map(ask, sources))
    return [line for lines, _ in answers for line in lines], [wrong for _, wrong in answers if wrong]


def stores(places: Sequence[Place], access: Access | None) -> list[LogSource]:
    """The hosts that keep lines, where there are some. `access`: None where there cannot be any."""
    return [ElasticLogs(place, access) for place in places if access and place.host.log_store]


def log_sources(places: Sequence[Place], access: Access | None = None) -> list[LogSource]:
    """All lines of all hosts."""
    containers: list[LogSource] = [ComposeLogs(place) for place in places]
    kept = stores(places, access)
    return [KeptLogs(kept, containers)] if kept else containers


def parse_line(host: str, text: str) -> LogLine | None:
    """One line of `docker compose logs --timestamps`; None for what is none. Our own services' lines are JSON."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    moment, _, fraction = found["moment"].partition(".")
    at = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc).timestamp() + float(f"0.{fraction or 0}")
    message, level = described(_fields(found["text"]))
    return LogLine(at, host, found["service"], found["text"] if message is None else message, level)


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
