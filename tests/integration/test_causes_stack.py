"""`generator errors` and `generator trace` against a whole cluster in containers that runs out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator.docker import Engine
from generator.ops.client import Client
from generator.ops.demo import free_port
from generator.sources import ROOT
from tests.integration.stack import compose, submit, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PROJECT = "adha-causes"
FAULTS = {"oom_above_context": 8, "vram_mib": 24_576, "fail_prompt_contains": "unlucky"}
EACH = 24
OVER = ("done", "dead", "cancelled")


class Cluster:
    """The demo's, with workers that have 24 GB, of which more than 8 frames together are too much."""

    def __init__(self, folder: Path, tag: str) -> None:
        self.file, self.out = folder / "cluster.yaml", folder / "rendered"
        self.port = free_port(18_080)
        text = (ROOT / "config/cluster.demo.yaml").read_text()
        text = text.replace("name: animatediff-demo", f"name: {PROJECT}").replace("8080", str(self.port))
        text = text.replace("  webui: cpu", f'  webui: synthetic\n  tag: "{tag}"')
        text = text.replace("gateway:\n", "gateway:\n  submissions_per_second: 1000\n")  # one client asks for all
        self.file.write_text(text.replace("worker:\n", "worker:\n  step_seconds: 0.01\n"))
        self.run("render", str(self.file))
        self.run("secrets", "--file", str(self.file))
        faults = {"environment": {"APPLIANCE_SYNTHETIC_FAULTS": json.dumps(FAULTS)}}
        override = {"services": {f"webui-{number}": faults for number in range(3)}}
        (self.out / "demo/compose.override.yaml").write_text(yaml.safe_dump(override))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "generator", *words, "--out", str(self.out)]
        environment = {**os.environ, "COLUMNS": "200"}
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, f"{words}: {result.stderr[-3000:]}{result.stdout[-1000:]}"
        return result

    def ask(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run(*words, "--file", str(self.file), "--json").stdout)
        return answer

    def client(self) -> Client:
        key = (self.file.parent / "secrets/api_key").read_text()
        return Client(f"http://127.0.0.1:{self.port}", key)


@pytest.fixture(scope="module")
def cluster(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("causes"), images)
    running = compose(made.out / "demo")
    running.compose_file_name = ["compose.yaml", "compose.override.yaml"]
    with running:
        with made.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield made


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> dict[str, list[str]]:
    """Many that ask for 16 frames together, as many that ask for 8, and one that no engine can make."""
    with cluster.client() as client:
        asked = {"frames": 16, "steps": 2}
        made = {
            "tight": [submit(client, **asked, context_batch_size=16, seed=seed) for seed in range(EACH)],
            "fine": [submit(client, **asked, context_batch_size=8, seed=seed) for seed in range(EACH)],
            "unlucky": [submit(client, **asked, context_batch_size=8, prompt="an unlucky boat")],
        }
        for job in [job for several in made.values() for job in several]:
            wait_for(client, job, lambda view: view["state"] in OVER, 240)
    return made


def test_the_cause_is_found_in_what_real_workers_left(cluster: Cluster, jobs: dict[str, list[str]]) -> None:
    answer = cluster.ask("errors")
    assert answer["looked_at"]["jobs"] == 2 * EACH + 1
    assert answer["looked_at"]["without_parameters"] == 0
    oom, unknown = answer["kinds"]
    assert (oom["reason"], oom["jobs"], oom["failures"]) == ("OOM", EACH, 2 * EACH)
    assert oom["gpus"] == [{"gpu": "synthetic, 24576 MiB", "failures": 2 * EACH, "attempts": 4 * EACH + 3}]
    (finding,) = oom["findings"]
    assert (finding["parameter"], finding["bucket"], finding["failures"]) == ("context_batch_size", "above 8", EACH)
    assert oom["suggestion"].startswith("ask for a context_batch_size of 8 at most (seen safe: ")
    assert (unknown["reason"], unknown["jobs"], unknown["failures"]) == ("UNKNOWN", 1, 3)
    assert unknown["where"] == "webui.engine.synthetic:generate"
    shown = cluster.run("errors", "--file", str(cluster.file)).stdout
    assert "context_batch_size above 8" in shown
    assert oom["fingerprint"] in shown
    assert "of the last 7 days" in shown


def test_a_jobs_life_is_told_by_all_that_had_to_do_with_it(cluster: Cluster, jobs: dict[str, list[str]]) -> None:
    job = jobs["tight"][0]
    answer = cluster.ask("trace", job)
    assert answer["missing"] == []
    entries = answer["entries"]
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
    services = {entry["source"] for entry in entries}
    assert services >= {"queue", "cluster", "demo/gateway"}
    assert any(name.startswith("demo/agent-") for name in services)
    assert any(name.startswith("demo/webui-") for name in services)
    told = [entry["text"] for entry in entries if entry["source"] == "queue"]
    assert told[0].startswith("submitted by operator")
    assert sum(text.startswith("begins on demo/") for text in told) == 3
    assert any("oom: OOM: synthetic fault: out of GPU memory with 16 frames" in text for text in told)
    assert any("context 8" in text for text in told)
    assert told[-1] == "done"
    other = jobs["tight"][1]
    assert all(other not in entry["text"] for entry in entries)
    shown = cluster.run("trace", job, "--file", str(cluster.file)).stdout
    assert "begins on demo/" in shown


def test_what_cannot_be_asked_is_said(cluster: Cluster, jobs: dict[str, list[str]], engine: Engine) -> None:
    api = next(one for one in engine.containers(PROJECT) if one.service == "api")
    engine.stop(api.id, grace_seconds=15)
    try:
        answer = cluster.ask("trace", jobs["tight"][0])
    finally:
        engine.start(api.id)
    assert [text.split(":")[0] for text in answer["missing"]] == ["what the queue knows"]
    assert any(entry["source"].startswith("demo/agent-") for entry in answer["entries"])
    with cluster.client() as client:
        client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
    stranger = cluster.ask("trace", "01a22362-01b9-71c4-9f1c-45142bb03e50")
    assert stranger["entries"] == []
    assert "there is no job" in stranger["missing"][0]
