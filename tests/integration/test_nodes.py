"""Orders about nodes, from whoever gives them to who obeys: the api, Redis, the controller, a worker."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys
from appliance.api.alerts import HOLD_SECONDS
from appliance.api.app import create_app
from appliance.controller.chronicle import Chronicle
from appliance.controller.facts import Facts
from appliance.controller.policy import Node, Rules, Standing, State, Target, Verdict
from appliance.errors import QueueUnavailable
from appliance.lifecycle import cancel_tasks, start_task
from appliance.queue import FailKind, Queue
from appliance.queue.orders import Order, OrderKind
from appliance.settings import Address, ApiSettings, Common
from tests.integration.api_process import KEYS, write_keys
from tests.integration.redis_server import FAST, RedisServer, add, queue, redis, redis_server, take  # noqa: F401

pytestmark = pytest.mark.docker
A, B = "gpu-01/0", "gpu-02/0"
ABOUT = {"state": "idle", "engine": "synthetic", "fingerprint": "f", "synthetic": "1"}
NODES = "/api/v1/nodes"
OPERATOR, USER = {"X-Api-Key": KEYS["root"]}, {"X-Api-Key": KEYS["ada"]}


@pytest_asyncio.fixture
async def api(redis_server: RedisServer, queue: Queue, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_keys(tmp_path / "api_keys")
    common = Common("api", "test", "info", tmp_path)
    listen = Address("127.0.0.1", 0)
    settings = ApiSettings(common, redis_server.settings, FAST, listen, tmp_path / "jobs", tmp_path / "api_keys")
    transport = httpx.ASGITransport(create_app(settings, queue), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=OPERATOR) as client:
        yield client


async def beat(queue: Queue, worker: str, state: str = "idle") -> str:
    """A heartbeat; the order that the worker hears."""
    return (await queue.register(worker, boot_id=f"boot of {worker}", **ABOUT | {"state": state})).order


async def node(api: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await api.get(NODES)
    assert answer.status_code == 200, answer.text
    return next(one for one in answer.json()["nodes"] if one["name"] == name and one["pool"] == "webui")


async def events(queue: Queue) -> list[tuple[str, str]]:
    return [(one["type"], one["worker"]) for one in await queue.cluster_events(60) if one["type"].startswith("order")]


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drain", "quarantine"])
async def test_an_order_reaches_the_worker_and_is_taken_back(api: httpx.AsyncClient, queue: Queue, kind: str) -> None:
    await beat(queue, A)
    await beat(queue, B)
    answer = await api.put(f"{NODES}/{A}/order", json={"order": kind, "reason": "a new\nfan"})
    assert answer.status_code == 200, answer.text
    order = answer.json()
    assert (order["order"], order["by"], order["reason"], order["until"]) == (kind, "root", "a new fan", None)
    assert abs(order["at"] - time.time()) < 60
    assert (await beat(queue, A), await beat(queue, B)) == (kind, "")
    assert (await node(api, A))["order"] == order
    for _ in range(2):
        assert (await api.delete(f"{NODES}/{A}/order")).status_code == 204
    assert await beat(queue, A) == ""
    assert (await node(api, A))["order"] is None
    assert await events(queue) == [(f"order_{kind}", A), ("order_over", A), ("order_over", A)]


async def test_an_order_ends_by_itself(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    await beat(queue, B)
    await api.put(f"{NODES}/{A}/order", json={"order": "drain", "seconds": 0.4})
    assert await beat(queue, A) == "drain"
    await asyncio.sleep(0.5)
    assert await beat(queue, A) == ""
    assert (await node(api, A))["order"] is None


async def test_the_last_node_that_works_is_not_taken_out(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    await beat(queue, B, "unready")
    refused = await api.put(f"{NODES}/{A}/order", json={"order": "drain"})
    assert (refused.status_code, refused.json()["type"]) == (409, "last-node")
    assert (await api.put(f"{NODES}/{A}/order", json={"order": "canary", "share": 0.5})).status_code == 200
    assert (await api.put(f"{NODES}/{A}/order", json={"order": "drain", "force": True})).status_code == 200
    await beat(queue, B)
    refused = await api.put(f"{NODES}/{B}/order", json={"order": "quarantine"})
    assert (refused.status_code, refused.json()["type"]) == (409, "last-node"), "the other one is drained"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("gpu-09/0", {"order": "drain"}, 404),
        (A, {}, 422),
        (A, {"order": "kill"}, 422),
        (A, {"order": "drain", "share": 0.5}, 422),
        (A, {"order": "canary", "share": 1.5}, 422),
        (A, {"order": "canary", "share": "NaN"}, 422),
        (A, {"order": "drain", "seconds": 0}, 422),
        (A, {"order": "drain", "seconds": 1e12}, 422),
        (A, {"order": "drain", "reason": "x" * 201}, 422),
        (A, {"order": "drain", "until": 5}, 422),
        ("gpu-01/x", {"order": "drain"}, 422),
    ],
)
async def test_crooked_orders(
    api: httpx.AsyncClient, queue: Queue, path: str, body: dict[str, Any], status: int
) -> None:
    await beat(queue, A)
    await beat(queue, B)
    answer = await api.put(f"{NODES}/{path}/order", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await beat(queue, A) == ""


async def test_users_see_and_order_nothing(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    alert = {"alerts": [{"status": "firing", "labels": {"action": "drain", "node_name": "gpu-01", "gpu_id": "0"}}]}
    for answer in (
        await api.get(NODES, headers=USER),
        await api.put(f"{NODES}/{A}/order", json={"order": "drain", "force": True}, headers=USER),
        await api.delete(f"{NODES}/{A}/order", headers=USER),
        await api.post("/api/v1/alerts", json=alert, headers=USER),
    ):
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
    assert await beat(queue, A) == ""


async def test_an_order_that_nobody_can_read_is_none(api: httpx.AsyncClient, queue: Queue, redis: Redis) -> None:
    await beat(queue, A)
    for text in ("", "{", "[]", '{"order": 7}', '{"order": "drain", "until": "soon"}', '{"order": {}}'):
        await redis.hset(keys.ORDERS, A, text)
        await beat(queue, A)
        assert (await api.get(NODES)).status_code == 200


async def test_orders_wait_for_the_replicas(redis_server: RedisServer) -> None:
    lonely = redis_server.queue(FAST)
    lonely.nodes._replicas = 1
    with pytest.raises(QueueUnavailable):
        await lonely.nodes.put_orders({A: Order(OrderKind.DRAIN, "ada")})
    await lonely.close()


async def test_attempts_are_counted_by_worker(api: httpx.AsyncClient, queue: Queue) -> None:
    for kind, reason in (
        (FailKind.ERROR, "CUDA_ERROR"),
        (FailKind.OOM, "OOM"),
        (FailKind.RELEASE, "WORKER_LOST"),
        (FailKind.PERMANENT, "INVALID_INPUT"),
    ):
        await add(queue)
        await queue.fail(await take(queue, A), kind, reason, "no")
        await queue.tick()
    await beat(queue, A)
    done = await node(api, A)
    assert (done["done"], done["failed"]) == (0, 2), "neither what was handed back nor what cannot be done"


# --- Alertmanager ----------------------------------------------------------------------------------------------------


def alerts(status: str, worker: str = A, **labels: str) -> dict[str, Any]:
    host, _, index = worker.partition("/")
    about = {"alertname": "GpuMemoryFull", "action": "drain", "node_name": host, "gpu_id": index} | labels
    return {
        "version": "4",
        "groupKey": "x",
        "status": status,
        "alerts": [{"status": status, "labels": about, "annotations": {"summary": "96 % used"}, "startsAt": "2026"}],
    }


async def test_an_alert_drains_its_worker_and_only_that(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    await beat(queue, B)
    for _ in range(2):  # it repeats itself
        answer = await api.post("/api/v1/alerts", json=alerts("firing"))
        assert (answer.status_code, answer.json()) == (200, {"workers": {A: "drained"}})
    assert (await beat(queue, A), await beat(queue, B)) == ("drain", "")
    order = (await node(api, A))["order"]
    assert (order["by"], order["reason"]) == ("alertmanager", "GpuMemoryFull: 96 % used")
    assert 0 < order["until"] - order["at"] <= HOLD_SECONDS, "without word from it, for so long"
    assert (await api.post("/api/v1/alerts", json=alerts("resolved"))).json() == {"workers": {A: "back"}}
    assert await beat(queue, A) == ""


async def test_an_alert_leaves_alone_what_is_not_its_own(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    await beat(queue, B)
    await api.put(f"{NODES}/{A}/order", json={"order": "quarantine"})
    for status in ("firing", "resolved"):
        left = (await api.post("/api/v1/alerts", json=alerts(status))).json()["workers"][A]
        assert left == "left: quarantine ordered by root"
    assert await beat(queue, A) == "quarantine"
    for other in (alerts("firing", "gpu-09/0"), alerts("firing", action=""), {"alerts": []}):
        assert (await api.post("/api/v1/alerts", json=other)).json() == {"workers": {}}


async def test_an_alert_does_not_drain_the_last_node(api: httpx.AsyncClient, queue: Queue) -> None:
    await beat(queue, A)
    answer = await api.post("/api/v1/alerts", json=alerts("firing"))
    assert answer.json() == {"workers": {A: "left: it is the last node that takes work"}}
    assert await beat(queue, A) == ""


async def test_a_worker_comes_back_only_with_its_heartbeat(
    api: httpx.AsyncClient, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await beat(queue, A)
    await beat(queue, B)
    await api.post("/api/v1/alerts", json=alerts("firing"))
    await redis.hset(keys.worker(A), "seen", int((time.time() - 60) * 1000))
    answer = await api.post("/api/v1/alerts", json=alerts("resolved"))
    assert answer.status_code == 503, "Alertmanager tries again"
    assert A in answer.json()["detail"]
    assert await beat(queue, A) == "drain"
    assert (await api.post("/api/v1/alerts", json=alerts("resolved"))).json() == {"workers": {A: "back"}}


@pytest.mark.parametrize(
    "body", [[], {}, {"alerts": [{}]}, {"alerts": [{"status": "odd", "labels": {}}]},
             {"alerts": [{"status": "firing"}]}, {"alerts": [{"status": "firing", "labels": {}}] * 1001}]
)  # fmt: skip
async def test_what_is_no_alert(api: httpx.AsyncClient, body: Any) -> None:
    assert (await api.post("/api/v1/alerts", json=body)).status_code == 422


# --- the controller --------------------------------------------------------------------------------------------------


async def until(true: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_facts_follow_redis_and_freeze_without_it(queue: Queue, images: str) -> None:
    with RedisServer(images) as server:
        mine = server.queue(FAST)
        facts = Facts(mine.nodes)
        running = start_task("facts", facts.run())
        try:
            await beat(mine, A)
            await mine.nodes.put_orders({A: Order(OrderKind.DRAIN, "ada", until=None)})
            await until(lambda: A in facts.known.orders)
            await until(lambda: facts.known.workers[A].silent_seconds > 1)
            assert abs(facts.server_now - time.time()) < 5
            server.stop()
            await asyncio.sleep(2)
            frozen = facts.known.workers[A].silent_seconds
            await asyncio.sleep(1)
            assert facts.known.workers[A].silent_seconds == frozen
            assert A in facts.known.orders
            await asyncio.to_thread(server.start)
            await until(lambda: facts.known.workers.get(A) is not None and facts.known.workers[A].silent_seconds < 1)
        finally:
            await cancel_tasks(running)
            await mine.close()


async def test_a_quarantine_by_the_controller_yields_to_an_operator(queue: Queue) -> None:
    facts = Facts(queue.nodes)
    facts.take(await queue.nodes.look(), time.monotonic())
    await queue.nodes.put_orders({A: Order(OrderKind.DRAIN, "ada")})
    await facts.quarantine({A: "it fails", B: "it fails"}, "the controller of gpu-01", 60)
    orders = (await queue.nodes.look()).orders
    assert {name: order.kind for name, order in orders.items()} == {A: OrderKind.DRAIN, B: OrderKind.QUARANTINE}
    assert orders[B].until is not None
    assert 50 < orders[B].until - time.time() < 70


def standing(name: str, state: State, reason: str = "because") -> Standing:
    return Standing(Node(Target("webui", name, "h", 1), Verdict.UP), state, reason)


async def test_what_the_controller_tells(queue: Queue, redis: Redis, api: httpx.AsyncClient) -> None:
    view: Mapping[str, Any] = {
        "at": 1.0, "version": 3,
        "nodes": {f"webui {A}": {"state": "UP", "reason": "fine", "since_seconds": 2.5, "share": 1.0, "busy": 1,
                                 "fingerprint": "f"}, "api gpu-01": {"state": "DOWN", "reason": "gone"}},
        "counts": {f"webui {A}": {"passed": 7, "failed": 1}},
    }  # fmt: skip
    chronicle = Chronicle(queue.nodes, "gpu-01")
    running = start_task("chronicle", chronicle.run(lambda: view))
    try:
        chronicle.tell(standing(A, State.DOWN))
        await asyncio.sleep(0.5)
        told = [one for one in await queue.cluster_events(60) if one["type"] == "node_down"]
        assert [(one["worker"], one["reason"], one["by"]) for one in told] == [(A, "because", "gpu-01")]
        seen = (await node(api, A))["seen_by"]["gpu-01"]
        assert (seen["state"], seen["since_seconds"], seen["requests"]["passed"]) == ("UP", 2.5, 7)
        apis = [one for one in (await api.get(NODES)).json()["nodes"] if one["pool"] == "api"]
        assert [(one["name"], one["seen_by"]["gpu-01"]["state"]) for one in apis] == [("gpu-01", "DOWN")]
    finally:
        await cancel_tasks(running)
    await redis.delete(keys.view("gpu-01"))
    assert "gpu-01" not in json.dumps([one["seen_by"] for one in (await api.get(NODES)).json()["nodes"]])
    assert await redis.smembers(keys.VIEWS) == set(), "a gateway that is gone is forgotten"


async def test_what_redis_could_not_be_told_is_told_later(images: str) -> None:
    with RedisServer(images) as server:
        mine = server.queue(FAST)
        chronicle = Chronicle(mine.nodes, "gpu-01")
        server.stop()
        running = start_task("chronicle", chronicle.run(dict))
        try:
            for number in range(1200):
                chronicle.tell(standing(A, State.DOWN, str(number)))
            await asyncio.sleep(1)
            await asyncio.to_thread(server.start)

            deadline = time.monotonic() + 10
            while True:
                told = await mine.cluster_events(60)
                if told or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.2)
            assert [one["reason"] for one in told] == [str(number) for number in range(200, 1200)]
        finally:
            await cancel_tasks(running)
            await mine.close()


async def test_rules_are_those_of_the_contract() -> None:
    rules = Rules()
    assert (rules.failures_to_fall, rules.successes_to_rise, rules.flaps_allowed) == (2, 2, 3)
    assert (rules.first_hold_seconds, rules.longest_hold_seconds, rules.doubt_seconds) == (2, 60, 1)
