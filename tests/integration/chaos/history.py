"""What was asked, answered, broken and found, one record each, in memory and as lines of JSON for whoever looks later.

Times of calls and faults are monotonic seconds of the machine that runs the test. Jobs' events carry no time of ours: a
job's stream lives in the same replicated data set as the queue's decisions, so its order is the order of those.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

CallOutcome = Literal["accepted", "refused", "unknown"]


@dataclass(frozen=True)
class Submit:
    """One try of one submission; `unknown`: no answer, or one that promises nothing."""

    key: str
    user: str
    kind: str
    """plain, or what the job does to its worker: poison, hungry"""
    api: str
    start: float
    end: float
    outcome: CallOutcome
    status: int
    job: str


@dataclass(frozen=True)
class Cancel:
    job: str
    phase: str
    """When it was meant to hit: waiting, claimed, running, committing."""
    api: str
    start: float
    end: float
    status: int
    """0: no answer. 409: the job had ended before."""
    state: str


@dataclass(frozen=True)
class Read:
    """What a user saw of a job. A result is known by its checksum: every attempt draws with a seed of its own."""

    job: str
    api: str
    start: float
    end: float
    state: str
    fence: int
    result: str


@dataclass(frozen=True)
class Event:
    """An entry of a job's own stream, as the last master had it: what a lost failover undid is not among these."""

    job: str
    entry: str
    type: str
    fence: int
    """Of the attempt that the entry speaks of; 0 where it speaks of none."""
    worker: str
    reason: str


@dataclass(frozen=True)
class CommitFile:
    """COMMIT on storage, and whether the files it names are there."""

    job: str
    fence: int
    worker: str
    result: str
    whole: bool


@dataclass(frozen=True)
class Final:
    """A job's hash when everything had settled."""

    job: str
    state: str
    fence: int
    result: str
    reason: str
    message: str
    attempts: int
    crash_workers: int


@dataclass(frozen=True)
class Leftover:
    """Something in the ledger, the leases or a line of waiting jobs when nothing ran or waited any more."""

    where: str
    what: str


@dataclass(frozen=True)
class Fault:
    kind: str
    target: str
    start: float
    end: float
    hit: str = ""
    """The job that the target held, if any."""


Record = Submit | Cancel | Read | Event | CommitFile | Final | Leftover | Fault
R = TypeVar("R", Submit, Cancel, Read, Event, CommitFile, Final, Leftover, Fault)
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Submit, Cancel, Read, Event, CommitFile, Final, Leftover, Fault)
}


class History:
    def __init__(self, file: Path | None = None) -> None:
        self.records: list[Record] = []
        self.began = time.monotonic()
        self._file: IO[str] | None = file.open("w", buffering=1, encoding="utf-8") if file else None

    def add(self, record: Record) -> None:
        self.records.append(record)
        if self._file is not None:
            self._file.write(json.dumps({"record": type(record).__name__, **asdict(record)}) + "\n")

    def of(self, kind: type[R]) -> Iterator[R]:
        return (record for record in self.records if isinstance(record, kind))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def load(file: Path) -> list[Record]:
    """A history written earlier, to look at again."""
    records: list[Record] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        kind = _KINDS[raw.pop("record")]
        records.append(kind(**{field.name: raw[field.name] for field in fields(kind)}))
    return records
