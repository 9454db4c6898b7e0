"""The demo: a cluster on one host, a real job, the death of the worker that holds it, and the video all the same."""

from __future__ import annotations

import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from generator import tree
from generator.checks import check
from generator.docker import Engine
from generator.errors import Unhealthy, UserError
from generator.load import load
from generator.ops import cluster
from generator.ops.client import Client
from generator.ops.images import build_images
from generator.ops.status import gateway_url
from generator.plan import Plan, plan
from generator.progress import Progress
from generator.render import render
from generator.secrets import Store, lay_out
from generator.sources import ROOT, read_sources

CLUSTER_FILE = "cluster.demo.yaml"
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
    demo.folder.mkdir(parents=True, exist_ok=True)
    the_plan = prepare(demo)
    tag = the_plan.cluster.images["services"].rpartition(":")[2]
    build_images(engine, ROOT, tag=tag, only=IMAGES, progress=progress)
    url = _url(the_plan)
    cluster.up(cluster.places(the_plan, demo.out), progress)
    key = demo.store.read()["api_key"].decode()
    with Client(url, key) as client:
        client.wait_ready(READY_SECONDS, describe=lambda: _describe(engine, the_plan.cluster.name))
        job, recovery = _job_that_loses_its_worker(client, engine, the_plan, progress)
        video = demo.folder / "videos" / f"{job['id']}.mp4"
        video.parent.mkdir(exist_ok=True)
        sha256 = client.download(job["id"], video)
    _compare(job, sha256)
    return Result(url, key, job["id"], str(video), sha256, recovery)


def prepare(demo: Demo) -> Plan:
    """cluster.yaml with a free port, secrets and the rendered folder."""
    text = (ROOT / "config" / CLUSTER_FILE).read_text(encoding="utf-8")
    if not demo.cluster_file.exists():
        demo.cluster_file.write_text(with_port(text, free_port(_port_in(text))), encoding="utf-8")
    elif not _answers(f"http://127.0.0.1:{_port_in(demo.cluster_file.read_text(encoding='utf-8'))}"):
        # Kept between runs, so that the address stays the same, unless somebody else took the port meanwhile.
        port = free_port(_port_in(demo.cluster_file.read_text(encoding="utf-8")))
        demo.cluster_file.write_text(with_port(text, port), encoding="utf-8")
    the_plan = demo.plan()
    demo.store.create_missing(("localhost", "127.0.0.1"), tls=False)
    tree.write(demo.out, render(the_plan, read_sources()))
    lay_out(the_plan, demo.out, demo.store.read())
    return the_plan


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


def with_port(text: str, port: int) -> str:
    return _PORT.sub(rf"\g<1>{port}", text, count=1)


def _port_in(text: str) -> int:
    found = _PORT.search(text)
    return int(found[2]) if found else 8080


def _answers(url: str) -> bool:
    """Whether a gateway of ours is what listens there."""
    try:
        return httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).headers.get("server-name") is not None
    except httpx.TransportError:
        return False


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
                task.update(_tell(job), _step(job), job.get("progress", {}).get("total_steps") or JOB["steps"])
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
