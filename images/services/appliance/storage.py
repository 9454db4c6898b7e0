"""The two volumes: their markers, the attempt folders, and COMMIT, the last arbiter of which attempt won."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.errors import StorageError
from appliance.job import attempt_folder, job_folder

MARKER = ".animatediff-ha"
MODEL_FOLDERS = ("checkpoint", "motion_module", "lora", "vae", "controlnet")
OWNER = 10001
COMMIT_BYTES = 1 << 20
NAME_BYTES = 255
CHECKPOINT = re.compile(r"\.?(?P<fence>\d{1,20})-")  # as the webui names them, finished or not


class WrongFileError(StorageError):
    """A result that is not what its webui says, on a disk that answers."""


@dataclass(frozen=True)
class ResultFile:
    name: str
    media_type: str
    size_bytes: int
    sha256: str

    @classmethod
    def parse(cls, raw: Any) -> ResultFile:
        """Raises ValueError for anything that is not a plain file inside an attempt's folder."""
        if not isinstance(raw, dict):
            raise ValueError(f"{raw!r} is not a file description")
        try:
            name, media_type, size = str(raw["name"]), str(raw["media_type"]), int(raw["size_bytes"])
            digest = str(raw["sha256"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"a file description is incomplete: {error!r}") from error
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is not a plain file name")
        return cls(name, media_type, size, digest)


@dataclass(frozen=True)
class Commit:
    """The content of COMMIT."""

    job: str
    fence: int
    worker: str
    files: tuple[ResultFile, ...]
    committed_at: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Commit:
        try:
            return cls.parse_object(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise StorageError(f"COMMIT is not JSON: {error}") from error

    @classmethod
    def parse_object(cls, raw: Any) -> Commit:
        try:
            files = tuple(ResultFile.parse(item) for item in raw["files"])
            return cls(str(raw["job"]), int(raw["fence"]), str(raw["worker"]), files, float(raw["committed_at"]))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise StorageError(f"COMMIT cannot be understood: {error}") from error


def reason_of(error: Exception) -> str:
    """Without the path, which an OSError's own text has: what is said of a job, its user reads."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def is_plain_name(name: str) -> bool:
    """Half a surrogate pair, which no file system takes, is not printable."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        return False
    return len(name.encode()) <= NAME_BYTES


def has_marker(root: Path) -> bool:
    return (root / MARKER).is_file()


def prepare(root: Path, folders: tuple[str, ...] = ()) -> None:
    """Makes a volume root what the services expect; repeating it changes nothing."""
    try:
        for folder in (root, *(root / name for name in folders)):
            folder.mkdir(parents=True, exist_ok=True)
            _give_away(folder)
        marker = root / MARKER
        if not marker.exists():
            marker.write_text("A volume of this appliance. Services are not ready without this file.\n")
        _give_away(marker)
    except OSError as error:
        raise StorageError(f"{root}: cannot be prepared: {error}") from error


def find_problems(root: Path, folders: tuple[str, ...] = ()) -> list[str]:
    if not root.is_dir():
        return [f"{root}: is not there; mount the volume, then run `appliance storage-init --create`"]
    problems = []
    if not has_marker(root):
        problems.append(
            f"{root}: has no {MARKER}; either the volume is not mounted (check the mount first) or it is new "
            "(then run `appliance storage-init --create`)"
        )
    problems += [
        f"{root / name}: is missing; run `appliance storage-init --create`"
        for name in folders
        if not (root / name).is_dir()
    ]
    return problems


def _give_away(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, OWNER, OWNER)


def read_commit(jobs_dir: Path, job_id: str) -> Commit | None:
    try:
        text = _read_file(jobs_dir / job_folder(job_id) / "COMMIT", COMMIT_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"COMMIT of {job_id} cannot be read: {reason_of(error)}") from error
    return Commit.parse(text)


def write_commit(jobs_dir: Path, commit: Commit) -> Commit:
    """Creates COMMIT exclusively and returns the winner's, which may be another attempt's.

    link(2) is atomic and refuses an existing name also on NFS and CephFS, and never shows a half-written file.
    """
    folder = jobs_dir / job_folder(commit.job)
    temporary = folder / f".COMMIT.{commit.fence}.{os.getpid()}"
    try:
        try:
            _write_durably(temporary, commit.to_json())
            os.link(temporary, folder / "COMMIT")
        except (FileExistsError, FileNotFoundError) as error:
            # Not found: the winner has tidied up, this attempt's temporary file included.
            winner = read_commit(jobs_dir, commit.job)
            if winner is None:
                raise StorageError(f"COMMIT of {commit.job} cannot be written: {reason_of(error)}") from error
            return winner
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            _sync_folder(folder)
    except OSError as error:
        raise StorageError(f"COMMIT of {commit.job} cannot be written: {reason_of(error)}") from error
    return commit


def new_commit(job_id: str, fence: int, worker: str, files: tuple[ResultFile, ...]) -> Commit:
    return Commit(job_id, fence, worker, files, round(time.time(), 3))


def verify_files(jobs_dir: Path, job_id: str, fence: int, files: tuple[ResultFile, ...]) -> None:
    """The files a webui reported are there with their sizes; raises WrongFileError naming the first that is not."""
    if not files:
        raise WrongFileError("the webui reported no files")
    if len(json.dumps([asdict(file) for file in files])) > COMMIT_BYTES // 2:  # what is written must be readable again
        raise WrongFileError(f"the webui reported {len(files)} files, more than a COMMIT can describe")
    folder = jobs_dir / attempt_folder(job_id, fence)
    for file in files:
        path = folder / file.name
        try:
            size = own_file_size(jobs_dir, path)
        except OSError as error:
            raise StorageError(f"{file.name}: cannot be looked at: {reason_of(error)}") from error
        if size is None:
            raise WrongFileError(f"{file.name}: reported but not there, or no plain file")
        if size != file.size_bytes:
            raise WrongFileError(f"{file.name}: has {size} bytes, reported were {file.size_bytes}")


def own_file_size(root: Path, path: Path) -> int | None:
    """None unless it is a plain file which no link leads to: one might lead to a secret. Raises OSError when the disk
    does not say."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) and _is_inside(root, path) else None


def make_attempt_folder(jobs_dir: Path, job_id: str, fence: int) -> None:
    """Each new folder's name is on disk before anything goes into it; the volume's root is never made."""
    try:
        for chance_left in (True, True, False):
            try:
                _make_durably(jobs_dir, Path(attempt_folder(job_id, fence)))
                return
            except FileNotFoundError:  # a day's folder, empty until now, was removed with the last old job in it
                if not chance_left:
                    raise
    except OSError as error:
        raise StorageError(f"the attempt's folder cannot be made: {reason_of(error)}") from error


def write_result(jobs_dir: Path, job_id: str, fence: int, name: str, media_type: str, content: bytes) -> ResultFile:
    """One file of an attempt's result, whole and on the disk or not at all. The attempt's folder must be there."""
    folder = jobs_dir / attempt_folder(job_id, fence)
    temporary = folder / f".{name}.tmp"
    try:
        if not is_plain_name(name) or not _is_inside(jobs_dir, folder / name):
            raise StorageError(f"{name}: is not inside the attempt's folder")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
        _sync_folder(folder)
    except OSError as error:
        raise StorageError(f"{name}: cannot be written: {reason_of(error)}") from error
    return ResultFile(name, media_type, len(content), hashlib.sha256(content).hexdigest())


def _make_durably(root: Path, relative: Path) -> None:
    folder = root
    for part in relative.parts:
        parent, folder = folder, folder / part
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            _sync_folder(parent)


def remove_losers(jobs_dir: Path, commit: Commit) -> None:
    """Deletes every attempt but the winner's, and the checkpoints. Best effort: a leftover costs space, no more."""
    job = jobs_dir / job_folder(commit.job)
    for folder in _children(jobs_dir, job / "attempts"):
        if folder.name != str(commit.fence):
            _remove(jobs_dir, folder)
    _remove(jobs_dir, job / "checkpoint")
    for path in _children(jobs_dir, job):
        if path.name.startswith(".COMMIT."):
            _remove(jobs_dir, path)


def remove_attempt(jobs_dir: Path, job_id: str, fence: int) -> None:
    """Never the winner's: a zombie that is fenced may have been the one that created COMMIT."""
    winner = read_commit(jobs_dir, job_id)
    if winner is not None and winner.fence == fence:
        return
    _remove(jobs_dir, jobs_dir / attempt_folder(job_id, fence))


def remove_checkpoint(jobs_dir: Path, job_id: str, fence: int) -> None:
    """What this attempt has written and those before it; never what a newer one goes on from."""
    folder = jobs_dir / job_folder(job_id) / "checkpoint"
    for path in _children(jobs_dir, folder):
        written_by = CHECKPOINT.match(path.name)
        if written_by is None or int(written_by["fence"]) <= fence:
            _remove(jobs_dir, path)
    if _is_inside(jobs_dir, folder):
        with contextlib.suppress(OSError):  # a newer attempt's are in there
            folder.rmdir()


def remove_job(jobs_dir: Path, job_id: str) -> None:
    """Everything of a job that nobody asks for any more; raises StorageError where something stays."""
    if not has_marker(jobs_dir):
        raise StorageError(f"{jobs_dir}: has no {MARKER}: not mounted")
    try:
        folder = jobs_dir / job_folder(job_id)
    except (ValueError, OverflowError, OSError) as error:
        raise StorageError(str(error)) from error
    # The index first: whoever sees half a folder finds no COMMIT that names files which are gone.
    if _is_inside(jobs_dir, folder):
        with contextlib.suppress(OSError):
            (folder / "COMMIT").unlink()
    _remove(jobs_dir, folder)
    if os.path.lexists(folder):
        raise StorageError(f"{folder}: cannot be removed")
    for parent in list(folder.relative_to(jobs_dir).parents)[:-1]:
        try:
            (jobs_dir / parent).rmdir()
        except OSError:
            return  # other jobs are in there


def _remove(root: Path, path: Path) -> None:
    """Removes a file, a link (never what it points to) or a folder, unless a link leads out of `root` on the way."""
    if not _is_inside(root, path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_inside(root: Path, path: Path) -> bool:
    """Whether the folder of `path` is really where its name says, below the root."""
    try:
        return path.parent.resolve() == root.resolve() / path.parent.relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _children(root: Path, folder: Path) -> Iterator[Path]:
    if not _is_inside(root, folder / "child"):
        return
    try:
        yield from list(folder.iterdir())
    except OSError:
        return


def _read_file(path: Path, limit: int) -> str:
    """Raises OSError or ValueError for what is no file of ours: a link, a pipe (one would wait for it), a huge one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > limit:
            raise ValueError(f"no regular file of at most {limit} bytes")
        return file.read(limit).decode()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
