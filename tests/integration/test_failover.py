"""A job in mid-generation loses its worker in every way we know of, and is done exactly once all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator.docker import Engine
from generator.ops.client import Client
from tests.integration.stack import Stack, compose, prepare, step, submit, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
PROJECT = "adha-failover"
STEP_SECONDS = 0.15
TAKEOVER_SECONDS = 15.0
DONE_SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """`do` breaks one service of the pair that holds the job, `undo` brings it back."""

    service: str
    do: Callable[[Stack, str], None]
    undo: Callable[[Stack, str], None]
    steps: int = 40
    comes_back: bool = False
    """The restart policy may bring the same worker back in time to take the job again."""


def nothing(stack: Stack, service: str) -> None:
    """The restart policy brings it back."""


FAULTS = {
    "kill -9 the webui": Fault("webui", Stack.kill_9, nothing, comes_back=True),
    "kill -9 the agent": Fault("agent", Stack.kill_9, nothing, comes_back=True),
    "freeze the webui": Fault("webui", Stack.pause, Stack.unpause),
    "freeze the agent": Fault("agent", Stack.pause, Stack.unpause),
    "stop the webui's container": Fault("webui", Stack.stop, Stack.start),
    # Longer than the agent may go on after a SIGTERM: it has to hand the job back.
    "stop the agent's container": Fault("agent", Stack.stop, Stack.start, steps=100),
    "cut the webui's network": Fault("webui", Stack.cut, Stack.reconnect),
    "cut the agent's network": Fault("agent", Stack.cut, Stack.reconnect),
}


@pytest.fixture(scope="module")
def stack(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("failover")
    the_plan, host, store = prepare(folder, tag=images, variant="synthetic", project=PROJECT, step_seconds=STEP_SECONDS)
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    with compose(host):
        running = Stack(
            PROJECT,
            the_plan,
            f"http://127.0.0.1:{gateway.http_port}",
            store.read()["api_key"].decode(),
            engine,
            f"{PROJECT}_cluster",
        )
        with running.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client, once all three workers are ready to take a job (the test before may have broken one)."""
    with stack.client() as made:
        end = time.monotonic() + 60
        while (workers := made.cluster()["workers"]) and sum(w["state"] == "idle" for w in workers) < 3:
            assert time.monotonic() < end, workers
            time.sleep(0.2)
        yield made


def index_of(worker: str) -> str:
    return worker.rpartition("/")[2]


@pytest.mark.parametrize("name", FAULTS)
def test_the_job_is_done_elsewhere_and_once(stack: Stack, client: Client, name: str) -> None:
    fault = FAULTS[name]
    job = submit(client, steps=fault.steps)
    before = wait_for(client, job, lambda now: now["state"] == "running" and step(now) >= 5, 30)
    service = f"{fault.service}-{index_of(before['worker'])}"
    fault.do(stack, service)
    broken = time.monotonic()
    try:
        after = wait_for(
            client,
            job,
            lambda now: now["fence"] != before["fence"] and now["state"] == "running" and step(now) > 0,
            TAKEOVER_SECONDS,
        )
        where = "another worker" if after["worker"] != before["worker"] else "the restarted worker"
        print(f"\n{name}: {time.monotonic() - broken:.2f} s until the job made a step on {where}")
        assert fault.comes_back or after["worker"] != before["worker"]
        assert after["fence"] > before["fence"]
        done = wait_for(client, job, lambda now: now["state"] == "done", DONE_SECONDS)
    finally:
        fault.undo(stack, service)
    _done_exactly_once(stack, client, done)


def _done_exactly_once(stack: Stack, client: Client, done: dict[str, Any]) -> None:
    """Also after the worker that was broken has come back and done whatever it still had in mind."""
    time.sleep(3.0)
    later = client.job(done["id"])
    assert (later["state"], later["worker"], later["fence"]) == (done["state"], done["worker"], done["fence"])
    assert stack.commits(done["id"]) == 1
    events = stack.redis("XRANGE", f"{{q}}:ev:{done['id']}", "-", "+")
    assert events.splitlines().count("done") == 1, events
    assert stack.redis("XLEN", "{q}:run") == "0", "the ledger holds running jobs only"
    assert stack.redis("ZCARD", "{q}:lease") == "0"


def test_a_killed_redis_forgets_nothing_and_stops_no_running_job(stack: Stack, client: Client) -> None:
    """The queue's only Redis dies with three jobs running and three waiting, and reads its file again."""
    jobs = [submit(client, steps=60, seed=seed) for seed in range(6)]
    end = time.monotonic() + 60
    running: dict[str, int] = {}
    while len(running) < 3:
        seen = [client.job(job) for job in jobs]
        running = {one["id"]: one["fence"] for one in seen if one["state"] == "running" and step(one) >= 3}
        assert time.monotonic() < end, seen
        time.sleep(0.1)
    stack.kill_9("redis")
    killed = time.monotonic()
    late = submit(client, steps=5)
    print(f"\nkill -9 of the only Redis: submissions go on after {time.monotonic() - killed:.2f} s")
    done = [wait_for(client, job, lambda now: now["state"] == "done", 120) for job in (*jobs, late)]
    assert {one["id"]: one["fence"] for one in done if one["id"] in running} == running, "no running job was restarted"
    assert [stack.commits(job) for job in (*jobs, late)] == [1] * 7


def test_without_a_key_nothing_is_told(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url, trust_env=False) as stranger:
        for method, path in [
            ("GET", "/api/v1/jobs"),
            ("POST", "/api/v1/jobs"),
            ("GET", "/api/v1/cluster"),
            ("GET", "/webui/"),
        ]:
            answer = stranger.request(method, path)
            assert answer.status_code == httpx.codes.UNAUTHORIZED, (method, path)
            assert answer.headers["content-type"].startswith("application/problem+json")
        for path in ("/internal/auth", "/webui/internal/ping", "/webui/internal/generate", "/metrics"):
            assert stranger.get(path).status_code in (httpx.codes.NOT_FOUND, httpx.codes.UNAUTHORIZED), path
        # A1111's clients ask for it first; it is the gateway's own, not a node's.
        assert stranger.get("/internal/ping").json() == stranger.get("/readyz").json()


def test_containers_run_as_nobody_in_particular(stack: Stack) -> None:
    for container in stack.engine.containers(PROJECT):
        if container.state == "running":
            status = Path(f"/proc/{container.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert fields["Uid"].split() == ["10001"] * 4, container.service
            assert int(fields["CapEff"], 16) == 0, container.service
            assert fields["NoNewPrivs"] == "1", container.service
