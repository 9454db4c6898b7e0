"""A whole cluster on one host: nodes are drained, quarantined, accused by an alert, and found out by their failures."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from generator.docker import Engine
from generator.errors import UserError
from generator.ops import nodes
from generator.ops.client import Client
from generator.ops.cluster import places
from generator.ops.nodes import Cluster
from generator.progress import Mode, Progress
from tests.integration.stack import Stack, compose, prepare, submit, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
PROJECT = "adha-nodes"
FAILING = json.dumps({"fail_prompt_contains": "boat", "reason": "CUDA_ERROR"})
QUIET = Progress(Mode.QUIET)


@dataclass
class Scene:
    stack: Stack
    cluster: Cluster
    folder: Path
    workers: list[str]

    def node(self, name: str) -> dict[str, Any]:
        return next(one for one in self.cluster.ask(Client.nodes) if one["name"] == name and one["pool"] == "webui")

    def traffic(self, name: str) -> tuple[str, float]:
        """State and share of a node by the only gateway there is; what that told last may have run out."""
        views = list(self.node(name)["seen_by"].values())
        return (views[0]["state"], views[0]["share"]) if views else ("", 0.0)

    def wait_for(self, name: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = 15) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while not wanted(seen := self.node(name)):
            assert time.monotonic() < end, seen
            time.sleep(0.1)
        return seen

    def wait_for_traffic(self, name: str, state: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while self.traffic(name)[0] != state:
            assert time.monotonic() < end, self.node(name)
            time.sleep(0.1)

    def headers(self) -> dict[str, str]:
        return {"X-Api-Key": self.stack.key}


@pytest.fixture(scope="module")
def scene(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("nodes")
    the_plan, host, store = prepare(folder, tag=images, variant="synthetic", project=PROJECT, step_seconds=0.1)
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    url = f"http://127.0.0.1:{gateway.http_port}"
    key = store.read()["api_key"].decode()
    with compose(host):
        stack = Stack(PROJECT, the_plan, url, key, engine, f"{PROJECT}_cluster")
        with stack.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        cluster = Cluster(places(the_plan, folder), key, None)
        workers = [worker.worker for worker in the_plan.hosts[0].workers]
        made = Scene(stack, cluster, host, workers)
        for worker in workers:
            made.wait_for(worker, lambda one: one["state"] == "idle", 60)
            made.wait_for_traffic(worker, "UP", 60)
        yield made


@pytest.fixture(autouse=True)
def back_to_work(scene: Scene) -> Iterator[None]:
    yield
    nodes.take_back(scene.cluster, scene.workers)
    for worker in scene.workers:
        scene.wait_for(worker, lambda one: one["state"] == "idle", 60)
        scene.wait_for_traffic(worker, "UP", 60)


@pytest.fixture
def client(scene: Scene) -> Iterator[Client]:
    with scene.stack.client() as made:
        yield made


def text_of(parts: list[Any]) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    for part in parts:
        console.print(part)
    return console.export_text()


def test_a_drained_node_ends_its_job_and_a_question_why_is_answered(scene: Scene, client: Client) -> None:
    jobs = [submit(client, steps=60) for _ in range(3)]
    running = [wait_for(client, job, lambda one: one["state"] == "running", 20) for job in jobs]
    drained = running[0]["worker"]
    nodes.give(scene.cluster, [drained], {"order": "drain", "reason": "dusty"})
    scene.wait_for_traffic(drained, "DRAINING")
    assert scene.traffic(drained)[1] == 0
    nodes.wait_until_idle(scene.cluster, [drained], 30, QUIET)
    done = wait_for(client, jobs[0], lambda one: one["state"] == "done", 20)
    assert [one["worker"] for one in done["attempts"]["history"]] == [drained], "it ended what it had"
    later = [submit(client, steps=2) for _ in range(6)]
    ends = [wait_for(client, job, lambda one: one["state"] == "done", 40) for job in later]
    assert drained not in {one["attempts"]["history"][-1]["worker"] for one in ends}
    why = text_of(nodes.why(scene.cluster, [drained]))
    assert "drain ordered by operator: dusty" in why
    assert "DRAINING" in why
    assert "node_draining" in why
    assert "order_drain" in why


def test_a_quarantined_node_hands_back_its_job(scene: Scene, client: Client) -> None:
    job = submit(client, steps=150)
    sick = wait_for(client, job, lambda one: one["state"] == "running", 20)["worker"]
    begin = time.monotonic()
    nodes.give(scene.cluster, [sick], {"order": "quarantine", "reason": "it smells"})
    moved = wait_for(client, job, lambda one: one["state"] == "running" and one["worker"] != sick, 10)
    print(f"\nits job runs on {moved['worker']} {time.monotonic() - begin:.2f} s after the order")
    scene.wait_for_traffic(sick, "QUARANTINED")
    assert httpx.delete(f"{scene.stack.url}/api/v1/jobs/{job}", headers=scene.headers()).status_code < 300


def test_not_the_last_node_and_a_host_wholly_or_not_at_all(scene: Scene) -> None:
    with pytest.raises(UserError, match="last node that takes work"):
        nodes.give(scene.cluster, scene.workers, {"order": "drain"})
    assert [scene.node(worker)["order"] for worker in scene.workers] == [None] * 3, "the first two are taken back"
    nodes.give(scene.cluster, scene.workers, {"order": "drain", "force": True})
    for worker in scene.workers:
        scene.wait_for(worker, lambda one: one["state"] == "drained")
    end = time.monotonic() + 15
    while (states := [scene.traffic(worker)[0] for worker in scene.workers]).count("UP") != 1:
        assert time.monotonic() < end, f"pages are served by the last one all the same: {states}"
        time.sleep(0.1)


def test_an_alert_about_a_gpu_drains_that_node_and_its_end_brings_it_back(scene: Scene) -> None:
    accused = scene.workers[1]
    host, _, index = accused.partition("/")
    labels = {"alertname": "GpuMemoryFull", "action": "drain", "node_name": host, "gpu_id": index}
    for status, state in (("firing", "DRAINING"), ("resolved", "UP")):
        body = {"version": "4", "alerts": [{"status": status, "labels": labels, "annotations": {"summary": "97 %"}}]}
        answer = httpx.post(f"{scene.stack.url}/api/v1/alerts", json=body, headers=scene.headers())
        assert answer.status_code == 200, answer.text
        scene.wait_for_traffic(accused, state)
        assert {scene.traffic(worker)[0] for worker in scene.workers if worker != accused} == {"UP"}


def test_a_node_whose_jobs_all_fail_is_quarantined_for_a_while(scene: Scene, client: Client) -> None:
    override = scene.folder / "compose.override.yaml"
    broken = {"services": {"webui-0": {"environment": {"APPLIANCE_SYNTHETIC_FAULTS": FAILING}}}}
    override.write_text(yaml.safe_dump(broken))
    again = partial(scene.stack.engine.compose, scene.folder, "up", "-d", "--no-deps", "--wait", "webui-0", timeout=120)
    sick = scene.workers[0]
    again()
    try:
        scene.wait_for(sick, lambda one: one["state"] == "idle", 60)
        jobs = [submit(client, steps=5) for _ in range(30)]
        seen = scene.wait_for(sick, lambda one: bool(one["order"]), 60)
        assert seen["order"]["order"] == "quarantine"
        assert seen["order"]["by"].startswith("the controller of ")
        assert "CUDA_ERROR while others succeed" in seen["order"]["reason"]
        assert seen["order"]["until"] - seen["order"]["at"] == pytest.approx(60, abs=1)
        scene.wait_for_traffic(sick, "QUARANTINED")
        ends = [wait_for(client, job, lambda one: one["state"] in ("done", "dead"), 120) for job in jobs]
        assert {one["state"] for one in ends} == {"done"}, "it cost nobody a job"
    finally:
        override.unlink()
        again()
