"""Balance `least_busy` in the real gateway container: who gets new sessions, who keeps them; no count leaks."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_socket_node import KEY
from tests.integration.gateway_stage import PLAIN, wait_for
from tests.integration.test_gateway_sockets import NODES, Stage, head_of, node_of, on_stage

FIRST, SECOND = NODES
COOKIE = "appliance_client"

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def shared(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    the_plan = gateway_plan(tls={"mode": "none"}, balance="least_busy")
    with on_stage(tmp_path_factory.mktemp("gateway"), the_plan, images) as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    shared.push_all()
    yield shared
    shared.opened.close()
    wait_for("all closed", lambda: not any(node.open for node in shared.nodes.values()), shared.setup.logs)


def visit(stage: Stage, cookie: str | None = None) -> tuple[str, str | None]:
    """The node that answers, and the cookie where it is a new one."""
    headers = {**KEY, **({"Cookie": f"{COOKIE}={cookie}"} if cookie else {})}
    answer = httpx.get(stage.setup.base + "/webui/page", headers=headers, timeout=5, verify=PLAIN)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["node"]), answer.cookies.get(COOKIE)


def sockets_of_new_browsers(stage: Stage, count: int) -> dict[str, int]:
    return dict(Counter(node_of(stage.connect()) for _ in range(count)))


def test_what_a_node_says_it_has_to_do_counts(stage: Stage) -> None:
    stage.push(stage.peer(FIRST, busy=3), stage.peer(SECOND, busy=1))
    assert {visit(stage)[0] for _ in range(12)} == {SECOND}
    stage.push(stage.peer(FIRST, busy=0), stage.peer(SECOND))
    assert {visit(stage)[0] for _ in range(40)} == {FIRST, SECOND}, "equal: by the browser's name"


def test_requests_under_way_count_at_once(stage: Stage) -> None:
    assert sockets_of_new_browsers(stage, 10) == {FIRST: 5, SECOND: 5}
    stage.push(stage.peer(FIRST, busy=4), stage.peer(SECOND))
    assert sockets_of_new_browsers(stage, 10) == {FIRST: 3, SECOND: 7}


def test_weights_share_the_load(stage: Stage) -> None:
    stage.push(stage.peer(FIRST, weight=3), stage.peer(SECOND, weight=1))
    assert sockets_of_new_browsers(stage, 12) == {FIRST: 9, SECOND: 3}


def test_a_session_stays_until_its_node_takes_no_more(stage: Stage) -> None:
    stage.push(stage.peer(FIRST), stage.peer(SECOND, busy=9))
    node, cookie = visit(stage)
    assert node == FIRST
    assert cookie
    stage.push(stage.peer(FIRST, busy=9), stage.peer(SECOND))
    assert visit(stage, cookie) == (FIRST, None)
    for left in ([stage.peer(SECOND)], [stage.peer(FIRST, weight=0), stage.peer(SECOND)]):
        stage.push(*left)
        moved, renewed = visit(stage, cookie)
        assert moved == SECOND
        assert renewed
        assert renewed != cookie
    stage.push(stage.peer(FIRST), stage.peer(SECOND, busy=9))
    assert visit(stage, renewed) == (SECOND, None), "whoever has moved does not move back"


@pytest.mark.parametrize("cookie", ["x", "0" * 32, "0" * 32 + ".", "0" * 32 + ".zzzzzzzz", "0" * 33, "a" * 4000])
def test_a_strange_cookie_is_a_new_browser(stage: Stage, cookie: str) -> None:
    _, renewed = visit(stage, cookie)
    assert renewed
    assert renewed != cookie
    assert visit(stage, renewed)[1] is None


def test_busy_is_checked(stage: Stage) -> None:
    before = stage.setup.state().json()["state"]
    for wrong in (-1, 1.5, "1", None, 1e9):
        peer = stage.peer(FIRST, busy=wrong)
        body = {"epoch": "1", "version": stage.version + 1, "pools": {"api": [], "webui": [peer]}}
        assert stage.setup.state(json.dumps(body)).status_code == 400, wrong
    assert stage.setup.state().json()["state"] == before


def test_requests_that_fail_are_not_counted_for_ever(stage: Stage) -> None:
    stage.push(stage.peer(FIRST, port=9))
    for path in ("/webui/page", "/webui/queue/join"):
        for _ in range(10):
            assert httpx.get(stage.setup.base + path, headers=KEY, verify=PLAIN).status_code == 502
    for _ in range(10):
        assert head_of(stage.raw()).startswith(b"HTTP/1.1 502 ")
    stage.push(stage.peer(FIRST, port=9, weight=1000), stage.peer(SECOND))
    for _ in range(10):
        assert visit(stage)[0] == SECOND, "the next one, after the first has refused"
        assert node_of(stage.connect()) == SECOND
    stage.opened.close()
    stage.push_all()
    assert sockets_of_new_browsers(stage, 8) == {FIRST: 4, SECOND: 4}


def test_what_a_dead_worker_had_begun_is_not_counted_for_ever(stage: Stage) -> None:
    stage.push(stage.peer(FIRST))
    sockets_of_new_browsers(stage, 20)
    shown = docker("top", stage.setup.container, "-eo", "pid,args").stdout
    workers = [int(line.split()[0]) for line in shown.splitlines() if "nginx: worker" in line]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of their sockets", lambda: stage.nodes[FIRST].open == 0, stage.setup.logs)
    stage.push_all()
    # As far as they are still counted, all these go to the other one.
    assert sockets_of_new_browsers(stage, 8) == {FIRST: 4, SECOND: 4}
