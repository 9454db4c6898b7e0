"""cluster.yaml → Cluster, with the line of every value. Everything wrong with it is told at once.

`read_as` does the same for any other file that has a model: models.lock.yaml.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from generator.errors import Problem, UserError
from generator.explain import explain, nearest_line
from generator.marks import FileKind, Mark, parse, show, show_path
from generator.marks import Path as KeyPath
from generator.model import Cluster

T = TypeVar("T", bound=BaseModel)
CLUSTER = FileKind(
    "cluster.yaml",
    start="write a commented one with: python -m generator init",
    example="the file that `python -m generator init` writes",
    keys="name:, hosts:, models: ...",
    root=Cluster,
)
MAX_BYTES = 4 << 20
MAX_PROBLEMS = 200
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Loaded:
    """A cluster.yaml that fits the model; `checks.check` judges what needs two of its values."""

    cluster: Cluster
    marks: Mapping[KeyPath, Mark]
    file: str

    def line(self, path: KeyPath) -> int:
        return nearest_line(path, self.marks)

    def problem(self, path: KeyPath, hint: str, value: object = "") -> Problem:
        """A problem with what stands at `path`; `value` is shown where the file holds none (a default)."""
        return problem_at(path, hint, self.marks, self.file, value)


def problem_at(path: KeyPath, hint: str, marks: Mapping[KeyPath, Mark], file: str, value: object = "") -> Problem:
    """As `Loaded.problem`, for any marked file."""
    written = str(marks[path].raw if path in marks else value)
    return Problem(hint, file, nearest_line(path, marks), show_path(path), written and show(written, quote=False))


def load(path: Path) -> Loaded:
    """Raises UserError with every problem of text, types, bounds and keys; for the rest see `checks.check`."""
    cluster, marks = read_as(path, Cluster, CLUSTER)
    return Loaded(cluster, marks, str(path))


def load_text(text: str, path: Path) -> Loaded:
    """As `load`, of a text that is to stand in `path`."""
    cluster, marks = parse_as(text, str(path), Cluster, CLUSTER)
    return Loaded(cluster, marks, str(path))


def read_as(path: Path, shape: type[T], kind: FileKind) -> tuple[T, Mapping[KeyPath, Mark]]:
    """The file as a value of `shape`, and where each of its parts stands; UserError with every problem."""
    file = str(path)
    return parse_as(_decode(_read(path, file, kind), file), file, shape, kind)


def parse_as(text: str, file: str, shape: type[T], kind: FileKind) -> tuple[T, Mapping[KeyPath, Mark]]:
    """As `read_as`, of a text that stands (or is to stand) in `file`."""
    document = parse(text, file, kind)
    problems = document.problems
    try:
        # Strict JSON mode coerces nothing: "80", 80.0 and true are no port, 3232235786 is no address.
        value = shape.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        told = {problem.path for problem in problems}
        problems += explain(errors[:MAX_PROBLEMS], document.marks, file, told, kind)
        raise UserError(_most(problems, max(0, len(errors) - MAX_PROBLEMS), file)) from None
    if problems:
        raise UserError(_most(problems, 0, file))
    return value, document.marks


def by_line(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.line or 1 << 30)


def _most(problems: list[Problem], untold: int, file: str) -> list[Problem]:
    """A wrong file can have a problem on every line; the first ones say enough."""
    told = by_line(problems)[:MAX_PROBLEMS]
    untold += len(problems) - len(told)
    return [*told, Problem(f"and {untold:,} more problems; put these right first", file)] if untold else told


def _read(path: Path, file: str, kind: FileKind) -> bytes:
    try:
        # Not blocking: opening a named pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(Problem("not a regular file; copy its content into one", file))
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(Problem(_why_unreadable(error, kind), file)) from None
    if len(content) > MAX_BYTES:
        hint = f"larger than {MAX_BYTES >> 20} MiB; this is not a {kind.name}, name the right file"
        raise UserError(Problem(hint, file))
    return content


def _why_unreadable(error: OSError | ValueError, kind: FileKind) -> str:
    match error.errno if isinstance(error, OSError) else errno.EINVAL:
        case errno.ENOENT:
            return f"no such file; {kind.start}"
        case errno.EACCES | errno.EPERM:
            return "no permission to read it; run as its owner, or change its mode with chmod"
        case errno.EISDIR:
            return f"this is a folder; name the {kind.name} in it"
        case errno.ENOTDIR:
            return "a part of this path is a file, not a folder; check the spelling"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read ({reason}); check the path and the disk"


def _decode(content: bytes, file: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(Problem("saved as UTF-16; save it as UTF-8", file))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = "holds bytes that are not UTF-8; save the file as UTF-8, or name the right file"
        raise UserError(Problem(hint, file, line)) from None
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        hint = "control character (a binary file?); remove it, or name the right file"
        raise UserError(replace(Problem(hint, file, line), value=f"U+{ord(found.group()):04X}"))
    return text
