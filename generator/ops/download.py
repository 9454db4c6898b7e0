"""One file from one of several addresses: resumed where it stopped, hashed as it comes, never trusted before the end.

A partial file is kept beside a small note of where it came from and which version it was (the server's ETag), so a
later run goes on with `Range` and `If-Range` (RFC 9110, 13.1.5 and 14.2). The checksum judges the whole in the end: a
part that another version or another server has spoilt is thrown away, and the file is fetched once more from its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from generator.ops.source import (
    BrokenError,
    Limits,
    SourceError,
    contradict,
    opened,
    refuse_status,
    transport_errors,
    validator_of,
)
from generator.tensor_file import HEAD_BYTES, NotTensorsError, check_head

READ_BYTES = 1 << 20
PROGRESS_BYTES = 1 << 20
"""An attempt that gained this much more than any before it starts the count of failures anew."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})\Z")


class StoppedError(Exception):
    """The user has had enough."""


class _SpoiltPart(Exception):  # noqa: N818  (as BrokenError)
    """What was there and what came do not make one file; the part is gone, and one more try is worth it."""


@dataclass(frozen=True)
class Wanted:
    """What the file must be; None where that is to be found out."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Arrived:
    size: int
    sha256: str
    url: str


@dataclass
class Download:
    """`part` is the partial file; `told` hears (bytes there, bytes in all or None) for every piece that comes.

    `missing_space` says of how many bytes to come the disk has too few; it is asked once a server has said how many.
    """

    client: httpx.Client
    part: Path
    wanted: Wanted
    limits: Limits = field(default_factory=Limits)
    told: Callable[[int, int | None], None] = lambda _have, _total: None
    stop: threading.Event = field(default_factory=threading.Event)
    missing_space: Callable[[int], int] = lambda _bytes: 0

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()
        self._have = 0
        self._pure = True
        """All of the part came in one answer of one server: a wrong checksum is then that server's own."""
        self._read_part = False

    def fetch(self, url: str) -> Arrived:
        """The whole file, checked and synced, in `part`. SourceError, StoppedError; OSError when the disk refuses."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        failures, best, spoilt = 0, self._here(), False
        while True:
            try:
                return self._attempt(url)
            except _SpoiltPart as error:
                if spoilt:
                    raise SourceError(str(error)) from None
                spoilt = True
            except BrokenError as error:
                failures = 1 if self._have - best >= PROGRESS_BYTES else failures + 1
                best = max(best, self._have)
                if failures >= self.limits.tries:
                    raise SourceError(f"{error}; tried {failures} times") from None
                self._pause(failures, error.pause_seconds)

    def discard(self) -> None:
        """Forget what has come so far."""
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._hash, self._have, self._pure, self._read_part = hashlib.sha256(), 0, True, True

    @property
    def _note(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def _pause(self, failures: int, asked: float) -> None:
        pause = max(asked, self.limits.first_pause_seconds * 2 ** (failures - 1))
        if self.stop.wait(min(pause, self.limits.longest_pause_seconds)):
            raise StoppedError("stopped; what has arrived is kept")

    # --- the partial file ----------------------------------------------------------------------------------------

    def _here(self) -> int:
        """Size of the part. What an earlier run has left is read once, for its checksum."""
        if not self._read_part:
            self._read_part = True
            if self.part.is_symlink() or self._note.is_symlink():
                self.discard()  # never one of ours, and it may lead anywhere
            if self.part.exists():
                self._pure = False
                with self.part.open("rb") as file:
                    while piece := file.read(READ_BYTES):
                        self._add(piece)
        return self._have

    def _add(self, piece: bytes) -> None:
        if self.stop.is_set():
            raise StoppedError("stopped; what has arrived is kept")
        self._hash.update(piece)
        self._have += len(piece)
        self.told(self._have, self.wanted.size)

    def _remember(self, url: str, validator: str) -> None:
        self._note.write_text(json.dumps({"url": url, "validator": validator}))

    def _validator(self, url: str) -> str:
        """The version that the part is of, if it came from this address."""
        try:
            note = json.loads(self._note.read_text())
            return str(note["validator"]) if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    # --- one request ---------------------------------------------------------------------------------------------

    def _attempt(self, url: str) -> Arrived:
        size = self.wanted.size
        validator = self._validator(url)
        have = self._here()
        if (size is not None and have > size) or (self.wanted.sha256 is None and have and not validator):
            self.discard()
            have = 0
        if size is None or have < size:
            with transport_errors():
                self._ask(url, have, validator)
        return self._judge(url)

    def _ask(self, url: str, have: int, validator: str) -> None:
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and validator:
            headers["If-Range"] = validator
        with opened(self.client, url, headers) as answer:
            if answer.status_code == 416 and have:
                raise self._spoilt("the server has no more than what is here already")
            refuse_status(answer)
            start, total = self._place_of(answer, have)
            if self.wanted.size is not None and total not in (None, self.wanted.size):
                raise SourceError(f"it has {total} bytes there instead of {self.wanted.size}: another file or version")
            if total is not None and (short := self.missing_space(total - start)):
                raise SourceError(f"it has {total} bytes; {short} bytes more space are needed here")
            if start == 0:
                self.discard()
                self._remember(url, validator_of(answer))
            else:
                self._go_on(validator, validator_of(answer))
            self._receive(answer, total)

    def _go_on(self, validator: str, theirs: str) -> None:
        """The answer's bytes belong behind the part's."""
        if contradict(validator, theirs):  # If-Range should have seen to it
            raise self._spoilt("it answered with a part of another version")
        if not validator:  # of no version any more, as its bytes come from several places
            self._note.unlink(missing_ok=True)
        self._pure = False

    def _place_of(self, answer: httpx.Response, have: int) -> tuple[int, int | None]:
        """Where the answer's bytes belong, and how many the whole file has as far as the server says."""
        if answer.status_code != 206:
            length = answer.headers.get("Content-Length", "")
            return 0, int(length) if length.isdecimal() and len(length) < 16 else None
        found = _RANGE.match(answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            raise self._spoilt("it answered with another part of the file than was asked for")
        return have, int(found[3])

    def _spoilt(self, message: str) -> _SpoiltPart:
        self.discard()
        return _SpoiltPart(message)

    def _receive(self, answer: httpx.Response, total: int | None) -> None:
        most = self.wanted.size if self.wanted.size is not None else total
        # Unbuffered: what a killed process had received is in the file.
        with self.part.open("ab", buffering=0) as file:
            pace = _Pace(self.limits, self._have)
            for piece in answer.iter_raw():
                if most is not None and self._have + len(piece) > most:
                    self.discard()
                    raise SourceError(f"it sends more than {most} bytes")
                _write(file, piece)
                self._add(piece)
                pace.check(self._have)
                if self._have - len(piece) < HEAD_BYTES <= self._have:
                    self._look_at_head()
        if most is not None and self._have < most:
            raise BrokenError(f"the answer ended after {self._have} of {most} bytes")

    def _look_at_head(self) -> None:
        with self.part.open("rb") as file:
            head = file.read(HEAD_BYTES)
        try:
            check_head(head)
        except NotTensorsError as error:
            self.discard()
            raise SourceError(str(error)) from None

    def _judge(self, url: str) -> Arrived:
        arrived = Arrived(self._have, self._hash.hexdigest(), url)
        if self.wanted.sha256 in (None, arrived.sha256):
            with self.part.open("rb") as file:
                os.fsync(file.fileno())
            return arrived
        message = f"its sha256 is {arrived.sha256} instead of {self.wanted.sha256}: another file or version"
        pure = self._pure
        if pure:
            self.discard()
            raise SourceError(message)
        raise self._spoilt(message)


class _Pace:
    """A server that sends a byte now and then never runs into a time limit for a single read."""

    def __init__(self, limits: Limits, have: int) -> None:
        self._limits = limits
        self._have = have
        self._since = time.monotonic()

    def check(self, have: int) -> None:
        if time.monotonic() - self._since < self._limits.stall_seconds:
            return
        if have - self._have < self._limits.stall_bytes:
            raise BrokenError(f"stalled: {have - self._have} bytes in {self._limits.stall_seconds:g} s")
        self._have, self._since = have, time.monotonic()


def _write(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
