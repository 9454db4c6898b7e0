"""`backup` and `restore`: the queue's memory in one file, taken while it works, put back while it rests.

A backup is an RDB that Redis itself streams to what it takes for a new replica: one moment in time, without a pause and
without space on the server's disk. A restore makes it the base of a new append-only directory, on every queue host: a
Redis with `appendonly yes` looks at nothing else when it starts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from generator import __version__, processes
from generator.errors import ToolError, Unhealthy, UserError
from generator.ops.cluster import Place, bring
from generator.ops.replication import CLI, inside
from generator.progress import Progress, Task

FORMAT = 1
MANIFEST, DATA = "manifest.json", "queue.rdb"
COPY_SECONDS = 3600.0
ASK_SECONDS = 30.0
SWAP_SECONDS = 120.0
_FACTS = f"""\
set -eu; {CLI}
REDISCLI_AUTH=$(cat $secrets/redis_password); export REDISCLI_AUTH
cli appliance INFO server; cli appliance INFO replication; cli appliance INFO persistence
for key in jobs lease delayed done; do echo "count_$key:$(cli appliance ZCARD "{{q}}:$key")"; done
echo "count_dead:$(cli appliance XLEN '{{q}}:dead')"
"""
_DUMP = f"set -eu; {CLI} read -r REDISCLI_AUTH; export REDISCLI_AUTH; cli replica --rdb -"
# What Prometheus has counted already it would add once more, where the exporters begin with an older, lower number. At
# nothing it knows that counting has begun anew.
_FORGET_COUNTS = f"""\
set -eu; {CLI}
REDISCLI_AUTH=$(cat $secrets/redis_password); export REDISCLI_AUTH
cli appliance --scan --pattern '{{q}}:counts:*' | while read -r key; do cli appliance UNLINK "$key"; done
"""
# In two steps: what can fail (a full disk, a cut connection) is over on every host before any of them changes.
_PREPARE = """\
set -eu; umask 077; cd /data; rm -rf appendonlydir.new .swapped; mkdir appendonlydir.new
trap '[ $? = 0 ] || rm -rf /data/appendonlydir.new' EXIT
base=appendonlydir.new/appendonly.aof.1.base.rdb
cat > $base
[ "$(sha256sum < $base | cut -d ' ' -f 1)" = "$1" ] || { echo "what arrived is not what was sent" >&2; exit 1; }
redis-check-rdb $base > /tmp/check || { tail -n 5 /tmp/check >&2; exit 1; }
echo 'file appendonly.aof.1.base.rdb seq 1 type b' > appendonlydir.new/appendonly.aof.manifest
sync appendonlydir.new/*
"""
_FORGET = "rm -rf /data/appendonlydir.new"
# The old directory stays, under another name, until the next restore.
_SWAP = """\
set -eu; cd /data; [ -d appendonlydir.new ]; rm -rf appendonlydir.before-restore; touch .swapped
undo() { [ -e appendonlydir ] || [ ! -e $1 ] || mv $1 appendonlydir; }; trap 'undo appendonlydir.before-restore' EXIT
[ ! -e appendonlydir ] || mv appendonlydir appendonlydir.before-restore
mv appendonlydir.new appendonlydir; sync /data
"""
_SWAP_BACK = """\
set -eu; cd /data; [ -e .swapped ] || exit 0  # it has not come to that, or is undone
[ -e appendonlydir.new ] || rm -rf appendonlydir
[ -e appendonlydir ] || [ ! -e appendonlydir.before-restore ] || mv appendonlydir.before-restore appendonlydir
rm .swapped; sync /data
"""


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself. `counts`: jobs by whereabouts, as they were when it began."""

    format: int
    version: str
    cluster: str
    host: str
    role: str
    redis_version: str
    run_id: str
    taken_at: str
    size: int
    sha256: str
    counts: dict[str, int]


def backup(places: Sequence[Place], replica_password: bytes, output: Path, progress: Progress) -> Manifest:
    """Copy the queue into `output`, which appears whole or not at all; from a replica where one is in step."""
    place, facts = _source(places)
    progress.say(f"from {place.host.name}, a {facts['role']}")
    part = output.with_name(f".{output.name}.rdb")
    whole = output.with_name(f".{output.name}.tmp")
    try:
        with progress.task(f"backup {place.host.name}") as task:
            with _private(part) as file, _watching(part, task):
                password = replica_password.decode() + "\n"
                processes.run(inside(place, _DUMP), timeout=COPY_SECONDS, stdin=password, stdout=file)
            manifest = _describe(place, facts, part)
            with _private(whole) as file, tarfile.open(fileobj=file, mode="w") as archive:
                _add_text(archive, MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
                archive.add(part, DATA, filter=_anonymous)
            whole.replace(output)
            task.finish(f"{manifest.size} bytes, {manifest.counts['jobs']} jobs")
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror}; nothing was written") from error
    finally:
        for leftover in (part, whole):
            leftover.unlink(missing_ok=True)
    return manifest


def restore(places: Sequence[Place], source: Path, progress: Progress, *, force: bool = False) -> dict[str, int]:
    """Put a backup in place of the queue on every queue host, start it there and return the counts that it has."""
    manifest = read_manifest(source)
    queues = [place for place in places if place.host.queue]
    running = [place for place in queues if _runs(place)]
    if running and not force:
        names = ", ".join(place.host.name for place in running)
        raise UserError(f"the queue runs on {names}: `python -m generator down` first, or --force to replace it now")
    services = {
        p.host.name: ["redis", *(["sentinel"] if p.host.queue and p.host.queue.sentinels else [])] for p in queues
    }
    for place in queues:
        bring(place)
    _prepare(queues, source, manifest, progress)
    try:
        for place in running:
            with progress.task(f"stop {place.host.name}"):
                processes.run(place.compose("stop", *reversed(services[place.host.name])), timeout=120)
        _swap(queues, progress)
    except BaseException:
        _forget(queues)
        raise
    finally:
        # Whatever happened, the queue comes back: with the backup, or where it failed with what it had.
        _start(queues, services, progress)
    master, facts = _source(queues, "master")
    processes.run(inside(master, _FORGET_COUNTS), timeout=ASK_SECONDS)
    return _counts(facts)


def _start(queues: Sequence[Place], services: Mapping[str, Sequence[str]], progress: Progress) -> None:
    """One that does not start must not keep the others from it."""
    options = ("--detach", "--wait", "--wait-timeout", "120", "--no-deps")
    for place in queues:
        try:
            with progress.task(f"start {place.host.name}"):
                processes.run(place.compose("up", *options, *services[place.host.name]), timeout=180)
        except ToolError as error:
            progress.warn(f"the queue of {place.host.name} does not start: {error}")


def _prepare(queues: Sequence[Place], source: Path, manifest: Manifest, progress: Progress) -> None:
    try:
        for place in queues:
            with progress.task(f"copy to {place.host.name}") as task, _data(source) as data:
                task.update(f"{manifest.size} bytes")
                processes.run(_at_rest(place, _PREPARE, manifest.sha256), timeout=COPY_SECONDS, stdin=data)
    except BaseException:
        _forget(queues)
        raise


def _forget(queues: Sequence[Place]) -> None:
    for place in queues:
        with suppress(ToolError):
            processes.run(_at_rest(place, _FORGET), timeout=ASK_SECONDS)


def _swap(queues: Sequence[Place], progress: Progress) -> None:
    """On all hosts or on none: else chance would choose between two queues when they start."""
    swapped: list[Place] = []
    try:
        for place in queues:
            swapped.append(place)  # it may be done there though it was never told
            with progress.task(f"restore {place.host.name}"):
                processes.run(_at_rest(place, _SWAP), timeout=SWAP_SECONDS)
    except BaseException:
        for place in swapped:
            try:
                with progress.task(f"put back {place.host.name}"):
                    processes.run(_at_rest(place, _SWAP_BACK), timeout=SWAP_SECONDS)
            except ToolError as error:
                progress.warn(f"{place.host.name} may have the backup and not what was there: {error}")
        raise


def read_manifest(source: Path) -> Manifest:
    """The manifest of a backup, once every byte of its data has been held against it."""
    try:
        with tarfile.open(source, "r:") as archive:
            if sorted(archive.getnames()) != sorted((MANIFEST, DATA)):
                raise UserError(f"{source}: not a backup of this program")
            told = archive.extractfile(MANIFEST)
            data = archive.extractfile(DATA)
            if told is None or data is None:
                raise UserError(f"{source}: not a backup of this program")
            manifest = Manifest(**json.loads(told.read()))
            digest = _digest(data)
    except (tarfile.TarError, EOFError, ValueError, TypeError) as error:
        raise UserError(f"{source}: not a whole backup: {error}") from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from error
    if manifest.format != FORMAT:
        raise UserError(f"{source}: format {manifest.format} is not known to this version ({__version__})")
    if digest != manifest.sha256:
        raise UserError(f"{source}: damaged: its data are not those that were saved")
    return manifest


def _source(places: Sequence[Place], wanted: str = "slave") -> tuple[Place, dict[str, str]]:
    """The queue host to ask: a replica that is in step (or the master) if there is one, else whoever answers."""
    found: list[tuple[Place, dict[str, str]]] = []
    said: list[str] = []
    for place in places:
        if place.host.queue:
            try:
                found.append((place, _facts(place)))
            except ToolError as error:
                said.append(f"{place.host.name}: {error}")
    for place, facts in found:
        if facts.get("role") == wanted and facts.get("master_link_status", "up") == "up":
            return place, facts
    for place, facts in found:
        if facts.get("role") == "master" and facts.get("loading") == "0":
            return place, facts
    raise Unhealthy("\n".join(["no Redis of this cluster answers as a master or as a replica in step", *said]))


def _facts(place: Place) -> dict[str, str]:
    lines = processes.run(inside(place, _FACTS), timeout=ASK_SECONDS).splitlines()
    return dict(line.strip().split(":", 1) for line in lines if ":" in line)


def _counts(facts: dict[str, str]) -> dict[str, int]:
    counts = {name.removeprefix("count_"): int(value) for name, value in facts.items() if name.startswith("count_")}
    jobs, running, delayed, ended = (counts[name] for name in ("jobs", "lease", "delayed", "done"))
    waiting = jobs - running - delayed - ended
    return {
        "jobs": jobs, "waiting": waiting, "running": running, "delayed": delayed, "ended": ended, "dead": counts["dead"]
    }  # fmt: skip


def _cut_marker(place: Place, data: Path) -> None:
    """Redis ends a stream of unknown length with a mark of 40 hexadecimal digits, which redis-cli cannot take back from
    a pipe. An RDB ends with the byte 255 and a checksum of 8."""
    with data.open("r+b") as file:
        head = file.read(5)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 49))
        tail = file.read()
        if head == b"REDIS" and re.fullmatch(rb"\xff.{8}[0-9a-f]{40}", tail, re.DOTALL):
            file.truncate(size - 40)
        elif head != b"REDIS" or tail[-9:-8] != b"\xff":
            raise Unhealthy(f"what Redis on {place.host.name} sent is not a whole RDB file")


def _describe(place: Place, facts: dict[str, str], data: Path) -> Manifest:
    _cut_marker(place, data)
    with data.open("rb") as file:
        digest = _digest(file)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Manifest(
        FORMAT, __version__, place.project, place.host.name, facts["role"], facts["redis_version"], facts["run_id"],
        now, data.stat().st_size, digest, _counts(facts),
    )  # fmt: skip


def _digest(data: IO[bytes]) -> str:
    found = hashlib.sha256()
    while piece := data.read(1 << 20):
        found.update(piece)
    return found.hexdigest()


def _runs(place: Place) -> bool:
    """Not where nothing has been brought to yet."""
    try:
        return bool(
            processes.run(place.compose("ps", "--status", "running", "--quiet", "redis"), timeout=ASK_SECONDS).strip()
        )
    except ToolError:
        return False


def _at_rest(place: Place, script: str, *arguments: str) -> list[str]:
    """In a container of its own, with Redis's volume: whether Redis runs or not."""
    words = ("--rm", "--no-deps", "--no-TTY", "--entrypoint", "bash", "redis", "-c", script, "restore", *arguments)
    return place.compose("run", *words)


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    """A new file that only its owner reads (requests are in it), on the disk when the block ends."""
    with suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _data(source: Path) -> Iterator[IO[bytes]]:
    """The archive's data as a file of its own: what a program reads from must have a descriptor."""
    with tarfile.open(source, "r:") as archive, tempfile.TemporaryFile(dir=source.parent) as file:
        data = archive.extractfile(DATA)
        if data is not None:
            shutil.copyfileobj(data, file, 1 << 20)
        file.seek(0)
        yield file


@contextmanager
def _watching(path: Path, task: Task) -> Iterator[None]:
    """Tells how much has arrived; how much will come only Redis knows."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            task.update(f"{path.stat().st_size >> 10} KiB")

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    archive.addfile(entry, io.BytesIO(content))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
