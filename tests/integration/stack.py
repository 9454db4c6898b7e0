"""A rendered cluster of one host, running in containers, with the faults a test can do to it."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from testcontainers.compose import DockerCompose

from generator import tree
from generator.docker import Container, Engine
from generator.errors import ToolError, Unhealthy
from generator.load import load
from generator.ops.client import Client
from generator.ops.demo import free_port
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, lay_out
from generator.sources import ROOT, read_sources


@dataclass(frozen=True)
class Stack:
    project: str
    plan: Plan
    url: str
    key: str
    engine: Engine
    network: str

    def client(self) -> Client:
        return Client(self.url, self.key)

    def container(self, service: str) -> Container:
        return next(one for one in self.engine.containers(self.project) if one.service == service)

    def kill_9(self, service: str) -> None:
        """From the host, so that the engine takes it for a crash and its restart policy acts."""
        os.kill(self.engine.host_pid(self.container(service).id), signal.SIGKILL)

    def pause(self, service: str) -> None:
        for chances in (3, 2, 1, 0):
            try:
                return self.engine.pause(self.container(service).id)
            except ToolError as error:  # on a busy machine the kernel may take longer than runc waits
                if "unable to freeze" not in str(error) or not chances:
                    raise
                time.sleep(0.2)

    def unpause(self, service: str) -> None:
        self.engine.unpause(self.container(service).id)

    def stop(self, service: str) -> None:
        self.engine.stop(self.container(service).id, grace_seconds=10)

    def start(self, service: str) -> None:
        self.engine.start(self.container(service).id)

    def cut(self, service: str) -> None:
        self.engine.disconnect(self.network, self.container(service).id)

    def reconnect(self, service: str) -> None:
        self.engine.connect(self.network, self.container(service).id, aliases=(service,))

    def commits(self, job: str) -> int:
        """COMMIT files of a job on the shared volume."""
        found = self.engine.exec(
            self.container("api").id,
            "/opt/venv/bin/python",
            "-c",
            f"import pathlib; print(len(list(pathlib.Path('/storage/jobs').rglob('{job}/COMMIT*'))))",
        )
        return int(found)

    def redis(self, *command: str) -> str:
        script = (
            'REDISCLI_AUTH=$(cat /run/secrets/redis_password) exec redis-cli --user appliance --no-auth-warning "$@"'
        )
        return self.engine.exec(self.container("redis").id, "bash", "-c", script, "redis-cli", *command).strip()


def submit(client: Client, **changes: Any) -> str:
    request = {"prompt": "a boat", "width": 64, "height": 64, "frames": 16, "steps": 40, "seed": 1, **changes}
    return client.submit(request, idempotency_key=str(uuid.uuid4()))


def wait_for(client: Client, job: str, wanted: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
    """The first answer that is `wanted`; fails with the last one seen."""
    end = time.monotonic() + seconds
    seen: dict[str, Any] = {}
    while time.monotonic() < end:
        try:
            seen = client.job(job)
        except (httpx.TransportError, Unhealthy):  # an api without Redis answers 503
            time.sleep(0.05)
            continue
        if wanted(seen):
            return seen
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s; last seen: {seen}")


def step(job: dict[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


def prepare(folder: Path, *, tag: str, variant: str, project: str, step_seconds: float) -> tuple[Plan, Path, Store]:
    """Render the demo's cluster with another engine, name and port into `folder`."""
    data = load(ROOT / "config/cluster.demo.yaml").cluster
    cluster = data.model_copy(
        update={
            "name": project,
            "images": data.images.model_copy(update={"webui": type(data.images.webui)(variant), "tag": tag}),
            "gateway": data.gateway.model_copy(update={"http_port": free_port(18_080)}),
            "worker": data.worker.model_copy(update={"step_seconds": step_seconds}),
        }
    )
    the_plan = plan(cluster)
    tree.write(folder, render(the_plan, read_sources()))
    store = Store(folder / "store")
    store.create_missing(("localhost",), tls=False)
    lay_out(the_plan, folder, store.read())
    return the_plan, folder / the_plan.hosts[0].name, store


def compose(folder: Path) -> DockerCompose:
    """What an interrupted run has left of the project, with that run's secrets, is cleared away first."""
    Engine().compose(folder, "down", "--volumes", "--remove-orphans", "--timeout", "1", timeout=120)
    return DockerCompose(context=str(folder), compose_file_name="compose.yaml", pull=False, build=False, wait=True)
