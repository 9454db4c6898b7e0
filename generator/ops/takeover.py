"""The demo's job: submitted, its worker killed, and followed until another worker has finished it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from generator.docker import Engine
from generator.errors import Unhealthy
from generator.ops.client import Client
from generator.planned import Plan
from generator.progress import Progress

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
JOB_SECONDS = 300.0
RECOVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Recovery:
    """What the death of a worker cost; seconds from the kill to the first step on another worker."""

    killed: str
    killed_at_step: int
    taken_over_by: str
    seconds: float


def job_that_loses_its_worker(
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
                task.update(_tell(job), _step(job), JOB["steps"])
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
    try:
        return client.job(job_id)
    except httpx.TransportError as error:
        raise Unhealthy(
            f"{client.url} does not answer any more ({error}); `docker ps -a` shows what stopped"
        ) from error


def _containers_of(engine: Engine, the_plan: Plan, worker: str) -> list[str]:
    pair = next(w for host in the_plan.hosts for w in host.workers if w.worker == worker)
    containers = engine.containers(the_plan.cluster.name)
    return [one.id for one in containers if one.service in (pair.agent, pair.webui)]


def _step(job: Mapping[str, Any]) -> int:
    return int((job.get("progress") or {}).get("step") or 0)


def _tell(job: Mapping[str, Any]) -> str:
    return f"{job['state']} on {job['worker']} step {_step(job)}" if job.get("worker") else str(job["state"])
