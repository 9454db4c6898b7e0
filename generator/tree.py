"""The rendered folder on disk: compare, write, prune, remember. The only writer of rendered files.

    rendered/<host>/            what `docker compose up` runs
    rendered/.history/NNNNNN/   the last five renders, whole, to compare with or to go back to by hand
    rendered/.at-work           who changes the running cluster, locked for as long

A write happens in three steps: everything new is written beside its place and synced (a full disk or a
kill here changes nothing), then renamed into place (which needs no space), then stale files are removed.
Only files that one of the remembered renders wrote are ever removed: secrets, `compose.override.yaml` and
whatever else a person keeps in these folders stay.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from generator.errors import UserError

HISTORY = ".history"
KEPT_RENDERS = 5
_LOCK = ".lock"
_AT_WORK = ".at-work"
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
"""Whatever the umask: the containers' user reads these files, and none of them is a secret."""
_TEMPORARY = ".render-tmp"


class Kind(str, Enum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True)
class Change:
    """One file that a write would touch; `path` is relative to the output folder."""

    kind: Kind
    path: str
    before: bytes = b""
    after: bytes = b""

    def lines(self) -> Iterator[str]:
        """A unified diff of the two contents."""
        before, after = (text.decode("utf-8", "replace").splitlines() for text in (self.before, self.after))
        return difflib.unified_diff(before, after, f"a/{self.path}", f"b/{self.path}", lineterm="")


def diff(out: Path, trees: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[Change]:
    """What writing `trees` (host, {relative path: content}) to `out` would change. Reads only."""
    with _told(out):
        known = _remembered(out)
        changes: list[Change] = []
        hosts = set()
        for host, files in trees:
            hosts.add(host)
            changes += _host_changes(out, host, files, known.get(host, set()))
        for host in sorted(known.keys() - hosts):
            changes += _host_changes(out, host, {}, known[host])
    return changes


def write(out: Path, trees: Iterable[tuple[str, Mapping[str, bytes]]]) -> list[Change]:
    """Bring `out` up to `trees` and return what changed. All or nothing up to the renames.

    Raises `UserError` when the disk is full, the folder cannot be written, or another render is under way.
    """
    with _told(out):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            _sweep(out)
            staged = out / HISTORY / _TEMPORARY
            try:
                changes = diff(out, _staging(staged, trees))
                temporaries = _write_beside(out, changes)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            _remember(out / HISTORY, staged, changed=bool(changes))
            _put_in_place(out, changes, temporaries)
            _open_up(out)
    return changes


def hosts_gone(changes: Iterable[Change]) -> list[str]:
    """Hosts that a write took out of the rendered folder."""
    gone = (change.path for change in changes if change.kind is Kind.REMOVED)
    return [path.removesuffix("/compose.yaml") for path in gone if path.endswith("/compose.yaml")]


def _host_changes(out: Path, host: str, files: Mapping[str, bytes], known: set[str]) -> list[Change]:
    changes = []
    for path in sorted(files.keys() | known):
        name, place = f"{host}/{path}", out / host / path
        before, after = place.read_bytes() if place.is_file() else None, files.get(path)
        if before is None and after is not None:
            changes.append(Change(Kind.ADDED, name, after=after))
        elif after is None and before is not None:
            changes.append(Change(Kind.REMOVED, name, before=before))
        elif before is not None and after is not None and before != after:
            changes.append(Change(Kind.CHANGED, name, before, after))
    return changes


def _remembered(out: Path) -> dict[str, set[str]]:
    """Host → every path that a remembered render wrote there."""
    known: dict[str, set[str]] = {}
    for render in (out / HISTORY).glob("[0-9]*"):
        for path in render.rglob("*"):
            if path.is_file():
                host, _, relative = path.relative_to(render).as_posix().partition("/")
                known.setdefault(host, set()).add(relative)
    return known


def _staging(
    staged: Path, trees: Iterable[tuple[str, Mapping[str, bytes]]]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Pass `trees` on, leaving a synced copy of each in `staged`."""
    staged.mkdir(parents=True)
    for host, files in trees:
        for path, content in files.items():
            _write_synced(staged / host / path, content)
        yield host, files


def _write_beside(out: Path, changes: list[Change]) -> list[Path]:
    """Write each new content under a temporary name next to its place; on any failure remove them all again."""
    temporaries: list[Path] = []
    try:
        for change in changes:
            if change.kind is not Kind.REMOVED:
                place = out / change.path
                temporaries.append(place.with_name(place.name + _TEMPORARY))
                _write_synced(temporaries[-1], change.after)
    except BaseException:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                _remove_empty_parents(temporary.parent, out)
        raise
    return temporaries


def _put_in_place(out: Path, changes: list[Change], temporaries: list[Path]) -> None:
    for temporary in temporaries:
        temporary.replace(temporary.with_name(temporary.name.removesuffix(_TEMPORARY)))
    for change in changes:
        if change.kind is Kind.REMOVED:
            (out / change.path).unlink(missing_ok=True)
            _remove_empty_parents((out / change.path).parent, out)


def _open_up(out: Path) -> None:
    """Also what an earlier render left closed: a change of mode alone is none of content."""
    for host, paths in _remembered(out).items():
        places = {out / host / path for path in paths}
        for folder in {folder for place in places for folder in place.parents if out / host in folder.parents}:
            _set_mode(folder, _FOLDER_MODE)
        for place in places:
            _set_mode(place, _FILE_MODE)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def _remember(history: Path, staged: Path, *, changed: bool) -> None:
    """Keep the staged copy as the newest render. Before the renames: what a killed write leaves is then known."""
    kept = sorted(path for path in history.iterdir() if path.name.isdigit())
    if not changed and kept:
        shutil.rmtree(staged)
        return
    number = int(kept[-1].name) + 1 if kept else 1
    staged.rename(history / f"{number:06d}")
    for old in kept[: max(0, len(kept) + 1 - KEPT_RENDERS)]:
        shutil.rmtree(old)


def _sweep(out: Path) -> None:
    """Remove what a render that was killed half-way has left beside the real files."""
    shutil.rmtree(out / HISTORY / _TEMPORARY, ignore_errors=True)
    (out / HISTORY).mkdir(exist_ok=True)
    for leftover in out.glob(f"[!.]*/**/*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove_empty_parents(folder: Path, stop: Path) -> None:
    while folder != stop and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


@contextmanager
def alone(out: Path, command: str) -> Iterator[None]:
    """Only one `command` at a time changes what runs from this folder; `UserError` names the one that does.

    The lock goes with the process, so a killed one leaves none behind. The file stays: were it removed, two could each
    have a lock on a file of this name.
    """
    if not out.is_dir():
        raise UserError(f"{out} has not been rendered; run `python -m generator render` first")
    with _told(out):
        descriptor = _open_to_lock(out / _AT_WORK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            other = "another command"
            with suppress(OSError):
                other = (out / _AT_WORK).read_text(encoding="utf-8").strip() or other
            raise UserError(f"{out}: {other} is at work on this cluster; wait for it to end, or stop it") from None
    try:
        with suppress(OSError):  # the lock holds without a name, too
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"`{command}` (process {os.getpid()})\n".encode())
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _open_to_lock(file: Path) -> int:
    """`down` writes nothing: it must work on a full disk, and where somebody else has rendered or was at work."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return os.open(file if file.is_file() else file.parent, os.O_RDONLY)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One render at a time; the lock goes with the process, so a killed one leaves none behind."""
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another render is writing here; wait for it to end") from None
        yield


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a sentence that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename or out}: no permission to write; choose another folder with --out") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{error.filename or out}: a file is in the way of a folder (or the reverse); move it"
        ) from error
    except OSError as error:
        hint = "no file was left half-written; put it right and render again"
        raise UserError(f"{error.filename or out}: {error.strerror}; {hint}") from error
