"""The models folder: one folder per kind, one .safetensors file per model, and how it compares with the lock.

    checkpoint/  motion_module/  lora/  vae/  controlnet/      NAME.safetensors
    KIND/.NAME.safetensors.part (+ .json)                      a pull that has not ended

A file gets its name only when all of it is there, checked and on the disk: workers read this folder at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from generator.errors import UserError
from generator.model import ModelKind
from generator.models_lock import SUFFIX, LockedModel, ModelsLock, is_pickle
from generator.tensor_file import NotTensorsError, check_file

PART = ".part"
READ_BYTES = 1 << 20
SPARE_BYTES = 16 << 20
"""Left free on the disk, for those who share it."""
FILE_SYSTEMS_OWN = "lost+found"
_LOCK = ".models.lock"
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
"""Whatever the umask: the containers' user reads these files, and none of them is a secret."""


class State(str, Enum):
    OK = "ok"
    PRESENT = "present"
    """The right size; its content was not looked at."""
    MISSING = "missing"
    PARTIAL = "partial"
    WRONG_SIZE = "wrong size"
    WRONG_CONTENT = "wrong content"
    UNREADABLE = "unreadable"
    EXTRA = "extra"


@dataclass(frozen=True)
class Finding:
    """One place in the models folder, and what is the case there."""

    place: str
    state: State
    detail: str = ""
    size: int = 0

    @property
    def well(self) -> bool:
        return self.state in (State.OK, State.PRESENT)


@dataclass(frozen=True)
class Store:
    folder: Path

    def path(self, model: LockedModel) -> Path:
        return self.folder / model.place

    def part(self, model: LockedModel) -> Path:
        path = self.path(model)
        return path.with_name(f".{path.name}{PART}")

    def look(self, model: LockedModel) -> Finding:
        """Without reading the content."""
        path, part = self.path(model), self.part(model)
        try:
            found = path.stat()
        except FileNotFoundError:
            if part.is_file():
                have = part.stat().st_size
                return Finding(model.place, State.PARTIAL, f"{have * 100 // model.size} % is there", have)
            return Finding(model.place, State.MISSING)
        except OSError as error:
            return Finding(model.place, State.UNREADABLE, error.strerror or str(error))
        if not stat.S_ISREG(found.st_mode):
            return Finding(model.place, State.UNREADABLE, "not a regular file")
        if found.st_size != model.size:
            detail = f"{found.st_size} bytes instead of {model.size}"
            return Finding(model.place, State.WRONG_SIZE, detail, found.st_size)
        return Finding(model.place, State.PRESENT, size=found.st_size)

    def verify(self, model: LockedModel, told: Callable[[int], None] = lambda _: None) -> Finding:
        """Reading all of the content."""
        finding = self.look(model)
        if finding.state is not State.PRESENT:
            return finding
        try:
            digest = checksum(self.path(model), told)
            if digest != model.sha256:
                return Finding(model.place, State.WRONG_CONTENT, f"its sha256 is {digest}", finding.size)
            check_file(self.path(model))
        except NotTensorsError as error:
            return Finding(model.place, State.WRONG_CONTENT, str(error), finding.size)
        except OSError as error:
            return Finding(model.place, State.UNREADABLE, error.strerror or str(error))
        return Finding(model.place, State.OK, size=finding.size)

    def unknown(self, lock: ModelsLock, used: Collection[str] = ()) -> list[Finding]:
        """Everything that the lock does not know: other models, folders in diffusers' layout, abandoned parts.

        `used`: places that somebody else has named.
        """
        known = {model.place for model in lock.models} | set(used)
        found = []
        for path in self._entries():
            place = path.relative_to(self.folder).as_posix()
            name = path.name.removeprefix(".").removesuffix(".json").removesuffix(PART)
            if place in known or (path.name.startswith(".") and f"{path.parent.name}/{name}" in known):
                continue
            try:
                size = path.stat().st_size if path.is_file() else 0
            except OSError:
                size = 0
            found.append(Finding(place, State.EXTRA, _what(path), size))
        return found

    def _entries(self) -> Iterator[Path]:
        """What lies in the folders of the kinds and beside them; of hidden files, parts only."""
        kinds = {kind.value for kind in ModelKind}
        for top in sorted(self.folder.iterdir()):
            if top.name in kinds and top.is_dir():
                yield from (
                    one for one in sorted(top.iterdir()) if not one.name.startswith(".") or PART in one.suffixes
                )
            elif not top.name.startswith(".") and top.name != FILE_SYSTEMS_OWN:
                yield top

    def put(self, model: LockedModel, part: Path) -> None:
        """Give a whole part its name. NotTensorsError when it is no safetensors file; the caller has its checksum."""
        check_file(part)
        path = self.path(model)
        part.chmod(_FILE_MODE)
        part.replace(path)
        self.drop_part(model)
        _sync_folder(path.parent)

    def drop_part(self, model: LockedModel) -> None:
        """And the note beside it, first: without its part it would be taken for the next one's."""
        part = self.part(model)
        part.with_name(part.name + ".json").unlink(missing_ok=True)
        part.unlink(missing_ok=True)

    def make_folder(self, kind: ModelKind) -> None:
        folder = self.folder / kind.value
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(_FOLDER_MODE)

    def remove(self, place: str) -> None:
        path = self.folder / place
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def missing_space(self, bytes_to_come: int) -> int:
        """How many bytes the disk has too few; 0: enough."""
        disk = os.statvfs(self.folder)
        return max(0, bytes_to_come + SPARE_BYTES - disk.f_bavail * disk.f_frsize)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time; the lock goes with the process, so a killed one leaves none behind."""
        with (self.folder / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = f" (process {pid})" if (pid := file.read(20).strip()) else ""
                hint = "another `models` command is writing here"
                raise UserError(f"{self.folder}: {hint}{who}; wait for it to end") from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def checksum(path: Path, told: Callable[[int], None] = lambda _: None) -> str:
    """sha256 in hex; `told` hears how many bytes have been read."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            done += len(piece)
            told(done)
    return digest.hexdigest()


def _what(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if PART in path.suffixes:
        return "left of a pull"
    if is_pickle(path.name):
        return "a pickle: workers refuse it"
    return "" if path.name.endswith(SUFFIX) else "no model file"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
