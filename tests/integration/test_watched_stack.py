"""The whole of one host, watched: every metric in Prometheus, data for every panel, and a full GPU that is drained.

Three synthetic workers, whose GPUs are played by a library in NVIDIA's place; everything else is what a cluster runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator import tree
from generator.docker import Engine
from generator.errors import Unhealthy
from generator.model import Cluster
from generator.ops.client import Client
from generator.ops.demo import free_port
from generator.plan import plan
from generator.render import render
from generator.secrets import Store, Values, lay_out
from generator.sources import read_sources
from tests import nvml
from tests.integration.stack import Stack, submit, wait_for
from tests.integration.test_dashboards import filled_in, panels
from tests.integration.test_monitoring import is_shared
from tests.metric_names import CANONICAL, series_of
from tests.nvml import State, uuid_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PROJECT = "adha-watched"
ALERTS = "health: Alerts that fire"
"""The panel that has data only while there are some."""
BILL = {"cost: The bill, by service", "cost: The bill so far", "cost: Questions to Cost Explorer"}
WORKERS = 3
FAULTS = json.dumps({"fail_prompt_contains": "rocks", "reason": "CUDA_ERROR"})
WITHOUT_AWS = CANONICAL[:31]


@dataclass(frozen=True)
class Watched:
    stack: Stack
    secrets: Values
    authority: Path
    gpus: State

    def client(self) -> Client:
        return Client(self.stack.url, self.stack.key, authority=self.authority, server_name="localhost")

    def ask(self, path: str, **params: str) -> Any:
        (address,) = self.stack.container("prometheus").networks.values()
        login = ("operator", self.secrets["monitoring_password"].decode())
        response = httpx.get(f"http://{address}:9090/api/v1/{path}", params=params, auth=login, timeout=20)
        response.raise_for_status()
        return response.json()["data"]["result"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expression)
        return found

    def until(self, what: str, found: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (seen := found()):
            assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
            time.sleep(0.3)
        return seen

    def states(self) -> dict[str, tuple[str, str]]:
        """Of each worker: what it does, and what the gateway sees in it."""
        with self.client() as client:
            return {
                node["name"]: (node["state"], next(iter(node["seen_by"].values()), {"state": ""})["state"])
                for node in client.nodes()
                if node["pool"] == "webui"
            }


def rendered(folder: Path, tag: str, gpus: State, library: Path) -> Watched:
    demo: dict[str, Any] = {
        "address": "127.0.0.1", "roles": ["gateway", "control", "queue", "worker", "metrics"], "cpu_workers": WORKERS,
    }  # fmt: skip
    cluster = Cluster.model_validate(
        {
            "name": PROJECT,
            "images": {"webui": "synthetic", "tag": tag},
            "hosts": {"demo": demo},
            "gateway": {"bind": "127.0.0.1", "http_port": free_port(18_080), "https_port": free_port(18_443)},
            "storage": {"driver": "local"},
            "logs": {"driver": "none"},
            "models": {
                "checkpoint": "tiny", "motion_module": "tiny",
                "available": [
                    {"name": "tiny", "kind": kind, "source": "demo"} for kind in ("checkpoint", "motion_module")
                ],
            },
            "worker": {"cpus": 1.0, "memory_gib": 1, "threads": 1, "step_seconds": 0.02},
            "monitoring": {"scrape_seconds": 5, "gpu_memory": {"high_seconds": 3, "low_seconds": 5}},
            "cost": {"host_prices": [{"host": "demo", "usd_per_hour": 2.5, "market": "owned", "as_of": "2026-01-15"}]},
        }
    )  # fmt: skip
    the_plan = plan(cluster)
    tree.write(folder, render(the_plan, read_sources()))
    store = Store(folder / "store")
    store.create_missing(("localhost",), tls=True)
    secrets = store.read()
    lay_out(the_plan, folder, secrets)
    override = json.dumps({"services": overridden(gpus, library)})
    (folder / "demo/compose.override.yaml").write_text(override)
    gateway = the_plan.hosts[0].gateway
    assert gateway
    url = f"https://127.0.0.1:{gateway.https_port}"
    stack = Stack(PROJECT, the_plan, url, secrets["api_key"].decode(), Engine(), f"{PROJECT}_cluster")
    return Watched(stack, secrets, folder / "store/ca.crt", gpus)


def overridden(gpus: State, library: Path) -> dict[str, Any]:
    exporter = {
        "environment": {
            "LD_LIBRARY_PATH": "/nvml",
            "NVML_STUB_STATE": f"/gpus/{gpus.path.name}",
            "APPLIANCE_GPUS": ",".join(uuid_of(number) for number in range(WORKERS)),
        },
        "volumes": [f"{library}:/nvml:ro", f"{gpus.path.parent}:/gpus:ro"],
    }
    faulty = {"environment": {"APPLIANCE_SYNTHETIC_FAULTS": FAULTS}}
    services: dict[str, Any] = {"exporter": exporter, **{f"webui-{number}": faulty for number in range(WORKERS)}}
    # Where nothing has made this machine's root a shared mount, as systemd does, Docker refuses to follow it.
    if not is_shared("/"):
        root = {"type": "bind", "source": "/", "target": "/host", "read_only": True}
        services["node-exporter"] = {"volumes": [root]}
    return services


@pytest.fixture(scope="module")
def watched(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, library = tmp_path_factory.mktemp("watched"), nvml.build(tmp_path_factory.mktemp("nvml"))
    gpus = State(tmp_path_factory.mktemp("gpus") / "state")
    for number in range(WORKERS):
        gpus.add(number)
    gpus.write()
    for open_to_all in (library, gpus.path.parent, gpus.path.parent.parent):
        open_to_all.chmod(0o755)
    watched = rendered(folder, images, gpus, library)
    stack, place = watched.stack, folder / "demo"
    away = ("down", "--volumes", "--remove-orphans", "--timeout", "1")
    stack.engine.compose(place, *away, timeout=120)
    try:
        stack.engine.compose(place, "up", "--detach", "--wait", "--wait-timeout", "240", timeout=300)
        with watched.client() as client:
            client.wait_ready(120, describe=lambda: str(stack.engine.containers(PROJECT)))
        yield watched
    finally:
        stack.engine.compose(place, *away, timeout=120)


@pytest.fixture(scope="module")
def worked(watched: Watched) -> Watched:
    """After ten jobs that succeed, two that fail, a moment without Redis, and a GPU's error."""
    with watched.client() as client:
        good: list[str] = []
        for batch in (4, 6):  # what grows before it was first seen has not grown, as Prometheus sees it
            good += [submit(client, width=64, height=64, steps=5) for _ in range(batch)]
            for job in good:
                wait_for(client, job, lambda seen: seen["state"] == "done", 90)
            told = f"sum(animatediff_job_success_total) == {len(good)}"
            watched.until(told, lambda: watched.query(told))  # noqa: B023 - asked within this turn
        bad = [submit(client, prompt="rocks", width=64, height=64, steps=5) for _ in range(2)]
        for job in bad:
            wait_for(client, job, lambda seen: seen["state"] == "dead", 90)
        watched.stack.pause("redis")
        with pytest.raises(Unhealthy):
            client.job(good[0])
        watched.stack.unpause("redis")
    watched.gpus.xids.append((uuid_of(1), 79))
    watched.gpus.write()
    # One kind may be a round of its rules behind the other.
    both = "count(count by (basis) (animatediff_cost_usd_per_video_second)) == 2"
    watched.until("the costs", lambda: watched.query(both), 150)
    time.sleep(25)  # rates take two samples, recording rules one round
    return watched


def test_every_metric_is_in_prometheus(worked: Watched) -> None:
    assert [name for name in WITHOUT_AWS if not worked.query(series_of(name))] == []
    worked.until("everybody answers in time", lambda: not worked.query("up == 0"))
    for number in range(WORKERS):
        assert worked.query(f'nvidia_smi_gpu_up{{gpu_id="{number}", uuid="{uuid_of(number)}", node_name="demo"}} == 1')
    assert float(worked.query("sum(animatediff_job_success_total)")[0]["value"][1]) == 10
    assert float(worked.query("sum(animatediff_job_failures_total)")[0]["value"][1]) >= 2


def test_every_panel_has_data(worked: Watched) -> None:
    """But for the bill of AWS, which nobody here gets. An answer that a busy machine gave too late is waited for."""
    empty, end = dict(expressions()), time.monotonic() + 30
    while set(empty.values()) - BILL and time.monotonic() < end:
        empty = {text: name for text, name in empty.items() if not worked.query(text)}
        time.sleep(1)
    assert set(empty.values()) - {ALERTS} == BILL


def expressions() -> Iterator[tuple[str, str]]:
    for one in panels():
        (panel,) = one.values
        for target in panel["targets"]:
            yield filled_in(target["expr"]), str(one.id)


def test_a_full_gpu_is_drained_and_comes_back(worked: Watched) -> None:
    """From NVML to the gateway and back: that worker, and no other."""
    worked.until("all up", lambda: set(worked.states().values()) == {("idle", "UP")})
    begin = time.monotonic()
    worked.gpus.gpus[uuid_of(1)]["used"] = 23_500
    worked.gpus.write()
    worked.until("drained", lambda: worked.states()["demo/1"] == ("drained", "DRAINING"))
    assert all(worked.query(text) for text, name in expressions() if name == ALERTS)
    print(f"\ndrained {time.monotonic() - begin:.1f} s after NVML said so, of which 3 s are the alert's own")
    states = worked.states()
    assert (states["demo/0"], states["demo/2"]) == (("idle", "UP"), ("idle", "UP"))
    with worked.client() as client:
        jobs = [submit(client, width=64, height=64, steps=5) for _ in range(6)]
        done = [wait_for(client, job, lambda seen: seen["state"] == "done", 60) for job in jobs]
    assert {job["worker"] for job in done} <= {"demo/0", "demo/2"}
    worked.gpus.gpus[uuid_of(1)]["used"] = 21_000  # 87 %: below what began it, above what ends it
    worked.gpus.write()
    time.sleep(20)
    assert worked.states()["demo/1"] == ("drained", "DRAINING")
    worked.gpus.gpus[uuid_of(1)]["used"] = 8_000
    worked.gpus.write()
    worked.until("back", lambda: set(worked.states().values()) == {("idle", "UP")}, 90)
