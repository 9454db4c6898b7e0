"""An agent that is ordered out of work and back: a drained one ends its job, a quarantined one hands it back."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import time

import pytest

from appliance.job import JobState
from appliance.queue import Queue
from appliance.queue.orders import Order, OrderKind
from tests.integration.redis_server import RedisServer, redis, redis_server  # noqa: F401
from tests.integration.test_agent import (  # noqa: F401
    Peer,
    Running,
    add,
    agent,
    jobs_dir,
    peer,
    queue,
    settings_for,
    until,
    wait_for,
)

pytestmark = pytest.mark.docker
WORKER = "a/0"


async def order(queue: Queue, kind: OrderKind, worker: str = WORKER) -> None:
    await queue.nodes.put_orders({worker: Order(kind, "ada")})


async def wait_for_state(queue: Queue, *states: str, worker: str = WORKER) -> None:
    end = time.monotonic() + 5
    while True:
        found = {record.name: record.state for record in await queue.workers()}
        if found.get(worker) in states:
            return
        assert time.monotonic() < end, f"{worker} is {found.get(worker)}"
        await asyncio.sleep(0.02)


async def test_a_drained_worker_ends_its_job_and_takes_no_other(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["wait"]
    first, second = await add(queue), await add(queue)
    await until(lambda: bool(peer.requests))
    await order(queue, OrderKind.DRAIN)
    await asyncio.sleep(1)
    peer.go_on.set()
    done = await wait_for(queue, first, JobState.DONE)
    assert done.attempts == 1
    await wait_for_state(queue, "drained")
    await asyncio.sleep(1)
    waiting = await queue.get(second)
    assert waiting is not None
    assert (waiting.state, waiting.attempts) == (JobState.QUEUED, 0)
    assert len(peer.requests) == 1
    await queue.nodes.drop_orders([WORKER])
    await wait_for(queue, second, JobState.DONE)


async def test_a_quarantined_worker_hands_its_job_back(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    sick = Running(settings_for(peer, redis_server), redis_server)
    peer.plan, peer.checkpoint_step = ["wait"], 2
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    begin = time.monotonic()
    await order(queue, OrderKind.QUARANTINE)
    job = await wait_for(queue, job_id, JobState.QUEUED)
    print(f"\nback in line {time.monotonic() - begin:.2f} s after the order")
    assert [(one.kind, one.message) for one in job.history] == [("release", "its worker is being taken out of service")]
    assert (job.crashes, job.errors, job.checkpoint_step) == (0, 0, 2)
    await wait_for_state(queue, "quarantined")
    heir = Running(settings_for(peer, redis_server, "b/0"), redis_server)
    done = await wait_for(queue, job_id, JobState.DONE)
    assert done.history[-1].worker == "b/0"
    await sick.end()
    await heir.end()


async def test_a_quarantine_that_is_over_leaves_the_next_job_alone(queue: Queue, peer: Peer, agent: Running) -> None:
    await order(queue, OrderKind.QUARANTINE)
    await wait_for_state(queue, "quarantined")
    await queue.nodes.drop_orders([WORKER])
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    await asyncio.sleep(0.5)
    peer.go_on.set()
    assert (await wait_for(queue, job_id, JobState.DONE)).attempts == 1


async def test_an_ordered_worker_stops_at_once(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    for kind in (OrderKind.DRAIN, OrderKind.QUARANTINE):
        await order(queue, kind)
        running = Running(settings_for(peer, redis_server), redis_server)
        await wait_for_state(queue, "drained", "quarantined")
        await asyncio.wait_for(running.end(), 3)
        await wait_for_state(queue, "stopped")


async def test_a_drained_worker_that_is_stopped_hands_back_what_it_cannot_end(
    queue: Queue, peer: Peer, agent: Running
) -> None:
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    await order(queue, OrderKind.DRAIN)
    await asyncio.sleep(0.5)
    agent.stop.set()
    job = await wait_for(queue, job_id, JobState.QUEUED)
    assert [(one.kind, one.message) for one in job.history] == [("release", "its worker is being stopped")]


async def test_a_canary_works_like_any_other(queue: Queue, peer: Peer, agent: Running) -> None:
    await order(queue, OrderKind.CANARY)
    await asyncio.sleep(0.5)
    assert (await wait_for(queue, await add(queue), JobState.DONE)).attempts == 1
