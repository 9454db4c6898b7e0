"""The example cluster for real: three hosts, six reserved GPUs (stand-ins), and the loss of the first host."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator import ports, tree
from generator.checks import check
from generator.docker import Engine
from generator.errors import Unhealthy
from generator.keys import KeyRole
from generator.load import load
from generator.ops import cluster as cluster_ops
from generator.ops.client import Client
from generator.ops.status import status
from generator.plan import plan
from generator.planned import Plan
from generator.progress import Progress
from generator.render import render
from generator.secrets import Store, lay_out, logs_names, monitoring_names, redis_names
from generator.sources import ROOT, read_sources
from tests.cluster.hosts import HostMachine, from_outside, machines, ssh_server
from tests.integration.stack import step, submit

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
# 15 s a job: long enough that none is done, or on the way to its COMMIT, when the cable is pulled.
STEPS, STEP_SECONDS = 150, "0.1"
WATCHING = {"prometheus", "alertmanager", "node-exporter", "redis-exporter", "blackbox-exporter"}
UP = ("up", "--detach", "--wait", "--wait-timeout", "240")


@dataclass(frozen=True)
class Cluster:
    plan: Plan
    hosts: dict[str, HostMachine]
    folder: Path
    store: Store

    def client(self, host: str) -> Client:
        key = self.store.read()["api_key"].decode()
        return Client(f"https://{self.plan.by_name[host].address}", key, authority=self.store.authority)

    def sees(self, host: str, wanted: Callable[[Client], Any], seconds: float) -> Any:
        """The first true answer of `wanted`, asked through the gateway of `host`; fails with the last one."""

        def ask() -> Any:
            end = time.monotonic() + seconds
            last: object = None
            while time.monotonic() < end:
                try:
                    with self.client(host) as client:
                        while time.monotonic() < end:
                            last = wanted(client)
                            if last:
                                return last
                            time.sleep(0.1)
                except (httpx.TransportError, Unhealthy) as error:
                    last = error
                    time.sleep(0.1)
            raise AssertionError(f"not within {seconds} s; last: {last!r}")

        return from_outside(ask)

    def service(self, host: str, name: str) -> Any:
        return next(one for one in self.hosts[host].engine.containers(self.plan.cluster.name) if one.service == name)


@pytest.fixture(scope="module")
def cluster(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("three-hosts")
    the_plan, store = _render(folder, images)
    needed = sorted(set(the_plan.cluster.images.values()))
    # The stand-in for the CUDA image: GPUs are reserved as rendered, frames are drawn by the processor.
    engine.tag(f"animatediff-ha/webui-synthetic:{images}", the_plan.cluster.images["webui"])
    addresses = {host.name: host.address for host in the_plan.hosts}
    with machines(addresses, folder / "machines", needed, engine) as hosts:
        first = next(iter(hosts))
        # As an operator does once for a new shared storage.
        prepare = ("run", "--rm", "--no-deps", "storage-init", "storage-init", "--create")
        hosts[first].engine.compose(folder / "out" / first, *prepare)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: _up(hosts[name], folder / "out" / name), hosts))
        running = Cluster(the_plan, hosts, folder, store)
        running.sees("gpu-01", lambda client: len(_idle(client)) == 6, 120)
        # What only watches comes last: all at once is more than two cores start in time.
        for name, host in hosts.items():
            there = set(host.engine.compose(folder / "out" / name, "config", "--services").split())
            host.engine.compose(folder / "out" / name, *UP, *sorted(WATCHING & there), timeout=300)
        yield running


def _render(folder: Path, tag: str) -> tuple[Plan, Store]:
    """The example, with a folder of this machine as the storage that all hosts share, and without Elastic's images,
    which cannot be pulled here: test_logs_stack.py has stand-ins for them."""
    text = (ROOT / "config/cluster.example.yaml").read_text()
    text = re.sub(r"(?m)^logs:.*\n(  .*\n)+", "logs: {driver: none}\n", text.replace(", logs]", "]"))
    shared = folder / "shared"
    for name in ("jobs", "models"):
        (shared / name).mkdir(parents=True)
        (shared / name).chmod(0o777)
    start, end = text.index("storage:"), text.index("models:")
    text = text[:start] + f"storage:\n  driver: cephfs\n  cephfs: {{path: {shared}}}\n\n" + text[end:]
    file = folder / "cluster.yaml"
    file.write_text(text.replace('tag: "0.1.0"', f'tag: "{tag}"').replace("cpus: 8.0", f"cpus: {os.cpu_count()}.0"))
    loaded = load(file)
    assert check(loaded) == []
    the_plan = plan(loaded.cluster)
    tree.write(folder / "out", render(the_plan, read_sources()))
    store = Store(folder / "store")
    names = (*(host.address for host in the_plan.hosts), *the_plan.addresses)
    store.create_missing(
        names, tls=True, redis=redis_names(the_plan), monitoring=monitoring_names(the_plan), logs=logs_names(the_plan)
    )
    lay_out(the_plan, folder / "out", store.read())
    # The stand-in image has one engine; everything else of the rendered file stays as it is.
    for host in the_plan.hosts:
        override = {
            w.webui: {
                "environment": {
                    "APPLIANCE_ENGINE": "synthetic",
                    "APPLIANCE_DEVICE": "cpu",
                    "APPLIANCE_SYNTHETIC_STEP_SECONDS": STEP_SECONDS,
                }
            }
            for w in host.workers
        }
        (folder / "out" / host.name / "compose.override.yaml").write_text(json.dumps({"services": override}))
    return the_plan, store


def _up(host: HostMachine, folder: Path) -> None:
    services = set(host.engine.compose(folder, "config", "--services").split()) - WATCHING
    host.engine.compose(folder, *UP, *sorted(services), timeout=300)


def _idle(client: Client) -> list[str]:
    return [worker["name"] for worker in client.cluster()["workers"] if worker["alive"] and worker["state"] == "idle"]


def test_every_gpu_service_got_the_gpu_it_reserved(cluster: Cluster) -> None:
    for host in cluster.plan.hosts:
        for worker in host.workers:
            container = cluster.service(host.name, worker.webui)
            assert (container.state, container.health) == ("running", "healthy")
            environment = Path(f"/proc/{container.pid}/environ").read_text().split("\0")
            # Docker's own nvidia driver sets this one from the reservation.
            assert f"NVIDIA_VISIBLE_DEVICES={worker.gpu_uuid}" in environment
            assert f"CUDA_VISIBLE_DEVICES={worker.gpu_uuid}" in environment


def test_the_queue_has_one_master_two_replicas_and_three_sentinels(cluster: Cluster) -> None:
    roles = []
    for name, host in cluster.hosts.items():
        options = "--tls --cacert /run/secrets/ca.crt --user appliance --no-auth-warning"
        asked = f'REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli {options} "$@"'
        redis, sentinel = cluster.service(name, "redis"), cluster.service(name, "sentinel")
        roles.append(host.engine.exec(redis.id, "bash", "-c", asked, "-", "ROLE").splitlines()[0])
        quorum = host.engine.exec(sentinel.id, "bash", "-c", asked, "-", "-p", "26379", "SENTINEL", "CKQUORUM", "queue")
        assert quorum.startswith("OK 3 usable Sentinels"), quorum
    assert sorted(roles) == ["master", "slave", "slave"]


def test_a_stranger_on_the_network_is_told_nothing(cluster: Cluster) -> None:
    def knock() -> dict[str, int]:
        answers = {}
        with httpx.Client(timeout=5, trust_env=False) as http:
            for port, path in (
                (8000, "/api/v1/jobs"),
                (7860, "/internal/generate"),
                (7861, "/metrics"),
                (80, "/api/v1/jobs"),
            ):
                answers[f"{port}{path}"] = http.get(f"http://192.168.1.10:{port}{path}").status_code
        return answers

    assert from_outside(knock) == {
        "8000/api/v1/jobs": 401,
        "7860/internal/generate": 401,
        "7861/metrics": 401,
        "80/api/v1/jobs": 308,
    }


def test_the_loss_of_the_master_s_host_loses_no_job(cluster: Cluster) -> None:
    """Pulls the cable of gpu-01: gateway, api, Redis master and two workers with their jobs are gone at once."""

    def fill(client: Client) -> list[str]:
        return [submit(client, steps=STEPS, seed=seed) for seed in range(6)]

    jobs = cluster.sees("gpu-02", fill, 30)
    cluster.sees("gpu-02", lambda c: all(step(c.job(job)) > 0 for job in jobs), 60)
    held = cluster.sees("gpu-02", lambda c: [c.job(job) for job in jobs], 5)
    lost = [job["id"] for job in held if job["worker"].startswith("gpu-01/")]
    assert len(lost) == 2
    assert {job["state"] for job in held} == {"running"}, "the cable is pulled in the middle of all of them"
    cluster.hosts["gpu-01"].cut()
    cut = time.monotonic()
    try:
        late = cluster.sees("gpu-02", lambda c: submit(c, steps=5, seed=99), 60)
        print(f"\nhost of the Redis master cut off: submissions go on after {time.monotonic() - cut:.2f} s")
        cluster.sees("gpu-02", lambda c: _run_again(c, {job: _fence(held, job) for job in lost}), 90)
        print(f"both jobs of the lost host run elsewhere after {time.monotonic() - cut:.2f} s")
        done = cluster.sees("gpu-02", lambda c: _all_done(c, [*jobs, late]), 180)
    finally:
        cluster.hosts["gpu-01"].plug()
    kept = [job for job in done if job["id"] not in (*lost, late)]
    assert [job["fence"] for job in kept] == [_fence(held, job["id"]) for job in kept], "no running job was restarted"
    cluster.sees("gpu-01", lambda c: len(_idle(c)) == 6, 90)
    commits = list((cluster.folder / "shared/jobs").rglob("COMMIT"))
    assert sorted(path.parent.name for path in commits) == sorted([*jobs, late])


def _run_again(client: Client, fences: dict[str, int]) -> bool:
    jobs = [client.job(job) for job in fences]
    if not all(job["fence"] != fences[job["id"]] and step(job) > 0 for job in jobs):
        raise Unhealthy(f"not running again: {jobs}")  # kept as the last thing seen
    return True


@pytest.fixture
def sshd() -> str:
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = "needs sshd: install the package openssh-server"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


def test_down_up_and_status_reach_another_host_through_ssh(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sshd: str
) -> None:
    """`generator down`, `up` and `status` on gpu-03, from a machine that is none of the hosts."""
    there = tmp_path / "there"
    monkeypatch.setattr(cluster_ops, "REMOTE_FOLDER", str(there))
    with ssh_server(cluster.hosts["gpu-03"], tmp_path / "ssh", sshd) as ssh:

        def work() -> tuple[bool, bool, bool]:
            places = cluster_ops.places(cluster.plan, cluster.folder / "out", only="gpu-03", ssh=ssh)
            assert places[0].ssh, "the client owns none of the hosts' addresses"
            cluster_ops.up(places, Progress())
            before = status(places, None).well
            cluster_ops.down(places, Progress(), volumes=False)
            after = status(places, None).well
            cluster_ops.up(places, Progress())
            return before, after, status(places, None).well

        assert from_outside(work) == (True, False, True)
    copied = there / "animatediff/gpu-03"
    assert (copied / "compose.yaml").read_bytes() == (cluster.folder / "out/gpu-03/compose.yaml").read_bytes()
    assert (copied / "secrets/redis_password").stat().st_mode & 0o777 == 0o600
    cluster.sees("gpu-01", lambda client: len(_idle(client)) == 6, 90)


def test_a_key_counts_on_a_running_host_behind_ssh_until_it_is_revoked(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sshd: str
) -> None:
    out = shutil.copytree(cluster.folder / "out", tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/animatediff").symlink_to(cluster.folder / "out")  # what the containers of gpu-02 have mounted
    monkeypatch.setattr(cluster_ops, "REMOTE_FOLDER", str(tmp_path / "there"))
    address = cluster.plan.by_name["gpu-02"].address

    def answers(key: str, status: int) -> bool:
        there = f"http://{address}:{ports.API}/api/v1/jobs"
        return httpx.get(there, headers={"X-Api-Key": key}, timeout=5).status_code == status

    def spread(places: list[cluster_ops.Place]) -> None:
        lay_out(cluster.plan, out, cluster.store.read())
        assert cluster_ops.renew(places, Progress()) == []

    with ssh_server(cluster.hosts["gpu-02"], tmp_path / "ssh", sshd) as ssh:

        def work() -> None:
            places = cluster_ops.places(cluster.plan, out, only="gpu-02", ssh=ssh)
            key = cluster.store.add_api_key("ada", KeyRole.USER)
            assert answers(key, 401)
            spread(places)
            assert cluster_ops.wait_until(lambda: answers(key, 200), 5)
            cluster.store.revoke_api_key("ada")
            spread(places)
            assert cluster_ops.wait_until(lambda: answers(key, 401), 5)

        from_outside(work)


def _fence(held: list[dict[str, Any]], job: str) -> int:
    return next(int(one["fence"]) for one in held if one["id"] == job)


def _all_done(client: Client, jobs: list[str]) -> list[dict[str, Any]] | None:
    seen = [client.job(job) for job in jobs]
    assert not [job for job in seen if job["state"] in ("dead", "cancelled")], seen
    return seen if all(job["state"] == "done" for job in seen) else None
