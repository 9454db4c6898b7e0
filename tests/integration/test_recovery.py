"""How soon a job runs again after a kill -9, and what no fault elsewhere may do to a job that runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from generator.docker import Engine
from generator.errors import Unhealthy
from generator.ops.client import Client
from tests.integration.chaos.cluster import Options, running_cluster
from tests.integration.chaos.faults import kill_9, kill_for_good
from tests.integration.chaos.history import History, Submit
from tests.integration.chaos.storm import Storm, Weather, find_master, wait_until_in_step
from tests.integration.stack import Stack, compose, prepare, step, submit, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PROJECT = "adha-recovery"
KILLS = 30
SLOW = "2"
"""The worker whose steps take 20 s."""
SLOW_STEP_SECONDS = 20
STEP_SECONDS = 0.1
PROMISED_SECONDS = 3.0
BACK_SECONDS = 90.0
"""Docker doubles its pause before each start of what did not run for 10 s, up to a minute."""


@pytest.fixture(scope="module")
def stack(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("recovery")
    the_plan, host, store = prepare(folder, tag=images, variant="synthetic", project=PROJECT, step_seconds=STEP_SECONDS)
    slow = {f"webui-{SLOW}": {"environment": {"APPLIANCE_SYNTHETIC_STEP_SECONDS": str(SLOW_STEP_SECONDS)}}}
    (host / "compose.override.yaml").write_text(yaml.safe_dump({"services": slow}))
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    running = compose(host)
    running.compose_file_name = ["compose.yaml", "compose.override.yaml"]
    with running:
        url = f"http://127.0.0.1:{gateway.http_port}"
        key = store.read()["api_key"].decode()
        made = Stack(PROJECT, the_plan, url, key, engine, f"{PROJECT}_cluster")
        with made.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield made


def cancel(stack: Stack, job: str) -> None:
    headers = {"X-Api-Key": stack.key}
    httpx.delete(f"{stack.url}/api/v1/jobs/{job}", headers=headers, trust_env=False).raise_for_status()


def state_of(client: Client, index: str) -> str:
    with contextlib.suppress(httpx.TransportError, Unhealthy):
        workers = client.cluster()["workers"]
        return next((str(one["state"]) for one in workers if one["alive"] and one["name"].endswith(f"/{index}")), "")
    return ""


def wait_for_state(client: Client, index: str, wanted: str, seconds: float = BACK_SECONDS) -> None:
    end = time.monotonic() + seconds
    while (state := state_of(client, index)) != wanted:
        assert time.monotonic() < end, f"worker {index} is {state!r}, not {wanted!r}, after {seconds:g} s"
        time.sleep(0.1)


def occupy_slow_worker(stack: Stack, client: Client) -> str:
    """A job that only the slow worker is there to take."""
    others = [f"agent-{index}" for index in ("0", "1")]
    for agent in others:
        stack.stop(agent)
    job = submit(client, steps=150)
    wait_for(client, job, lambda now: now["state"] == "running", 30)
    for agent in others:
        stack.start(agent)
    for index in ("0", "1"):
        wait_for_state(client, index, "idle")
    return job


def recovery_seconds(stack: Stack, client: Client, victim: str) -> float:
    """From the kill until the next attempt runs, also where Docker takes its time to start the victim again."""
    job = submit(client, steps=150)
    before = wait_for(client, job, lambda now: now["state"] == "running" and step(now) >= 3, 60)
    index = before["worker"].rpartition("/")[2]
    wait_for_state(client, "1" if index == "0" else "0", "idle")
    service = f"{victim}-{index}"
    stack.kill_9(service)
    killed = time.monotonic()
    after = wait_for(client, job, lambda now: now["fence"] != before["fence"] and now["state"] == "running", 30)
    took = time.monotonic() - killed
    assert after["fence"] > before["fence"]
    wait_for(client, job, lambda now: step(now) > 0, 10)
    cancel(stack, job)
    wait_for(client, job, lambda now: now["state"] == "cancelled", 30)
    wait_for_state(client, index, "idle")
    return took


def test_a_killed_worker_s_job_runs_again_while_a_slow_one_is_left_alone(stack: Stack) -> None:
    took: dict[str, list[float]] = {"agent": [], "webui": []}
    with stack.client() as client:
        slow = occupy_slow_worker(stack, client)
        before = client.job(slow)
        for number in range(KILLS):
            victim = "agent" if number % 2 == 0 else "webui"
            took[victim].append(recovery_seconds(stack, client, victim))
        after = client.job(slow)
        cancel(stack, slow)
    print()
    for victim, seconds in {**took, "both": took["agent"] + took["webui"]}.items():
        print(f"kill -9 of {victim}: runs again after p50 {p(seconds, 50):.2f} s, p95 {p(seconds, 95):.2f} s", end="")
        print(f", at most {max(seconds):.2f} s (n={len(seconds)})")
    assert (after["state"], after["fence"]) == ("running", before["fence"]), "20 s per step is slow, not dead"
    assert step(after) > 0
    assert p(took["agent"] + took["webui"], 95) <= PROMISED_SECONDS


def p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# --- the queue's master ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [kill_for_good, kill_9], ids=["stays away", "back at once"])
async def test_a_killed_master_pauses_submissions_and_restarts_no_job(
    engine: Engine, images: str, tmp_path: Path, kill: Any
) -> None:
    history = History()
    with running_cluster(engine, images, tmp_path, Options(step_seconds=0.5)) as cluster:
        storm = Storm(cluster, history, Weather("recovery"))
        async with storm.watched():
            jobs = [await _start(storm, number) for number in range(len(cluster.workers))]
            await _until_running(storm, jobs)
            before = {job: storm.watcher.jobs[job].facts["fence"] for job in jobs}
            master = await find_master(cluster)
            submitting = asyncio.create_task(_submit_steadily(storm, seconds=12))
            await asyncio.sleep(2)
            undo = await asyncio.to_thread(kill, cluster, f"redis-{master}")
            await submitting
            await asyncio.to_thread(undo)
            await wait_until_in_step(cluster)
            await storm.watcher.look()
            after = {job: storm.watcher.jobs[job].facts["fence"] for job in jobs}
    pause = longest_pause(history)
    print(f"\nRedis master killed ({kill.__name__}): no submission was accepted for {pause:.2f} s")
    assert after == before, "a running job was restarted"
    assert pause <= PROMISED_SECONDS


async def _start(storm: Storm, number: int) -> str:
    body = {"prompt": "a boat", "width": 64, "height": 64, "frames": 8, "steps": 50}
    job = await storm.users.submit("ada", f"long-{number}", "plain", body, random.Random(number))
    assert job is not None
    return job


async def _until_running(storm: Storm, jobs: list[str]) -> None:
    end = time.monotonic() + 30
    while True:
        states = [storm.watcher.jobs[job].facts.get("state") for job in jobs if job in storm.watcher.jobs]
        if states == ["running"] * len(jobs):
            return
        assert time.monotonic() < end, states
        await asyncio.sleep(0.1)


async def _submit_steadily(storm: Storm, seconds: float) -> None:
    """Ten a second, each on its own: one that waits for the new master must not hold up the next."""
    body = {"prompt": "a boat", "width": 64, "height": 64, "frames": 8, "steps": 1}
    urls, end = list(storm.cluster.apis.values()), time.monotonic() + seconds
    tries: list[asyncio.Task[Submit]] = []
    while time.monotonic() < end:
        key = f"steady-{len(tries)}"
        tries.append(asyncio.create_task(storm.users.try_submit("ben", key, "plain", body, urls[len(tries) % 3])))
        await asyncio.sleep(0.1)
    await asyncio.gather(*tries)


def longest_pause(history: History) -> float:
    """Between two answers that accepted one."""
    moments = sorted(one.end for one in history.of(Submit) if one.outcome == "accepted" and one.user == "ben")
    return max(later - earlier for earlier, later in pairwise(moments))
