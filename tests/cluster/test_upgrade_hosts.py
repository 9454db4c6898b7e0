"""Three hosts get another release, one worker and one host after the other, while visitors and jobs come through the
virtual address: nobody notices. Takes minutes on any machine, so it runs with --long only."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import threading
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.testing

from generator.cli import app
from generator.errors import Unhealthy
from generator.load import load
from generator.ops import cluster as cluster_ops
from generator.ops.client import Client
from generator.secrets import lay_out
from tests.cluster.hosts import from_outside, ssh_server
from tests.cluster.test_three_hosts import UP, Cluster, cluster, sshd  # noqa: F401 - fixtures

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1800)]
PAGES_EVERY, JOBS_EVERY = 0.05, 1.0
GATE = ("--dwell", "8", "--minimum", "10", "--longest", "60")


@dataclass
class Load:
    """Visitors, each on a connection of its own, and jobs; `broken` is what a browser would have sent again."""

    address: str
    key: str
    authority: Path
    pages: int = 0
    jobs: list[str] = field(default_factory=list)
    broken: list[tuple[float, str]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop`; in the network of the thread that calls."""
        threads = [threading.Thread(target=work) for work in (self._visit, self._visit, self._submit)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        self._over.set()

    def _visit(self) -> None:
        context = ssl.create_default_context(cafile=str(self.authority))
        while not self._over.wait(PAGES_EVERY):
            try:
                try:
                    status = self._page(context)
                except (OSError, http.client.HTTPException) as error:
                    self.broken.append((time.monotonic(), repr(error)))
                    status = self._page(context)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append((time.monotonic(), f"page: {error!r}"))
                continue
            self.pages += 1
            if status != 200:
                self.failed.append((time.monotonic(), f"page: {status}"))

    def _page(self, context: ssl.SSLContext) -> int:
        connection = http.client.HTTPSConnection(self.address, timeout=15, context=context)
        try:
            connection.request("GET", "/webui/local/node", headers={"X-Api-Key": self.key})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _submit(self) -> None:
        request = {"prompt": "a boat", "width": 64, "height": 64, "frames": 8, "steps": 8}
        with Client(f"https://{self.address}", self.key, authority=self.authority, timeout_seconds=15) as client:
            while not self._over.wait(JOBS_EVERY):
                try:
                    self.jobs.append(client.submit(request, idempotency_key=str(uuid.uuid4())))
                except Exception as error:
                    self.failed.append((time.monotonic(), f"submit: {error!r}"))


def all_done(client: Client, jobs: list[str]) -> bool:
    left = {job: state for job in jobs if (state := client.job(job)["state"]) != "done"}
    if left:
        raise Unhealthy(f"not done: {left}")  # kept as the last thing seen
    return True


def test_an_upgrade_of_three_hosts_is_not_noticed(
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sshd: str,  # noqa: F811
) -> None:
    old = cluster.plan.cluster.images["services"].rpartition(":")[2]
    new = f"{old}-next"
    for host in cluster.hosts.values():
        for image in set(cluster.plan.cluster.images.values()):
            if image.endswith(f":{old}"):
                host.engine.tag(image, f"{image.rpartition(':')[0]}:{new}")
    _be_patient(cluster)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / cluster.plan.cluster.name).symlink_to(cluster.folder / "out")  # what the containers have
    monkeypatch.setattr(cluster_ops, "REMOTE_FOLDER", str(tmp_path / "there"))
    out, file = tmp_path / "out", tmp_path / "cluster.yaml"
    shutil.copytree(cluster.folder / "out", out)
    shutil.copy(cluster.folder / "cluster.yaml", file)
    shutil.copytree(cluster.store.folder, tmp_path / "secrets")
    lay_out(cluster.plan, out, cluster.store.read())  # a copy has another owner
    with ExitStack() as stack:
        reached = [
            stack.enter_context(ssh_server(host, tmp_path / f"ssh-{name}", sshd))
            for name, host in cluster.hosts.items()
        ]
        keys = [word for command in reached for word in command.split() if word.endswith("user_key")]
        ssh = " ".join([reached[0], *(f"-i {key}" for key in keys[1:])])
        words = ["upgrade", "--image", new, "--file", str(file), "--out", str(out), "--ssh", ssh, *GATE]
        load_ = Load(cluster.plan.addresses[0], cluster.store.read()["api_key"].decode(), _authority(cluster))
        visiting = threading.Thread(target=lambda: from_outside(load_.run))
        visiting.start()
        time.sleep(3)
        begin = time.monotonic()
        result = from_outside(lambda: typer.testing.CliRunner().invoke(app, words))
        took = time.monotonic() - begin
        time.sleep(3)
        load_.stop()
        visiting.join()
    print(f"\nall on {new} after {took:.0f} s: {load_.pages} pages, {len(load_.jobs)} jobs")
    print(f"broken off and sent again: {[(round(at - begin, 1), what) for at, what in load_.broken]}")
    print(f"failed: {[(round(at - begin, 1), what) for at, what in load_.failed]}")
    assert result.exit_code == 0, (result.output, result.exception)
    assert load(file).cluster.images.tag == new
    running = {
        one.image.rpartition(":")[2]
        for host in cluster.hosts.values()
        for one in host.engine.containers(cluster.plan.cluster.name)
        if one.state == "running" and one.image.startswith("animatediff-ha/")
    }
    assert running == {new}
    assert load_.failed == []
    cluster.sees("gpu-01", lambda client: all_done(client, load_.jobs), 120)


def _be_patient(cluster: Cluster) -> None:  # noqa: F811
    """The stand-ins for GPUs compute on the processor; controllers are rendered to give such workers this long."""
    for name, host in cluster.hosts.items():
        if not cluster.plan.by_name[name].gateway:
            continue
        folder = cluster.folder / "out" / name
        file = folder / "compose.override.yaml"
        override = json.loads(file.read_text())
        override["services"]["controller"] = {"environment": {"APPLIANCE_PROBE_TIMEOUT_SECONDS": "0.5"}}
        file.write_text(json.dumps(override))
        host.engine.compose(folder, *UP, "--no-deps", "controller", timeout=300)


def _authority(cluster: Cluster) -> Path:  # noqa: F811
    assert cluster.store.authority is not None
    return cluster.store.authority
