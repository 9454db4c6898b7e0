"""How an attempt ends, and what each thing a webui can say or do means for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.agent.webui import WebuiError, WebuiNotThere, WebuiRefused
from appliance.job import Reason
from appliance.queue import FailKind
from appliance.storage import ResultFile


@dataclass(frozen=True)
class Finished:
    """The webui says that these files are written and durable."""

    files: tuple[ResultFile, ...]


@dataclass(frozen=True)
class Failed:
    kind: FailKind
    reason: Reason
    message: str
    where: str = ""
    """The place in the engine's code, if it told one."""

    @property
    def refused(self) -> bool:
        """Webui or storage could not take the job: wait longer and longer before trusting their readiness again."""
        return self.kind is FailKind.REFUSED

    @property
    def worker_in_doubt(self) -> bool:
        """The next job may well fail here too."""
        return self.kind in (FailKind.REFUSED, FailKind.ERROR, FailKind.CRASH, FailKind.OOM)


@dataclass(frozen=True)
class Fenced:
    """Somebody else holds the job now; whatever is here is nobody's."""


Ending = Finished | Failed | Fenced

KIND_OF_REASON = {
    Reason.OOM: FailKind.OOM,
    Reason.INVALID_INPUT: FailKind.PERMANENT,
    Reason.WORKER_LOST: FailKind.RELEASE,
}


def crashed(message: str, reason: Reason = Reason.WORKER_LOST) -> Failed:
    return Failed(FailKind.CRASH, reason, message)


def released(message: str) -> Failed:
    return Failed(FailKind.RELEASE, Reason.WORKER_LOST, message)


def refused(message: str) -> Failed:
    return Failed(FailKind.REFUSED, Reason.WORKER_LOST, message)


def too_late(message: str) -> Failed:
    return Failed(FailKind.PERMANENT, Reason.TIMEOUT, message)


def of_error_event(event: dict[str, Any]) -> Failed:
    reason = Reason.parse(event.get("reason"))
    kind, where = KIND_OF_REASON.get(reason, FailKind.ERROR), event.get("where")
    if event.get("storage") is True:  # it is full, or away: not the job's fault, and its steps are good
        kind = FailKind.REFUSED
    message = str(event.get("message") or "no message")
    return Failed(kind, reason, message, where if isinstance(where, str) else "")


def of_done_event(event: dict[str, Any]) -> Finished | Failed:
    try:
        files = tuple(ResultFile.parse(item) for item in event["files"])
    except (KeyError, TypeError, ValueError) as error:
        return Failed(FailKind.ERROR, Reason.UNKNOWN, f"the webui's result cannot be understood: {error}")
    return Finished(files)


def of_webui_error(error: WebuiError, *, started: bool) -> Failed:
    """A webui that was never reached has not touched the job; one that broke in the middle has crashed."""
    if isinstance(error, WebuiRefused):
        if error.status in (400, 413, 422):
            return Failed(FailKind.PERMANENT, Reason.INVALID_INPUT, error.detail)
        return refused(str(error))
    if isinstance(error, WebuiNotThere) and not started:
        return refused(str(error))
    return crashed(str(error))
