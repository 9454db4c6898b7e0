"""What a node fails is asked elsewhere where that can be done, and a node on trial gets nothing else.

The test itself is the controller.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.fault_stage.contenders import Ours, ours
from tests.integration.fault_stage.stage import PORT, Node, Stage, three_nodes
from tests.integration.gateway_stage import PLAIN

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
COOKIES = [f"{number:032x}" for number in range(60)]
FAR_AHEAD = 2**53  # of any version and epoch that the controller has pushed


class Visited:
    """A gateway before three nodes, all well at first."""

    def __init__(self, nodes: list[Node], gateway: Ours) -> None:
        self.nodes = nodes
        self.sick = nodes[1]
        self._gateway = gateway
        self._version = 0

    def push(
        self,
        trial: Collection[str] = (),
        retired: Collection[str] = (),
        refusing: Collection[str] = (),
        more: int = 0,
    ) -> None:
        """A new state: these nodes on trial, those without anything new, those at a port where nobody listens; so many
        more names of the first one."""
        self._version += 1
        api = [{"name": node.name, "ip": node.ip, "port": PORT, "weight": 1} for node in self.nodes]
        webui = [
            {
                **peer,
                "trial": peer["name"] in trial,
                "weight": int(peer["name"] not in retired),
                "port": 9 if peer["name"] in refusing else PORT,
            }
            for peer in [*api, *({**api[0], "name": f"more-{number}"} for number in range(more))]
        ]
        body = {"epoch": str(FAR_AHEAD)[:16], "version": self._version, "pools": {"api": api, "webui": webui}}
        assert self._gateway.push(json.dumps(body)) == 200

    def ask(self, method: str, path: str = "/webui/page", **headers: str) -> list[httpx.Response]:
        """Once for each of the visitors."""
        url = "http://{}:{}".format(*self._gateway.address) + path
        with httpx.Client(verify=PLAIN, timeout=5, headers={**self._gateway.key, **headers}) as client:
            return [client.request(method, url, headers={"Cookie": f"appliance_client={one}"}) for one in COOKIES]

    def socket_nodes(self) -> set[str]:
        url = "ws://{}:{}/webui/queue/join".format(*self._gateway.address)
        found = set()
        for one in COOKIES:
            headers = {**self._gateway.key, "Cookie": f"appliance_client={one}"}
            with connect(url, additional_headers=headers, compression=None) as socket:
                socket.send("?")
                found.add(str(socket.recv(timeout=5)))
        return found


@pytest.fixture(scope="module")
def staged(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Ours]]:
    with ExitStack() as closing:
        nodes = closing.enter_context(three_nodes(images))
        gateway = closing.enter_context(ours(nodes, images, tmp_path_factory.mktemp("gateway")))
        gateway.stop_controller()
        yield nodes, gateway


@pytest.fixture(scope="module")
def shared(staged: tuple[Stage, Ours]) -> Visited:
    return Visited(staged[0].nodes, staged[1])


@pytest.fixture
def visited(shared: Visited) -> Visited:
    for node in shared.nodes:
        node.set_mode()
    shared.push()
    return shared


def nodes_of(answers: list[httpx.Response]) -> set[str]:
    assert {answer.status_code for answer in answers} == {200}
    return {answer.json()["node"] for answer in answers}


@pytest.mark.parametrize("status", ["500", "502", "504"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_can_be_asked_twice_is_answered_by_another_node(visited: Visited, method: str, status: str) -> None:
    assert nodes_of(visited.ask(method)) == {node.name for node in visited.nodes}
    visited.sick.set_mode(status=status)
    assert nodes_of(visited.ask(method)) == {node.name for node in visited.nodes} - {visited.sick.name}


def test_what_cannot_is_not(visited: Visited) -> None:
    visited.sick.set_mode(status="500")
    mark = uuid.uuid4().hex
    statuses = Counter(answer.status_code for answer in visited.ask("POST", **{"X-Post-Id": mark}))
    taken = {node.name: node.posts().count(mark) for node in visited.nodes}
    assert sum(taken.values()) == len(COOKIES)
    assert statuses[500] == taken[visited.sick.name] > 0
    assert statuses[200] == len(COOKIES) - statuses[500]


@pytest.mark.parametrize("status", ["401", "404", "409", "413", "429", "503"])
def test_a_refusal_is_an_answer(visited: Visited, status: str) -> None:
    visited.sick.set_mode(status=status)
    assert Counter(answer.status_code for answer in visited.ask("GET"))[int(status)] > 0


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("state", ["well", "trial", "retired"])
def test_what_a_node_has_made_is_found_wherever_its_visitor_is_now(visited: Visited, method: str, state: str) -> None:
    changed: dict[str, Any] = {} if state == "well" else {state: {visited.sick.name}}
    visited.push(**changed, more=6)
    for node in visited.nodes:
        assert nodes_of(visited.ask(method, f"/webui/local/runs/{node.name}/files/0")) == {node.name}
    missing = visited.ask(method, "/webui/local/runs/nowhere/1")
    assert {(answer.status_code, answer.json()["type"]) for answer in missing} == {(404, "not-found")}


@pytest.mark.parametrize("state", ["well", "trial", "retired"])
@pytest.mark.parametrize("fault", ["fails", "refuses"])
def test_who_cannot_tell_is_not_taken_for_one_that_has_it_no_more(visited: Visited, state: str, fault: str) -> None:
    """Pages take a 404 for the last word."""
    changed: dict[str, Any] = {} if state == "well" else {state: {visited.sick.name}}
    if fault == "fails":
        visited.sick.set_mode(status="500")
    else:
        changed["refusing"] = {visited.sick.name}
    visited.push(**changed)
    unsure = visited.ask("GET", f"/webui/local/runs/{visited.sick.name}/1")
    assert {answer.status_code for answer in unsure} <= {500, 502, 503}, "never 404"
    well = visited.nodes[0].name
    assert nodes_of(visited.ask("GET", f"/webui/local/runs/{well}/1")) == {well}, "wherever it was asked before"


@pytest.mark.parametrize("state", ["trial", "retired"])
def test_nothing_new_is_made_where_it_may_be_lost(visited: Visited, state: str) -> None:
    visited.push(**{state: {visited.sick.name}})
    for method in ("POST", "GET"):
        assert visited.sick.name not in nodes_of(visited.ask(method, "/webui/local/runs"))


def test_a_nodes_own_list_is_no_other_nodes(visited: Visited) -> None:
    visited.sick.set_mode(status="500")
    assert {answer.status_code for answer in visited.ask("GET", "/webui/local/runs")} == {200, 500}


def test_where_all_fail_it_is_said_once(visited: Visited) -> None:
    for node in visited.nodes:
        node.set_mode(status="500")
    assert {answer.status_code for answer in visited.ask("GET")} == {500}


def test_a_node_on_trial_gets_only_what_can_be_asked_twice(visited: Visited) -> None:
    sick = visited.sick.name
    others = {node.name for node in visited.nodes} - {sick}
    visited.push(trial={sick})
    assert sick in nodes_of(visited.ask("GET"))
    assert nodes_of(visited.ask("POST")) == others
    assert visited.socket_nodes() == others
    visited.push()
    assert nodes_of(visited.ask("POST")) == visited.socket_nodes() == {sick, *others}, "the trial is over"


def test_a_trial_that_ends_badly_is_noticed_by_nobody(visited: Visited) -> None:
    visited.sick.set_mode(status="500")
    visited.push(trial={visited.sick.name})
    for method in ("GET", "POST", "GET"):
        assert visited.sick.name not in nodes_of(visited.ask(method))


def test_where_all_are_on_trial_all_serve(visited: Visited) -> None:
    names = {node.name for node in visited.nodes}
    visited.push(trial=names)
    assert nodes_of(visited.ask("POST")) == visited.socket_nodes() == names
