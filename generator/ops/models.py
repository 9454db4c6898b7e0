"""`models`: bring the model files of models.lock.yaml into the models folder, and hold the folder against it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.markup import escape
from rich.table import Column, Table

from generator.errors import Problem, Unhealthy, UserError
from generator.models_lock import LoadedLock, LockedModel
from generator.ops.download import Arrived, Download, StoppedError, Wanted
from generator.ops.model_store import Finding, State, Store
from generator.ops.source import Limits, SourceError, open_client
from generator.progress import Mode, Progress, Task
from generator.tensor_file import NotTensorsError

MOST_AT_ONCE = 2
"""One slow source must not hold up the next file, but more only share the same line."""
TELL_SECONDS = {Mode.LIVE: 0.2}
TELL_SLOWLY_SECONDS = 5.0
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Pulled:
    """What became of one model. `failures`: address → why it did not give the file."""

    place: str
    state: str
    """present, fetched, failed"""
    size: int
    url: str = ""
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


def choose(loaded: LoadedLock, names: Sequence[str]) -> list[LockedModel]:
    """All models, or those called NAME or KIND/NAME; UserError for a name that the lock does not have."""
    if not names:
        return list(loaded.lock.models)
    chosen: dict[str, LockedModel] = {}
    for name in names:
        found = [m for m in loaded.lock.models if name in (m.name, m.stem, m.place, f"{m.kind.value}/{m.stem}")]
        if not found:
            known = ", ".join(f"{m.kind.value}/{m.stem}" for m in loaded.lock.models) or "none yet"
            raise UserError(f'"{name}" is not in {loaded.file}; it has: {known}')
        chosen |= {model.place: model for model in found}
    return list(chosen.values())


def sources(loaded: LoadedLock, model: LockedModel, mirrors: Sequence[str]) -> list[str]:
    """Every address to ask, the nearest first."""
    bases = [f"{base.rstrip('/')}/{model.place}" for base in (*mirrors, *loaded.lock.mirrors)]
    return list(dict.fromkeys([*bases, *([model.source] if model.source else []), *model.mirrors]))


# --- pull ----------------------------------------------------------------------------------------------------------


def pull(
    store: Store,
    loaded: LoadedLock,
    progress: Progress,
    *,
    names: Sequence[str] = (),
    mirrors: Sequence[str] = (),
    parallel: int = MOST_AT_ONCE,
    limits: Limits | None = None,
) -> list[Pulled]:
    """Fetch what is missing or differs. Every model is tried before `Unhealthy` tells which of them failed."""
    models = choose(loaded, names)
    limits = limits or Limits()
    with told(store.folder), store.locked(), open_client(limits) as client:
        kept = [_kept(store, model, progress) for model in models]
        wanted = [model for model, one in zip(models, kept, strict=True) if one is None]
        _refuse_sourceless(store, loaded, wanted, mirrors)
        _refuse_full_disk(store, wanted)
        for model in wanted:
            store.make_folder(model.kind)
        pull_one = _Pull(store, client, limits, progress, lambda model: sources(loaded, model, mirrors))
        fetched = _side_by_side(pull_one.run, pull_one.stop, wanted, min(parallel, MOST_AT_ONCE))
    results = {one.place: one for one in (*fetched, *(one for one in kept if one))}
    return [results[model.place] for model in models]


def raise_failures(results: Sequence[Pulled]) -> None:
    failed = [one for one in results if one.state == "failed"]
    if failed:
        told = (f"{one.place}: " + "; ".join(f"{url}: {why}" for url, why in one.failures.items()) for one in failed)
        raise Unhealthy("\n".join([*told, f"{len(failed)} of {len(results)} models are not there; pull goes on later"]))


def _kept(store: Store, model: LockedModel, progress: Progress) -> Pulled | None:
    finding = store.look(model)
    if finding.state is State.PRESENT:
        with progress.task(model.place) as task:
            finding = store.verify(model, Teller(task, progress.mode, model.size, "checking").tell)
            task.finish("is there" if finding.well else f"{finding.state.value}: fetched anew")
    elif finding.state in (State.WRONG_SIZE, State.UNREADABLE):
        progress.warn(f"{model.place}: {finding.state.value}, {finding.detail}: fetched anew")
    if not finding.well:
        return None
    store.drop_part(model)
    return Pulled(model.place, "present", model.size)


def _refuse_sourceless(store: Store, loaded: LoadedLock, wanted: Sequence[LockedModel], mirrors: Sequence[str]) -> None:
    problems: list[Problem] = []
    for model in wanted:
        if not sources(loaded, model, mirrors):
            hint = f"no source, and not in {store.folder}; put the file there, add source:, or name a --mirror"
            problems.append(loaded.problem(("models", loaded.lock.models.index(model), "name"), hint))
    if problems:
        raise UserError(problems)


def _refuse_full_disk(store: Store, wanted: Sequence[LockedModel]) -> None:
    there = (part.stat().st_size if (part := store.part(model)).is_file() else 0 for model in wanted)
    to_come = sum(max(0, model.size - have) for model, have in zip(wanted, there, strict=True))
    if to_come and (short := store.missing_space(to_come)):
        raise UserError(f"{store.folder}: {show_bytes(to_come)} are to come, {show_bytes(short)} more space is needed")


@dataclass
class _Pull:
    store: Store
    client: httpx.Client
    limits: Limits
    progress: Progress
    sources: Callable[[LockedModel], list[str]]
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, model: LockedModel) -> Pulled:
        began = time.monotonic()
        failures: dict[str, str] = {}
        with self.progress.task(model.place) as task:
            teller = Teller(task, self.progress.mode, model.size)
            wanted = Wanted(model.size, model.sha256)
            part = self.store.part(model)
            download = Download(self.client, part, wanted, self.limits, lambda have, _: teller.tell(have), self.stop)
            for url in self.sources(model):
                try:
                    arrived = self._from(download, model, url)
                except SourceError as error:
                    failures[url] = str(error)
                    teller.say(f"{url}: {error}")
                    continue
                seconds = time.monotonic() - began
                task.finish(f"{show_bytes(arrived.size)} from {_host(url)}")
                return Pulled(model.place, "fetched", model.size, url, round(seconds, 1), failures)
            task.fail("; ".join(f"{_host(url)}: {why}" for url, why in failures.items()))
        return Pulled(model.place, "failed", model.size, seconds=round(time.monotonic() - began, 1), failures=failures)

    def _from(self, download: Download, model: LockedModel, url: str) -> Arrived:
        arrived = download.fetch(url)
        try:
            self.store.put(model, download.part)
        except NotTensorsError as error:
            download.discard()
            raise SourceError(f"it has the right checksum, but is no model: {error}") from None
        return arrived


def _host(url: str) -> str:
    """Also of an address that httpx would not take."""
    return urlsplit(url).hostname or url


def _side_by_side(
    run: Callable[[LockedModel], Pulled], stop: threading.Event, models: Sequence[LockedModel], parallel: int
) -> list[Pulled]:
    """Threads of our own that do not outlive the process: Ctrl-C does not wait for a server that is silent."""
    waiting, results, errors = deque(models), list[Pulled](), list[BaseException]()

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    model = waiting.popleft()
                except IndexError:
                    return
                results.append(run(model))
        except StoppedError:
            return
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(models)))]
    try:
        for thread in threads:
            thread.start()
        while not errors and any(thread.is_alive() for thread in threads):
            threads[0].join(0.1)
            threads[-1].join(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(0.5)
    if errors:
        raise errors[0]
    return results


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """The operating system's refusals as a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        hint = "what has arrived is kept; put it right and do it again"
        raise UserError(f"{error.filename or folder}: {error.strerror or error}; {hint}") from error


# --- verify, list, prune -------------------------------------------------------------------------------------------


def verify(
    store: Store, loaded: LoadedLock, progress: Progress, *, allow_extra: bool = False, used: Collection[str] = ()
) -> list[Finding]:
    """Every model of the lock, read whole, and what lies there besides (but at the places in `used`)."""
    findings = []
    with told(store.folder):
        for model in loaded.lock.models:
            with progress.task(model.place) as task:
                findings.append(store.verify(model, Teller(task, progress.mode, model.size, "checking").tell))
                task.finish(findings[-1].state.value)
        return findings if allow_extra else [*findings, *store.unknown(loaded.lock, used)]


def survey(store: Store, loaded: LoadedLock) -> list[Finding]:
    """As `verify`, by size alone."""
    with told(store.folder):
        return [*(store.look(model) for model in loaded.lock.models), *store.unknown(loaded.lock)]


def prune(store: Store, load: Callable[[], LoadedLock], *, remove: bool, used: Collection[str] = ()) -> list[Finding]:
    """What neither the lock nor `used` knows; with `remove` it is gone afterwards.

    Of what lies beside the folders of the kinds nothing is touched. `load` is asked when nobody else writes here: an
    `add` that ended a moment ago counts.
    """
    with told(store.folder), store.locked():
        found = [one for one in store.unknown(load().lock, used) if "/" in one.place]
        for one in found if remove else ():
            store.remove(one.place)
    return found


def table(findings: Sequence[Finding], loaded: LoadedLock) -> Table:
    licenses = {model.place: model.license or "" for model in loaded.lock.models}
    sizes = {model.place: model.size for model in loaded.lock.models}
    columns = [Column("model", overflow="fold"), Column("size", justify="right"), *map(Column, ("state", "license"))]
    rows = Table(*columns, box=None, pad_edge=False)
    for one in findings:
        colour = "green" if one.well else "yellow" if one.state in (State.EXTRA, State.PARTIAL) else "red"
        state = f"[{colour}]{one.state.value}[/]" + (f" ({escape(one.detail)})" if one.detail else "")
        size = show_bytes(sizes.get(one.place, one.size))
        rows.add_row(escape(one.place), size, state, escape(licenses.get(one.place, "")))
    return rows


def as_dict(one: Finding | Pulled) -> dict[str, Any]:
    return {key: getattr(value, "value", value) for key, value in asdict(one).items()}


# --- telling -------------------------------------------------------------------------------------------------------


class Teller:
    """How far a file is, as often as the reader can use it: a log file needs no line five times a second."""

    def __init__(self, task: Task, mode: Mode, total: int | None, verb: str = "") -> None:
        self._task = task
        self._every = TELL_SECONDS.get(mode, TELL_SLOWLY_SECONDS)
        self._total = total
        self._verb = verb and f"{verb}, "
        self._began: tuple[float, int] | None = None
        self._told_at = time.monotonic()

    def tell(self, done: int) -> None:
        now = time.monotonic()
        self._began = self._began or (now, done)
        if now - self._told_at < self._every:
            return
        self._told_at = now
        since, first = self._began
        speed = (done - first) / (now - since) if now > since else 0.0
        # The shortest first: on a narrow terminal the rest is cut off.
        left = f", {(self._total - done) / speed:.0f} s left" if self._total and speed else ""
        amount = _of(done, self._total) if self._total else show_bytes(done)
        self._task.update(f"{self._verb}{amount}, {show_bytes(speed)}/s{left}", done, self._total)

    def say(self, text: str) -> None:
        self._task.update(text)


def _of(done: int, total: int) -> str:
    """`0.31/2.13 GB`"""
    whole = show_bytes(total)
    number, _, unit = whole.partition(" ")
    return f"{done / (total / float(number)):.3g}/{whole}" if float(number) else f"{done} {unit}"


def show_bytes(count: float) -> str:
    """`2.13 GB`: decimal, as file listings and licences count."""
    for unit, size in UNITS:
        if count >= 0.9995 * size:  # 999.9 MB would be written as 1e+03
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
