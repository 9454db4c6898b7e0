"""One line of a service's log, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_LINES = 20_000
"""About one job from one source; more is a log gone mad, and says nothing more."""
_TOLD = ("event", "reason", "result", "detail")


@dataclass(frozen=True)
class LogLine:
    """`at` is a Unix time in seconds, by the clock of the host that the line comes from."""

    at: float
    host: str
    service: str
    message: str
    level: str = ""


def described(fields: Mapping[str, Any]) -> tuple[str | None, str]:
    """`(message, level)` of a line's fields, with what else a person wants to know; no message: none of ours."""
    message, log = fields.get("message"), fields.get("log")
    level = fields.get("log.level") or (log.get("level") if isinstance(log, Mapping) else None)
    if not isinstance(message, str):
        return None, ""
    told = " ".join(f"{name}={fields[name]}" for name in _TOLD if fields.get(name))
    return f"{message} ({told})" if told else message, level if isinstance(level, str) else ""
