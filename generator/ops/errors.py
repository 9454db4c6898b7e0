"""Which failures there were, what they have in common and what to do: the api's answer, for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from generator.console import plain
from generator.ops.client import Client
from generator.ops.cluster import Place
from generator.ops.evidence import Evidence
from generator.ops.status import ask_gateways

ANSWER_SECONDS = 60.0
"""The api takes up to half of that to compare a hundred thousand jobs."""
MOST_GPUS = 3
NOTHING = Evidence({})
LINE_CHARS = 400


def ask(places: Sequence[Place], key: str, authority: Path | None, days: int) -> dict[str, Any]:
    """Answer of `GET /api/v1/errors`. Raises `Unhealthy` where no gateway has one."""

    def question(client: Client) -> dict[str, Any]:
        return client.errors(days)

    return ask_gateways(places, key, authority, question, timeout_seconds=ANSWER_SECONDS)


def table(answer: Mapping[str, Any]) -> Table:
    columns = [Column(name, overflow="fold") for name in ("failure", "reason", "what", "GPUs (failed of all)")]
    rows = Table(*columns[:2], Column("times", justify="right"), Column("last", no_wrap=True), *columns[2:], box=None)
    for kind in answer["kinds"]:
        gpus = [f"{one['gpu'].split(',')[0] or 'none'}: {one['failures']} of {one['attempts']}" for one in kind["gpus"]]
        rest = [f"and {len(gpus) - MOST_GPUS} more"] if len(gpus) > MOST_GPUS else []
        rows.add_row(
            kind["fingerprint"],
            escape(kind["reason"]),
            str(kind["failures"]),
            _ago(answer["at"] - kind["last_at"]),
            escape(_what(kind)),
            escape("\n".join([*gpus[:MOST_GPUS], *rest])),
        )
    return rows


def findings(answer: Mapping[str, Any], evidence: Evidence = NOTHING) -> Iterator[str]:
    """Lines for each kind of failure: what was found, and what to do."""
    for kind in answer["kinds"]:
        yield ""
        yield plain(f"{kind['fingerprint']} {kind['reason']}: {_what(kind)}", LINE_CHARS)
        yield plain(f"  example: job {kind['example_job']}: {kind['example_message'] or '(no message)'}", LINE_CHARS)
        for line in evidence.of(kind):
            yield plain(f"  its log: {line.host}/{line.service}: {line.level}: {line.message}", LINE_CHARS)
        yield plain(f"  in common: {kind['verdict']}", 2 * LINE_CHARS)
        if kind["suggestion"]:
            yield plain(f"  to do: {kind['suggestion']}", LINE_CHARS)


def summary(answer: Mapping[str, Any]) -> Iterator[str]:
    """What the answer rests on."""
    looked = answer["looked_at"]
    age = max(0.0, time.time() - answer["at"])
    yield (
        f"{looked['failures']} failures among {looked['attempts']} attempts at {looked['jobs']} jobs of the last "
        f"{looked['days']} days, as of {age:.0f} s ago"
    )
    if looked["without_parameters"]:
        yield f"{looked['without_parameters']} jobs were counted but not compared: their parameters are not known"
    if looked["limit"]:
        yield plain(looked["limit"], LINE_CHARS)
    if answer["more_kinds"]:
        yield f"{answer['more_kinds']} rarer kinds with {answer['more_failures']} failures are not shown"


def _what(kind: Mapping[str, Any]) -> str:
    return plain(f"{kind['title']} in {kind['where']}" if kind["where"] else kind["title"], LINE_CHARS)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
