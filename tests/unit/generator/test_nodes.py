from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest
from rich.console import Console

from generator.errors import Unhealthy, UserError
from generator.ops import nodes
from generator.ops.client import Client
from generator.ops.nodes import Cluster
from generator.ops.status import traffic_of
from generator.plan import plan
from generator.progress import Mode, Progress
from tests.unit.generator.clusters import three_hosts

T = TypeVar("T")
A, B, C = "gpu-01/0", "gpu-02/0", "gpu-03/0"
QUIET = Progress(Mode.QUIET)


class FakeClient:
    """A cluster that remembers its orders and refuses one of them."""

    def __init__(self, refuses: str = "", states: list[str] | None = None) -> None:
        self.orders: dict[str, dict[str, Any]] = {}
        self._refuses, self._states = refuses, states or []

    def ask(self, question: Callable[[Client], T]) -> T:
        return question(cast(Client, self))

    def order(self, worker: str, order: dict[str, Any]) -> dict[str, Any]:
        if worker == self._refuses:
            raise UserError(f"{worker} is the last node that takes work")
        self.orders[worker] = order
        return order

    def drop_order(self, worker: str) -> None:
        self.orders.pop(worker, None)

    def nodes(self) -> list[dict[str, Any]]:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return [node(A, state), {**node(A, "other"), "pool": "api"}]

    def cluster(self) -> dict[str, Any]:
        event = {"id": "1-0", "at": 0.0, "type": "node_down", "job": None, "worker": A, "reason": "[red]no answer"}
        return {"events": [event, {**event, "worker": B, "reason": "another"}]}


def node(name: str, state: str | None) -> dict[str, Any]:
    view = {"state": "DOWN", "reason": "no answer in 0.2 s", "since_seconds": 12.4, "share": 0.0, "busy": 0}
    order = {"order": "drain", "by": "ada", "reason": "dust"}
    return {"pool": "webui", "name": name, "state": state, "heartbeat_age_seconds": 0.4, "order": order,
            "seen_by": {"gpu-01": view, "gpu-02": {**view, "state": "UP"}}}  # fmt: skip


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.001)


def patched(monkeypatch: pytest.MonkeyPatch, fake: FakeClient) -> Cluster:
    """`Client.nodes` is handed over as a function, so the class has to have the fake's."""
    monkeypatch.setattr(Client, "order", lambda _, worker, order: fake.order(worker, order))
    monkeypatch.setattr(Client, "drop_order", lambda _, worker: fake.drop_order(worker))
    monkeypatch.setattr(Client, "nodes", lambda _: fake.nodes())
    cluster = Cluster((), "key", None)
    monkeypatch.setattr(Cluster, "ask", lambda _, question: fake.ask(question))
    return cluster


def test_a_worker_or_all_of_a_host() -> None:
    the_plan = plan(three_hosts())
    host = the_plan.hosts[1]
    assert nodes.workers_called(the_plan, host.workers[0].worker) == [host.workers[0].worker]
    assert nodes.workers_called(the_plan, host.name) == [worker.worker for worker in host.workers]
    with pytest.raises(UserError, match=r'"gpu-09" is neither a worker \(gpu-01/0'):
        nodes.workers_called(the_plan, "gpu-09")


def test_all_of_them_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClient(refuses=C)
    cluster = patched(monkeypatch, fake)
    with pytest.raises(UserError, match="last node"):
        nodes.give(cluster, [A, B, C], {"order": "drain"})
    assert fake.orders == {}
    nodes.give(cluster, [A, B], {"order": "drain"})
    assert set(fake.orders) == {A, B}
    nodes.take_back(cluster, [A])
    assert set(fake.orders) == {B}


def test_waiting_for_the_end_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.wait_until_idle(patched(monkeypatch, FakeClient(states=["running", "running", "drained"])), [A], 5, QUIET)
    with pytest.raises(Unhealthy, match="gpu-01/0: still at work after 0 s"):
        nodes.wait_until_idle(patched(monkeypatch, FakeClient(states=["running"])), [A], 0.01, QUIET)


def test_an_idle_one_has_not_heard_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next job may be on its way."""
    states = ["idle", "idle", "running", "drained"]
    cluster = patched(monkeypatch, FakeClient(states=states))
    nodes.wait_until_idle(cluster, [A], 5, QUIET)
    assert states == ["drained"]
    with pytest.raises(Unhealthy, match="gpu-01/0: still at work"):
        nodes.wait_until_idle(patched(monkeypatch, FakeClient(states=["idle"])), [A], 0.01, QUIET)


@pytest.mark.parametrize(
    ("state", "age", "ordered_seconds", "at_work"),
    [
        (None, None, 10, False),
        ("stopped", 0.1, 0.2, False),
        ("running", 0.1, 10, True),
        ("running", 99, 10, True),
        ("draining", 0.1, 10, True),
        ("idle", 0.1, 10, True),
        ("unready", 0.1, 10, True),
        ("idle", 5.1, 10, False),
        ("unready", 5.1, 10, False),
        ("drained", 0.1, 10, False),
        ("quarantined", 0.1, 10, False),
        ("drained", 0.4, 0.3, True),
    ],
)
def test_who_may_still_be_at_work(state: str | None, age: float | None, ordered_seconds: float, at_work: bool) -> None:
    assert nodes.is_at_work({**node(A, state), "heartbeat_age_seconds": age}, ordered_seconds) is at_work
    assert not nodes.is_at_work(None, ordered_seconds)


@pytest.mark.parametrize(("seen_as", "at_work"), [("DRAINING", True), ("UP", False), ("DOWN", False)])
def test_the_runs_of_its_visitors_are_work_too(seen_as: str, at_work: bool) -> None:
    views = {"gpu-01": {"state": "DOWN", "busy": 0}, "gpu-02": {"state": seen_as, "busy": 1}}
    assert nodes.is_at_work({**node(A, "drained"), "seen_by": views}, 10) is at_work
    views["gpu-02"]["busy"] = 0
    assert not nodes.is_at_work({**node(A, "drained"), "seen_by": views}, 10)


def test_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = patched(monkeypatch, FakeClient(states=["idle"]))
    console = Console(width=160, file=io.StringIO(), record=True)
    for part in nodes.why(cluster, [A, B]):
        console.print(part)
    text = console.export_text()
    assert "gpu-01/0: its agent is idle, last heard of 0 s ago; drain ordered by ada: dust" in text
    assert "no answer in 0.2 s" in text
    assert "[red]no answer" in text, "no markup from outside"
    assert "gpu-02/0: its agent has never been seen" in text
    assert "another" in text


def test_an_agent_that_was_never_seen_but_whose_page_is() -> None:
    assert nodes._in_words(node(A, None)) == "its agent has never been seen"


def test_traffic_in_a_word() -> None:
    assert traffic_of({}) == ""
    assert traffic_of(node(A, "idle")) == "gpu-01: DOWN, gpu-02: UP"
    assert traffic_of({"seen_by": {"a": {"state": "UP"}, "b": {"state": "UP"}}}) == "UP"


def test_no_gateway_answers() -> None:
    with pytest.raises(Unhealthy, match="no gateway has an answer"):
        Cluster((), "key", None).ask(Client.nodes)
