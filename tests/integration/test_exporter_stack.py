"""The exporter in its place: a rendered host with three workers, whose jobs it tells of."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from generator.docker import Engine
from tests.integration.exporter_process import Scrape
from tests.integration.stack import Stack, compose, prepare, submit, wait_for

pytestmark = pytest.mark.docker
PROJECT = "adha-exporter"
NODE = "demo"
# Within its container: the port is published on no host of a single one.
ASK = """\
import pathlib, sys, urllib.request
token = pathlib.Path("/run/secrets/cluster_token").read_text()
request = urllib.request.Request("http://exporter:9400/metrics", headers={"Authorization": "Bearer " + token})
sys.stdout.write(urllib.request.urlopen(request, timeout=10).read().decode())
"""


@pytest.fixture(scope="module")
def stack(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("exporter")
    the_plan, folder, store = prepare(root, tag=images, variant="synthetic", project=PROJECT, step_seconds=0.02)
    key = store.read()["api_key"].decode()
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    with compose(folder):
        url = f"http://127.0.0.1:{gateway.http_port}"
        running = Stack(PROJECT, the_plan, url, key, engine, f"{PROJECT}_cluster")
        with running.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield running


def scrape(stack: Stack) -> Scrape:
    text = stack.engine.exec(stack.container("exporter").id, "/opt/venv/bin/python", "-c", ASK)
    return Scrape(text, 0.0, node=NODE)


def test_jobs_and_processes_of_a_whole_host(stack: Stack) -> None:
    with stack.client() as client:
        jobs = [submit(client, width=64, height=64, steps=5) for _ in range(4)]
        for job in jobs:
            wait_for(client, job, lambda seen: seen["state"] == "done", 60)
    end = time.monotonic() + 15  # the api adds up what was noted, twice a second
    while (told := scrape(stack)).of("animatediff_job_success_total", resolution="64x64") != 4:
        assert time.monotonic() < end, told.text
        time.sleep(1)
    services = {dict(labels)["job"] for labels in told.values["process_cpu_seconds_total"]}
    assert services == {"api", "controller", "exporter", "agent-0", "agent-1", "agent-2"}
    assert told.of("animatediff_exporter_source_up", source="redis") == 1
    assert told.of("animatediff_job_success_total", model="tiny") == 4, "what a worker calls its own model"
    assert told.of("animatediff_job_wait_seconds_count", resolution="64x64") == 4
    assert told.of("animatediff_job_duration_seconds_count", resolution="64x64") == 4
    assert told.of("animatediff_video_seconds_generated_total", resolution="64x64") == 4 * 16 / 8
    assert (told.of("animatediff_gpu_seconds_total", gpu_model="cpu") or 0) > 0
    for number in range(3):
        name = "animatediff_worker_last_heartbeat_timestamp_seconds"
        assert abs((told.of(name, worker=f"{NODE}/{number}") or 0) - time.time()) < 30
    assert [name for name in told.values if name.startswith("nvidia_")] == []


def test_its_container_is_healthy_and_sees_the_gateways_door(stack: Stack) -> None:
    """It may look through the door, and change nothing behind it."""
    exporter = stack.container("exporter").id
    assert stack.engine.exec(exporter, "/opt/venv/bin/python", "-m", "appliance", "healthcheck", "exporter") == ""
    look = "import os, stat; print(stat.S_ISSOCK(os.stat('/run/gateway/state.sock').st_mode))"
    assert stack.engine.exec(exporter, "/opt/venv/bin/python", "-c", look).strip() == "True"
    write = "open('/run/gateway/x', 'w')"
    with pytest.raises(Exception, match="Read-only file system"):
        stack.engine.exec(exporter, "/opt/venv/bin/python", "-c", write)
    assert scrape(stack).of("animatediff_exporter_source_up", source="gateway") is not None
