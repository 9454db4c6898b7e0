"""The demo: a cluster on one host, a real job, the death of the worker that holds it, and the video all the same."""

from __future__ import annotations

import fcntl
import re
import shlex
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from generator import tree
from generator.checks import check
from generator.docker import Engine
from generator.errors import Problem, Unhealthy, UserError
from generator.load import load
from generator.ops import cluster, doctor
from generator.ops.client import Client
from generator.ops.images import build_images
from generator.ops.status import gateway_url
from generator.plan import plan
from generator.planned import Plan
from generator.progress import Progress
from generator.render import render
from generator.secrets import Store, lay_out
from generator.sources import ROOT, read_sources

CLUSTER_FILE = "cluster.demo.yaml"
WORKING_DIR_LABEL = "com.docker.compose.project.working_dir"
IMAGES = ("services", "gateway", "redis", "webui-cpu")
JOB: Mapping[str, Any] = {
    "prompt": "a red ball bouncing on a green hill",
    "width": 128,
    "height": 128,
    "frames": 16,
    "fps": 8,
    "steps": 24,
    "seed": 7,
    "format": "mp4",
}
KILL_AT_STEP = 6
READY_SECONDS = 120.0
JOB_SECONDS = 300.0
RECOVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Recovery:
    """What the death of a worker cost; seconds from the kill to the first step on another worker."""

    killed: str
    killed_at_step: int
    taken_over_by: str
    seconds: float


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One demo at a time in one folder: two would kill each other's workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another demo is running here; wait for it or use --dir") from None
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


def run(demo: Demo, engine: Engine, progress: Progress) -> Result:
    """Everything after the engine stands. Raises `Unhealthy` with what is wrong when a step misses its deadline."""
    _examine(engine, progress)
    with demo.locked():
        the_plan = prepare(demo, engine)
        tag = the_plan.cluster.images["services"].rpartition(":")[2]
        build_images(engine, ROOT, tag=tag, only=IMAGES, progress=progress)
        cluster.up(cluster.places(the_plan, demo.out), progress)
        url, key = _url(the_plan), demo.store.read()["api_key"].decode()
        with Client(url, key) as client:
            client.wait_ready(READY_SECONDS, describe=lambda: _describe(engine, the_plan.cluster.name))
            job, recovery = _job_that_loses_its_worker(client, engine, the_plan, progress)
            video = demo.folder / "videos" / f"{job['id']}.mp4"
            video.parent.mkdir(exist_ok=True)
            sha256 = client.download(job["id"], video)
        _compare(job, sha256)
        _wait_until_whole(engine, the_plan.cluster.name, progress)
    return Result(url, key, job["id"], str(video), sha256, recovery)


def prepare(demo: Demo, engine: Engine) -> Plan:
    """cluster.yaml with a port of its own, secrets and the rendered folder. A demo that runs keeps its address."""
    text = (ROOT / "config" / CLUSTER_FILE).read_text(encoding="utf-8")
    project = plan(load(ROOT / "config" / CLUSTER_FILE).cluster).cluster.name
    containers = engine.containers(project)
    _refuse_another(demo, project, {one.labels.get(WORKING_DIR_LABEL, "") for one in containers})
    if demo.cluster_file.exists() and any(one.service == "gateway" and one.state == "running" for one in containers):
        port = _PORT.search(demo.cluster_file.read_text(encoding="utf-8"))
        text = _PORT.sub(port[0], text, count=1) if port else text
    else:
        text = with_free_port(text)
    demo.cluster_file.write_text(text, encoding="utf-8")
    the_plan = demo.plan()
    demo.store.create_missing(("localhost", "127.0.0.1"), tls=False)
    tree.write(demo.out, render(the_plan, read_sources()))
    lay_out(the_plan, demo.out, demo.store.read())
    return the_plan


def _refuse_another(demo: Demo, project: str, folders: set[str]) -> None:
    """Two demos would share one compose project and pull each other's containers away."""
    for folder in sorted(folders):
        owner = Path(folder).parent.parent
        if owner != demo.folder:
            remedy = f"`python -m generator demo down --dir {shlex.quote(str(owner))}`"
            if not owner.exists():
                remedy = f"its folder is gone: `docker compose --project-name {project} down --volumes`"
            raise UserError(f"a demo runs from {owner} already; remove it first: {remedy}")


def _examine(engine: Engine, progress: Progress) -> None:
    """What would only show after minutes of building is said at once."""
    checks = doctor.run_checks(engine, ports=())
    for one in checks:
        if one.verdict == "warn":
            progress.warn(f"{one.name}: {one.found}: {one.hint}")
    failed = [f"{one.name}: {one.found}: {one.hint}" for one in checks if one.verdict == "fail"]
    if failed:
        raise UserError([Problem(hint=line) for line in failed])


def table(result: Result, *, keep: bool) -> Table:
    rows = Table(show_header=False, title="the demo worked")
    rows.add_row("video", result.video)
    rows.add_row(
        "recovery",
        f"{result.recovery.seconds:.2f} s from kill -9 of {result.recovery.killed}"
        f" (step {result.recovery.killed_at_step}) to the first step on {result.recovery.taken_over_by}",
    )
    rows.add_row("address", result.url)
    rows.add_row("api key", result.key)
    rows.add_row("try", f"curl -H 'Authorization: Bearer {result.key}' {result.url}/api/v1/cluster")
    rows.add_row("then", "`python -m generator demo down` removes all of it" if keep else "stopped, as --no-keep asked")
    return rows


def stop(demo: Demo, progress: Progress) -> None:
    """Remove containers, networks and volumes; the video stays."""
    cluster.down(cluster.places(demo.plan(), demo.out), progress, volumes=True)


def remove(demo: Demo, progress: Progress) -> None:
    """Containers, networks, volumes and the demo's folder; the images stay."""
    if demo.cluster_file.exists():
        stop(demo, progress)
    shutil.rmtree(demo.folder, ignore_errors=True)


def _url(the_plan: Plan) -> str:
    host = the_plan.hosts[0]
    if host.gateway is None:
        raise UserError(f"{CLUSTER_FILE}: host {host.name} needs the role gateway")
    return gateway_url(host, host.gateway)


def free_port(wanted: int) -> int:
    """`wanted`, or the next port above it that nobody listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {wanted} and {wanted + 99} on 127.0.0.1")


_PORT = re.compile(r"^(\s*http_port:\s*)(\d+)", re.MULTILINE)


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


def _job_that_loses_its_worker(
    client: Client, engine: Engine, the_plan: Plan, progress: Progress
) -> tuple[dict[str, Any], Recovery]:
    with progress.task("job") as task:
        job_id = client.submit(JOB, idempotency_key=str(uuid.uuid4()))
        deadline = time.monotonic() + JOB_SECONDS
        recovery: Recovery | None = None
        victims: list[str] = []
        try:
            while True:
                job = _job(client, job_id)
                task.update(_tell(job), _step(job), JOB["steps"])
                if job["state"] in ("dead", "cancelled"):
                    raise Unhealthy(f"job {job_id} ended {job['state']}: {job.get('error')}")
                if job["state"] == "done":
                    break
                if recovery is None and job["state"] == "running" and _step(job) >= KILL_AT_STEP:
                    victims = _containers_of(engine, the_plan, job["worker"])
                    recovery = _kill(client, engine, job, victims, progress)
                if time.monotonic() > deadline:
                    raise Unhealthy(f"job {job_id} was not done within {JOB_SECONDS:.0f} s: {_tell(job)}")
                time.sleep(0.1)
        finally:
            if victims:
                engine.start(*victims)
        if recovery is None:
            raise Unhealthy(f"job {job_id} was done before its worker could be killed: nothing was shown")
        task.finish(f"done on {job['worker']} after its first worker {recovery.killed} was killed")
    return job, recovery


def _kill(client: Client, engine: Engine, job: Mapping[str, Any], victims: list[str], progress: Progress) -> Recovery:
    """Kill -9 agent and webui together, then wait until another worker has made a step."""
    progress.say(f"killing {job['worker']} at step {_step(job)} (kill -9 of its webui and its agent)")
    engine.kill(*victims)
    killed = time.monotonic()
    while True:
        now = _job(client, job["id"])
        if now["state"] == "done" or (now["state"] == "running" and now["fence"] != job["fence"] and _step(now) > 0):
            seconds = time.monotonic() - killed
            return Recovery(job["worker"], _step(job), now["worker"], round(seconds, 2))
        if time.monotonic() - killed > RECOVERY_SECONDS:
            raise Unhealthy(f"job {job['id']} was not taken over within {RECOVERY_SECONDS:.0f} s: {_tell(now)}")
        time.sleep(0.05)


def _job(client: Client, job_id: str) -> dict[str, Any]:
    """The job; a gateway or api that hiccups for a moment is asked again."""
    for _ in range(50):
        try:
            return client.job(job_id)
        except (httpx.TransportError, Unhealthy):
            time.sleep(0.1)
    return client.job(job_id)


def _containers_of(engine: Engine, the_plan: Plan, worker: str) -> list[str]:
    pair = next(w for host in the_plan.hosts for w in host.workers if w.worker == worker)
    containers = engine.containers(the_plan.cluster.name)
    return [one.id for one in containers if one.service in (pair.agent, pair.webui)]


def _step(job: Mapping[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


def _tell(job: Mapping[str, Any]) -> str:
    return f"{job['state']} on {job['worker']} step {_step(job)}" if job.get("worker") else str(job["state"])


def _compare(job: Mapping[str, Any], sha256: str) -> None:
    promised = job["result"][0]["sha256"]
    if promised != sha256:
        raise Unhealthy(f"the video that arrived has sha256 {sha256}, the worker wrote {promised}")
