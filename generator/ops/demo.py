"""The demo: a cluster on one host, a real job, the death of the worker that holds it, and the video all the same."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from generator import tree
from generator.checks import check
from generator.docker import Container, Engine
from generator.errors import Problem, Unhealthy, UserError
from generator.load import load
from generator.ops import cluster, doctor
from generator.ops.client import Client
from generator.ops.images import build_images
from generator.ops.status import gateway_url
from generator.ops.takeover import Recovery, job_that_loses_its_worker
from generator.plan import plan
from generator.planned import Plan
from generator.progress import Progress
from generator.render import COMPOSE_FILE, render
from generator.secrets import Store
from generator.sources import ROOT, read_sources

CLUSTER_FILE = "cluster.demo.yaml"
NAME = "animatediff-demo"
WORKING_DIR_LABEL = "com.docker.compose.project.working_dir"
IMAGES = ("services", "gateway", "redis", "webui-cpu")
READY_SECONDS = 120.0


@dataclass(frozen=True)
class Result:
    url: str
    key: str
    job: str
    video: str
    sha256: str
    recovery: Recovery

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Demo:
    """The demo's own folder: its cluster.yaml, secrets, rendered host and videos."""

    folder: Path

    @property
    def cluster_file(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "rendered"

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def lock(self) -> Path:
        """Also what tells a demo's folder from any other."""
        return self.folder / ".demo-lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One demo at a time in one folder, and only in one of its own: what lies there is overwritten and removed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.lock.exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} holds what is not the demo's; name a new folder with --dir")
            file = self.lock.open("w")
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}; name another folder with --dir") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another demo is at work here; wait for it to end") from None
            yield

    @property
    def store(self) -> Store:
        return Store(self.folder / "secrets")

    def plan(self) -> Plan:
        loaded = load(self.cluster_file)
        problems = check(loaded)
        if problems:
            raise UserError(problems)
        return plan(loaded.cluster)


def run(demo: Demo, engine: Engine, progress: Progress, name: str = NAME) -> Result:
    """Everything after the engine stands. Raises `Unhealthy` with what is wrong when a step misses its deadline."""
    _examine(engine, progress)
    with demo.locked():
        the_plan = prepare(demo, engine, name)
        tag = the_plan.cluster.images["services"].rpartition(":")[2]
        build_images(engine, ROOT, tag=tag, only=IMAGES, progress=progress)
        cluster.up(cluster.places(the_plan, demo.out), progress)
        url, key = _url(the_plan), demo.store.read()["api_key"].decode()
        with Client(url, key) as client:
            client.wait_ready(READY_SECONDS, describe=lambda: _describe(engine, the_plan.cluster.name))
            job, recovery = job_that_loses_its_worker(client, engine, the_plan, progress)
            video = demo.videos / f"{job['id']}.mp4"
            video.parent.mkdir(exist_ok=True)
            sha256 = client.download(job["id"], video)
        _compare(job, sha256)
        _wait_until_whole(engine, the_plan.cluster.name, progress)
    return Result(url, key, job["id"], str(video), sha256, recovery)


def prepare(demo: Demo, engine: Engine, name: str) -> Plan:
    """cluster.yaml with its name and a free port, secrets, the rendered folder. A demo that runs keeps its port."""
    text = with_name((ROOT / "config" / CLUSTER_FILE).read_text(encoding="utf-8"), name)
    containers = engine.containers(name)
    _refuse_another(demo, name, others(demo, containers))
    if not demo.cluster_file.exists() and not containers and (volumes := engine.volumes(name)):
        raise UserError(
            f"volumes of a cluster {name} are here, which this demo would use and remove: {', '.join(volumes)}\n"
            "Name the demo otherwise with --name, or, if nobody needs them, remove them with `docker volume rm`"
        )
    if demo.cluster_file.exists() and any(one.service == "gateway" and one.state == "running" for one in containers):
        port = _PORT.search(demo.cluster_file.read_text(encoding="utf-8"))
        text = _PORT.sub(port[0], text, count=1) if port else text
    else:
        text = with_free_port(text)
    demo.cluster_file.write_text(text, encoding="utf-8")
    the_plan = demo.plan()
    demo.store.create_missing(("localhost", "127.0.0.1"), tls=False)
    tree.write(demo.out, render(the_plan, read_sources()))
    demo.store.lay_out(the_plan, demo.out)
    return the_plan


def others(demo: Demo, containers: Iterable[Container]) -> list[Path]:
    """The folders of demos that these containers of the same compose project belong to, and not to this one."""
    owners = {Path(one.labels.get(WORKING_DIR_LABEL, "")).parent.parent for one in containers}
    return sorted(owners - {demo.folder})


def _refuse_another(demo: Demo, project: str, owners: Sequence[Path]) -> None:
    """Two demos would share one compose project and pull each other's containers away."""
    for owner in owners:
        remedy = f"`python -m generator demo down --dir {shlex.quote(str(owner))}`"
        if not owner.exists():
            remedy = f"its folder is gone: `docker compose --project-name {project} down --volumes`"
        raise UserError(f"a demo runs from {owner} already; remove it first: {remedy}")


def _examine(engine: Engine, progress: Progress) -> None:
    """What would only show after minutes of building is said at once."""
    checks = doctor.run_checks(engine, ports=(), gpus=False)
    for one in checks:
        if one.verdict == "warn":
            progress.warn(f"{one.name}: {one.found}: {one.hint}")
    failed = [f"{one.name}: {one.found}: {one.hint}" for one in checks if one.verdict == "fail"]
    if failed:
        raise UserError([Problem(hint=line) for line in failed])


def summary(result: Result, folder: Path, *, keep: bool) -> str:
    """Plain lines, however narrow the terminal is: a path, a key and a command are there to be copied."""
    lost = result.recovery
    rows = {
        "video": result.video,
        "model": "untrained placeholder model: random weights, so the pictures mean nothing",
        "recovery": f"{lost.seconds:.2f} s from kill -9 of {lost.killed} (step {lost.killed_at_step})"
        f" to the first step on {lost.taken_over_by}",
        "address": result.url,
        "api key": result.key,
        "try": f"curl -H 'Authorization: Bearer {result.key}' {result.url}/api/v1/cluster",
        "then": f"`python -m generator demo down --dir {shlex.quote(str(folder))}` removes it"
        if keep
        else "it ends now, as --no-keep asked",
    }
    return "\n".join(["the demo worked", *(f"  {name:<9} {text}" for name, text in rows.items())])


def stop(demo: Demo, engine: Engine, progress: Progress) -> None:
    """Remove containers, networks and volumes; the video stays."""
    with demo.locked():
        _stop(demo, engine, progress)


def _stop(demo: Demo, engine: Engine, progress: Progress) -> None:
    # Where nothing is rendered it was interrupted before anything could start.
    if not any(demo.out.glob(f"*/{COMPOSE_FILE}")):
        return
    the_plan = demo.plan()
    if owners := others(demo, engine.containers(the_plan.cluster.name)):
        progress.warn(f"what runs as {the_plan.cluster.name} belongs to the demo in {owners[0]}, and stays")
        return
    cluster.down(cluster.places(the_plan, demo.out), progress, volumes=True)


def remove(demo: Demo, engine: Engine, progress: Progress) -> None:
    """Containers, networks, volumes and what the demo wrote into its folder; the images stay."""
    if not demo.folder.exists():
        progress.say(f"{demo.folder}: no demo is here")
        return
    with demo.locked():
        _stop(demo, engine, progress)
        try:
            for folder in (demo.out, demo.store.folder, demo.videos):
                if folder.exists():
                    shutil.rmtree(folder)
            demo.cluster_file.unlink(missing_ok=True)
            demo.lock.unlink()
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; run this as root") from error
    # Whatever else a person has put there stays.
    with suppress(OSError):
        demo.folder.rmdir()


def _url(the_plan: Plan) -> str:
    host = the_plan.hosts[0]
    if host.gateway is None:
        raise UserError(f"{CLUSTER_FILE}: host {host.name} needs the role gateway")
    return gateway_url(host, host.gateway)


def free_port(wanted: int) -> int:
    """`wanted`, or the next port above it that nobody listens on."""
    for port in range(wanted, min(wanted + 100, 1 << 16)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {wanted} and {wanted + 99} on 127.0.0.1")


_PORT = re.compile(r"^(\s*http_port:\s*)(\d+)", re.MULTILINE)


def with_name(text: str, name: str) -> str:
    """`text` of a cluster.yaml under another name; quoted, so that the check of names sees exactly what was given."""
    return re.sub(r"^name:.*$", lambda _: f"name: {json.dumps(name)}", text, count=1, flags=re.MULTILINE)


def with_free_port(text: str) -> str:
    """`text` of a cluster.yaml with the first port from its `http_port` on that nobody listens on."""
    return _PORT.sub(lambda found: f"{found[1]}{free_port(int(found[2]))}", text, count=1)


def _wait_until_whole(engine: Engine, project: str, progress: Progress) -> None:
    """The killed worker is started again; whoever looks next shall find the cluster well."""
    with progress.task("restart") as task:
        task.update("the killed worker comes back")
        if not cluster.wait_until(lambda: all(cluster.well(one) for one in engine.containers(project)), READY_SECONDS):
            raise Unhealthy(f"not all services came back within {READY_SECONDS:.0f} s\n{_describe(engine, project)}")


def _describe(engine: Engine, project: str) -> str:
    return "\n".join(f"{one.service}: {one.state} {one.health}" for one in engine.containers(project))


def _compare(job: Mapping[str, Any], sha256: str) -> None:
    promised = job["result"][0]["sha256"]
    if promised != sha256:
        raise Unhealthy(f"the video that arrived has sha256 {sha256}, the worker wrote {promised}")
