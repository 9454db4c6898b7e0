"""One job's whole life in order of time: what the queue remembers, and what the services have logged about it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from generator.console import plain
from generator.errors import GeneratorError, Unhealthy, UserError
from generator.ops.client import Client
from generator.ops.cluster import Place
from generator.ops.log_line import LogLine
from generator.ops.log_source import LogSource
from generator.ops.status import ask_gateways
from generator.progress import Progress

ASIDE_SECONDS = 300.0
"""Before the job's beginning and after its end: the hosts' clocks are not one clock."""
SHOWN_CHARS = 400
ALREADY_TOLD = frozenset({"job", "running", "done", "dead", "cancelled"})
"""Events that say what the attempts' history says too."""


@dataclass(frozen=True)
class Entry:
    """`at` is a Unix time in seconds; `source` is queue, cluster or host/service."""

    at: float
    source: str
    text: str


@dataclass(frozen=True)
class Trace:
    """`missing` says what could not be asked or is not known any more. `queue` is the api's whole answer."""

    job: str
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    queue: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def trace(
    job_id: str,
    places: Sequence[Place],
    sources: Sequence[LogSource],
    key: str,
    authority: Path | None,
    progress: Progress,
) -> Trace:
    """Asks the queue first, for when the job lived, then all sources at a time. Raises `UserError` for what is no id;
    whatever does not answer is told as missing."""
    began = time_of(job_id)
    missing: list[str] = []
    told = _ask_queue(job_id, places, key, authority, missing)
    ended = told["job"]["finished_at"] if told else None
    window = (began - ASIDE_SECONDS, (ended or time.time()) + ASIDE_SECONDS)
    entries = [*_of_queue(told)] if told else []
    with progress.task("logs") as task, ThreadPoolExecutor(max_workers=8) as threads:
        answers = threads.map(lambda source: _ask_source(source, job_id, window), sources)
        for number, (source, (lines, wrong)) in enumerate(zip(sources, answers, strict=True), start=1):
            task.update(source.name, number, len(sources))
            entries += [_of_line(line) for line in lines]
            missing += [wrong] if wrong else []
        task.finish(f"{sum('/' in entry.source for entry in entries)} lines of {len(places)} hosts")
    entries.sort(key=lambda entry: entry.at)
    return Trace(job_id, tuple(entries), tuple(missing), told)


def time_of(job_id: str) -> float:
    """When it was submitted, which its id says."""
    try:
        parsed = uuid.UUID(job_id)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != job_id or parsed.version != 7:
        example = "01a22362-01b9-71c4-9f1c-45142bb03e50"
        raise UserError(f'"{plain(job_id, 60)}" is no job; an id looks like {example}: GET /api/v1/jobs lists them')
    return (parsed.int >> 80) / 1000


def _ask_queue(
    job_id: str, places: Sequence[Place], key: str, authority: Path | None, missing: list[str]
) -> dict[str, Any] | None:
    def ask(client: Client) -> dict[str, Any]:
        return client.trace(job_id)

    try:
        told = ask_gateways(places, key, authority, ask)
    except Unhealthy as error:
        missing.append(f"what the queue knows: {plain(str(error), SHOWN_CHARS)}")
        return None
    missing += told["missing"]
    return told


def _ask_source(source: LogSource, job_id: str, window: tuple[float, float]) -> tuple[list[LogLine], str | None]:
    """What it has told until it failed counts. That somebody has asked for traces is no part of the job's life."""
    lines: list[LogLine] = []
    try:
        for line in source.lines(job_id, *window):
            if f"/{job_id}/trace" not in line.message:
                lines.append(line)
    except GeneratorError as error:
        return lines, f"{source.name}: {plain(str(error), SHOWN_CHARS)}"
    return lines, None


def _of_queue(told: Mapping[str, Any]) -> Iterator[Entry]:
    job = told["job"]
    yield Entry(job["created_at"], "queue", f"submitted by {job['user']}, priority {job['priority']}")
    for attempt in job["attempts"]["history"]:
        yield from _of_attempt(attempt)
    if job["state"] == "running" and job["started_at"]:
        yield Entry(job["started_at"], "queue", f"runs on {job['worker']}")
    if job["finished_at"]:
        error = job["error"] or {}
        why = f": {error['reason']}: {error['message']}" if error.get("reason") else ""
        yield Entry(job["finished_at"], "queue", f"{job['state']}{why}")
    yield from _of_events(told["events"])
    for event in told["cluster_events"]:
        about = [event["worker"] or "", event["reason"] or ""]
        yield Entry(event["at"], "cluster", " ".join([event["type"], *filter(None, about)]))


def _of_attempt(attempt: Mapping[str, Any]) -> Iterator[Entry]:
    if attempt["started_at"]:
        how = [attempt["gpu"] or "", attempt["memory"] or ""]
        how += [f"from step {attempt['resumed_from']}"] if attempt["resumed_from"] else []
        detail = f" ({', '.join(filter(None, how))})" if any(how) else ""
        yield Entry(attempt["started_at"], "queue", f"begins on {attempt['worker']}{detail}")
    why = [attempt["reason"] or "", attempt["message"] or "", f"in {attempt['where']}" if attempt["where"] else ""]
    said = ": ".join([attempt["kind"], *filter(None, why)])
    yield Entry(attempt["at"], "queue", f"ends on {attempt['worker']} at step {attempt['step']}, {said}")


def _of_events(events: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    """Of the progress only what is new: a phase, a memory setting, a checkpoint."""
    before: tuple[Any, ...] = ()
    for event in events:
        data = event["data"]
        if event["kind"] != "progress":
            if event["kind"] not in ALREADY_TOLD:
                delay = data.get("delay_seconds")
                yield Entry(event["at"], "queue", event["kind"] + (f" for {delay:g} s" if delay else ""))
            continue
        signs = (data.get("phase"), data.get("memory"), data.get("checkpoint_step"))
        if signs != before:
            checkpoint = f", checkpoint at step {signs[2]}" if signs[2] else ""
            step = f"step {data.get('step')} of {data.get('total_steps')}"
            yield Entry(event["at"], "queue", f"{signs[0] or 'progress'}: {step}{checkpoint}")
        before = signs


def _of_line(line: LogLine) -> Entry:
    level = f"{line.level}: " if line.level not in ("", "info") else ""
    return Entry(line.at, f"{line.host}/{line.service}", f"{level}{line.message}")


def table(result: Trace) -> Table:
    when = (Column("UTC", no_wrap=True), Column("after", no_wrap=True, justify="right"))
    rows = Table(*when, "from", Column("what", overflow="fold"), box=None, pad_edge=False)
    first = result.entries[0].at if result.entries else 0.0
    for entry in result.entries:
        moment = datetime.fromtimestamp(entry.at, timezone.utc).strftime("%d %b %H:%M:%S.%f")[:-3]
        text = escape(plain(entry.text, SHOWN_CHARS))
        rows.add_row(moment, f"{entry.at - first:.1f} s", escape(plain(entry.source, 60)), text)
    return rows
