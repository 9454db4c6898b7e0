"""Files that hold a secret: nobody else's to read, seen whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from generator.errors import UserError
from generator.planned import UID


def create(path: Path, make: Callable[[], bytes]) -> bool:
    if path.exists():
        return False
    replace(path, make())
    return True


def replace(path: Path, content: bytes, owner: int | None = None, *, mode: int = 0o600) -> None:
    """Write under another name, synced, then rename: a reader sees the old secret or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        os.fchmod(file.fileno(), mode)  # last, and whatever the umask
    temporary.replace(path)


def overwrite(path: Path, content: bytes, owner: int) -> None:
    """Write into the file that is there. Who reads at this moment may see half of it and has to look again."""
    descriptor = os.open(path, os.O_WRONLY)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o600)
        os.fchown(file.fileno(), owner, owner)


class told:  # noqa: N801  (reads as a verb at the call)
    """Turn the operating system's refusals into a sentence that says what to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PermissionError):
            hint = f"secrets belong to uid {UID}, which the containers run as; run this as root"
            raise UserError(f"{error.filename or self.folder}: {hint}") from error
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{error.filename}: missing; run `python -m generator secrets`") from error
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or self.folder}: {error.strerror}") from error
