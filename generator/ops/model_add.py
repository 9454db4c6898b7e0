"""`models add`: bring one file into the models folder, find out its size and checksum, and write its entry."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from generator.errors import Unhealthy, UserError
from generator.lock_edit import with_entry
from generator.model import FILE_NAME, ModelKind
from generator.models_lock import CONVERT, LockedModel, is_pickle, load_lock, name_of, wrong_address
from generator.ops.download import Download, Wanted
from generator.ops.init import write_whole
from generator.ops.model_store import READ_BYTES, State, Store, checksum
from generator.ops.models import Teller, show_bytes, told
from generator.ops.source import Limits, SourceError, open_client
from generator.progress import Progress, Task
from generator.tensor_file import NotTensorsError, check_file

UNKNOWN_SHA256 = "0" * 64


@dataclass(frozen=True)
class Addition:
    """What the user says about a new model. `origin`: a file's path or an address."""

    origin: str
    kind: ModelKind
    name: str | None = None
    source: str | None = None
    license: str | None = None
    replace: bool = False

    @property
    def is_url(self) -> bool:
        return self.origin.startswith(("http://", "https://"))


def add(
    store: Store, lock_file: Path, addition: Addition, progress: Progress, limits: Limits | None = None
) -> LockedModel:
    """The new entry. The file is in place before the entry is written, so the lock never tells of what is not there."""
    draft = _draft(addition)
    if not lock_file.parent.is_dir():
        raise UserError(f"{lock_file.parent}: no such folder; name the file with --lock")
    with told(store.folder), store.locked():
        old = _entry(lock_file, draft)
        if old is not None and not addition.replace:
            raise UserError(f"{lock_file} has a {draft.kind.value} of the name {draft.stem} already; add --replace")
        store.make_folder(draft.kind)
        with progress.task(draft.place) as task:
            model = _bring(store, addition, draft, limits or Limits(), task, progress)
            task.finish(f"{show_bytes(model.size)}, sha256 {model.sha256[:12]}…")
        if old is not None:
            kept = {
                "source": model.source or old.source,
                "mirrors": old.mirrors,
                "license": model.license or old.license,
            }
            for url in {kept["source"], *old.mirrors} - {None, model.source} if model.sha256 != old.sha256 else ():
                progress.warn(f"{model.place}: the lock still names {url}: does it have the new content, too?")
            model = model.model_copy(update=kept)
        _enter(lock_file, model, old)
    return model


def _enter(lock_file: Path, model: LockedModel, old: LockedModel | None) -> None:
    """`old`: the entry of this name as it was found. What a link leads to is written, not the link."""
    real = lock_file.resolve()
    with _alone(real.parent):
        if _entry(lock_file, model) != old:
            raise UserError(f"{lock_file}: another command has changed {model.place} meanwhile; look, and do it again")
        text = real.read_bytes().decode("utf-8-sig") if real.exists() else ""
        write_whole(real, with_entry(text, model, str(lock_file)).encode(), force=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Those who fill other models folders may write the same lock. Where folders cannot be locked (NFS), as well as
    it goes without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def secret_looking(url: str) -> list[str]:
    """The names of the parameters of an address that look like a key to it."""
    return [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True) if _SECRET.search(name)]


_SECRET = re.compile(r"token|secret|signature|password|credential|(^|[_-])(key|sig|auth|pass)($|[_-])|apikey", re.I)


def _draft(addition: Addition) -> LockedModel:
    """Everything but size and checksum, judged before a byte is read."""
    if addition.is_url and (wrong := wrong_address(addition.origin)):
        raise UserError(f"{addition.origin.split('?')[0]}: {wrong}")
    name = addition.name or name_of(addition.origin)
    source = addition.source or (addition.origin if addition.is_url else None)
    problems = [f"{addition.origin}: {CONVERT}"] if is_pickle(name_of(addition.origin)) else []
    problems += [f"{source.split('?')[0]}: {wrong}" for wrong in [wrong_address(source)] if wrong] if source else []
    if source and (names := secret_looking(source)):
        problems.append(
            f"{source.split('?')[0]}: {', '.join(names)} would stand in the lock for all to read; "
            "name an address without it with --source"
        )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    try:
        return LockedModel(
            name=name, kind=addition.kind, size=10, sha256=UNKNOWN_SHA256, source=source, license=addition.license
        )
    except ValidationError as error:
        fields = ", ".join(sorted({str(one["loc"][0]) for one in error.errors()}))
        hint = f"names hold letters, digits, dots, dashes and underscores ({FILE_NAME}); give one with --name"
        raise UserError(f"{name}: not usable as it is ({fields}); {hint}") from None


def _entry(lock_file: Path, draft: LockedModel) -> LockedModel | None:
    if not lock_file.exists() or not lock_file.read_bytes().strip():
        return None
    return next((one for one in load_lock(lock_file).lock.models if one.place.lower() == draft.place.lower()), None)


def _bring(
    store: Store, addition: Addition, draft: LockedModel, limits: Limits, task: Task, progress: Progress
) -> LockedModel:
    part, path = store.part(draft), store.path(draft)
    tell = Teller(task, progress.mode, None).tell
    if addition.is_url:
        size, digest = _download(store, addition.origin, part, limits, tell)
    else:
        origin = Path(addition.origin)
        if path.exists() and origin.exists() and path.samefile(origin):
            return _checked_in_place(draft, path, tell)
        store.drop_part(draft)
        try:
            size, digest = _copy(store, origin, part, tell)
        except BaseException:
            store.drop_part(draft)  # it would not be gone on with
            raise
    model = draft.model_copy(update={"size": size, "sha256": digest})
    if path.exists() and not addition.replace and store.verify(model).state is not State.OK:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} is there already, with another content; add --replace, or another --name")
    try:
        store.put(model, part)
    except NotTensorsError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{addition.origin}: {error}") from None
    return model


def _checked_in_place(draft: LockedModel, path: Path, tell: Callable[[int], None]) -> LockedModel:
    try:
        check_file(path)
    except NotTensorsError as error:
        raise UserError(f"{path}: {error}") from None
    digest = checksum(path, tell)
    return draft.model_copy(update={"size": path.stat().st_size, "sha256": digest})


def _copy(store: Store, origin: Path, part: Path, tell: Callable[[int], None]) -> tuple[int, str]:
    """Beside its place first; the origin is judged before gigabytes are copied."""
    if origin.exists() and not origin.is_file():  # a pipe would be waited for
        raise UserError(f"{origin}: not a file; name a .safetensors file or an address")
    try:
        check_file(origin)
    except NotTensorsError as error:
        raise UserError(f"{origin}: {error}") from None
    except OSError as error:
        raise UserError(f"{origin}: {error.strerror}; name a .safetensors file or an address") from None
    if short := store.missing_space(origin.stat().st_size):
        raise UserError(f"{store.folder}: {show_bytes(short)} more space is needed")
    digest, size = hashlib.sha256(), 0
    with origin.open("rb") as source, part.open("wb") as target:
        while piece := source.read(READ_BYTES):
            digest.update(piece)
            size += len(piece)
            target.write(piece)
            tell(size)
        target.flush()
        os.fsync(target.fileno())
    return size, digest.hexdigest()


def _download(store: Store, url: str, part: Path, limits: Limits, tell: Callable[[int], None]) -> tuple[int, str]:
    with open_client(limits) as client:
        download = Download(
            client, part, Wanted(), limits, lambda have, _: tell(have), missing_space=store.missing_space
        )
        try:
            arrived = download.fetch(url)
        except SourceError as error:
            raise Unhealthy(f"{url.split('?')[0]}: {error}") from None
    return arrived.size, arrived.sha256
