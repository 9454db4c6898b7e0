"""What became of requests is counted by peer, and a node that fails its visitors loses them; requests wait for a part
that restarts. The real gateway container and the real controller in front of real servers."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_stage import KEY, NODES, PLAIN, USER, Setup, running, wait_for

pytestmark = pytest.mark.docker
PAGE = "/webui/page"


@pytest.fixture(scope="module")
def setup(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with running(tmp_path_factory.mktemp("gateway"), gateway_plan(tls={"mode": "none"}), images) as made:
        yield made


@pytest.fixture(autouse=True)
def all_well(setup: Setup) -> None:
    for upstream in setup.upstreams.values():
        if upstream.process is None:
            upstream.start()
    if setup.controller is None:
        setup.start_controller()
    wait_for("full shares", lambda: shares(setup) == dict.fromkeys(NODES, 1), setup.logs, 60)


def shares(setup: Setup) -> dict[str, float]:
    answer = setup.state()
    peers = answer.json()["state"]["pools"]["webui"] if answer.status_code == 200 else []
    return {peer["name"]: peer["weight"] for peer in peers}


def counts(setup: Setup) -> dict[str, Any]:
    """All of them: each worker of nginx adds its own ten times a second."""
    time.sleep(0.3)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(setup.socket), verify=PLAIN)) as client:
        answer = client.get("http://state/counts")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def more(before: dict[str, Any], after: dict[str, Any], peer: str, *path: str) -> float:
    def number(document: dict[str, Any]) -> float:
        found: Any = document["peers"].get(peer, {})
        for step in path:
            found = found.get(step, 0) if isinstance(found, dict) else 0
        return found or 0

    return number(after) - number(before)


def eventually(setup: Setup, what: str, true: Callable[[], bool], seconds: float = 3) -> float:
    return wait_for(what, true, setup.logs, seconds)


class Browser:
    """A visitor who sticks to a node."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.cookie = httpx.get(setup.base + PAGE, headers=KEY, verify=PLAIN).cookies["appliance_client"]
        self.node = self.get().json()["node"]

    def get(self, **query: str) -> httpx.Response:
        return self._ask("GET", query)

    def post(self, **query: str) -> httpx.Response:
        return self._ask("POST", query)

    def _ask(self, method: str, query: dict[str, str]) -> httpx.Response:
        headers = {**KEY, "Cookie": f"appliance_client={self.cookie}"}
        return httpx.request(method, self._setup.base + PAGE, headers=headers, params=query, verify=PLAIN, timeout=10)


def browser_at(setup: Setup, node: str) -> Browser:
    return next(one for one in iter(lambda: Browser(setup), None) if one.node == node)


def test_each_try_counts_for_its_peer(setup: Setup) -> None:
    browser, before = browser_at(setup, NODES[0]), counts(setup)
    for status in ("200", "200", "404", "500", "503"):
        assert browser.post(status=status).status_code == int(status)
    peer = f"webui {NODES[0]}"

    def arrived() -> bool:
        return more(before, counts(setup), peer, "status", "2xx") >= 2

    eventually(setup, "counts", arrived)
    after = counts(setup)
    classes = {name: more(before, after, peer, "status", name) for name in ("2xx", "4xx", "5xx")}
    assert classes == {"2xx": 2, "4xx": 1, "5xx": 2}
    assert (more(before, after, peer, "passed"), more(before, after, peer, "failed")) == (3, 1), "503 is no failure"
    document = after["peers"][peer]
    assert document["within"] == sorted(document["within"])
    assert document["within"][-1] == sum(document["status"].values())
    assert len(document["within"]) == len(document["bounds"])
    assert 0 < more(before, after, peer, "seconds_sum") < 5
    assert after["requests"] >= before["requests"] + 5
    assert more(before, after, f"webui {NODES[1]}", "passed") == 0


def test_a_page_that_one_node_fails_counts_for_that_one_and_one_that_all_fail_for_nobody(setup: Setup) -> None:
    browser, before = browser_at(setup, NODES[0]), counts(setup)
    assert browser.get(status="500", at=NODES[0]).json()["node"] != NODES[0]
    assert browser.get(status="500").status_code == 500

    def answered(node: str, name: str) -> float:
        return more(before, counts(setup), f"webui {node}", "status", name)

    eventually(setup, "counts", lambda: [answered(node, "5xx") for node in NODES] == [2, 1, 1])
    after = counts(setup)
    assert [more(before, after, f"webui {node}", "failed") for node in NODES] == [1, 0, 0]


def test_who_lacks_what_another_has_is_neither_well_nor_ill_for_it(setup: Setup) -> None:
    browser, before = browser_at(setup, NODES[0]), counts(setup)
    answer = httpx.get(
        f"{setup.base}/webui/local/runs/x", params={"status": "404", "at": NODES[0]}, verify=PLAIN,
        headers={**KEY, "Cookie": f"appliance_client={browser.cookie}"},
    )  # fmt: skip
    assert answer.status_code == 200
    eventually(setup, "counts", lambda: more(before, counts(setup), f"webui {NODES[0]}", "status", "4xx") == 1)
    after = counts(setup)
    assert [more(before, after, f"webui {NODES[0]}", name) for name in ("passed", "failed")] == [0, 0]
    assert more(before, after, f"webui {answer.json()['node']}", "passed") == 1


def test_a_try_that_broke_off_counts_and_so_does_the_next_one(setup: Setup) -> None:
    browser, before = browser_at(setup, NODES[1]), counts(setup)
    answer = browser.get(die=NODES[1])
    assert answer.status_code == 200
    other = answer.json()["node"]
    assert other != NODES[1]
    setup.upstreams[NODES[1]].stop()
    eventually(setup, "counts", lambda: more(before, counts(setup), f"webui {NODES[1]}", "failed") == 1)
    assert more(before, counts(setup), f"webui {other}", "passed") == 1


def test_a_post_that_broke_off_is_counted_although_the_client_got_an_error_page(setup: Setup) -> None:
    browser, before = browser_at(setup, NODES[2]), counts(setup)
    headers = {**KEY, "Cookie": f"appliance_client={browser.cookie}"}
    answer = httpx.post(setup.base + PAGE, headers=headers, params={"die": NODES[2]}, verify=PLAIN)
    assert (answer.status_code, answer.json()["type"]) == (502, "bad-gateway")
    setup.upstreams[NODES[2]].stop()
    eventually(setup, "counts", lambda: more(before, counts(setup), f"webui {NODES[2]}", "failed") == 1)


def test_a_node_that_pings_and_fails_its_visitors_loses_them_and_wins_them_back(setup: Setup) -> None:
    browser = browser_at(setup, NODES[0])
    others = [browser_at(setup, node) for node in NODES[1:]]
    begin = time.monotonic()
    failures = 0
    while (answer := browser.post(status="500", at=NODES[0])).status_code == 500:
        failures += 1
        assert time.monotonic() - begin < 2, "by the clock: a quick machine fails more often until the next look"
        for other in others:
            assert other.get().status_code == 200
    print(f"\nits visitors are elsewhere after {failures} failures and {time.monotonic() - begin:.2f} s")
    assert answer.json()["node"] != NODES[0]
    assert shares(setup) == {NODES[0]: 0, NODES[1]: 1, NODES[2]: 1}
    assert NODES[0] in setup.pool(), "what goes on there goes on"
    eventually(setup, "trial", lambda: shares(setup)[NODES[0]] == pytest.approx(0.25), 15)
    assert browser.post(status="500", at=NODES[0]).status_code == 200, "no trial for what is asked only once"
    tried = next(one for one in iter(lambda: Browser(setup), None) if one.node == NODES[0])
    assert tried.get().status_code == 200
    eventually(setup, "full share", lambda: shares(setup)[NODES[0]] == 1)
    assert browser.get().json()["node"] == NODES[0]
    log = (setup.folder / "controller.log").read_text()
    assert "failed while other nodes serve theirs" in log


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_where_all_fail_nobody_is_to_blame(setup: Setup, method: str) -> None:
    browsers = [browser_at(setup, node) for node in NODES]
    for _ in range(12):
        for browser in browsers:
            assert (browser.get if method == "GET" else browser.post)(status="500").status_code == 500
    time.sleep(0.6)
    assert shares(setup) == dict.fromkeys(NODES, 1)


def test_a_request_waits_while_there_is_nobody_and_is_served_by_the_first_who_comes(setup: Setup) -> None:
    setup.stop_controller()
    state = setup.state().json()["state"]
    for pool, path in (("webui", PAGE), ("api", "/api/v1/x")):
        empty = {**state["pools"], pool: []}
        state["version"] += 1
        assert setup.state({**state, "pools": empty}).status_code == 200
        state["version"] += 1
        back = {**state, "version": state["version"]}
        timer = threading.Timer(1.0, lambda document=back: setup.state(document))
        begin = time.monotonic()
        timer.start()
        answer = httpx.get(setup.base + path, headers=KEY, verify=PLAIN, timeout=10)
        timer.join()
        assert answer.status_code == 200, path
        assert 0.9 < time.monotonic() - begin < 2.5


def test_a_key_that_was_revoked_counts_no_more_within_two_seconds(setup: Setup, tmp_path: Path) -> None:
    """The gateway remembers a good key for less than the api may need to notice a changed file."""
    key = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}
    seen = [upstream.seen().get("authorize", 0) for upstream in setup.upstreams.values()]
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        assert httpx.get(setup.base + PAGE, headers=key, verify=PLAIN).status_code == 200
        time.sleep(0.02)
    asked = sum(upstream.seen().get("authorize", 0) for upstream in setup.upstreams.values()) - sum(seen)
    assert 4 <= asked <= 6, "once in half a second, not with each request"


def test_lines_of_the_access_log_stay_whole_at_full_load(setup: Setup) -> None:
    """nginx's workers share one pipe, which keeps apart only what is written with at most 4 KiB."""
    mark, connections, each = uuid.uuid4().hex, 48, 900
    host, _, port = setup.base.removeprefix("http://").partition(":")
    request = f"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: {mark}{'a' * 3000}\r\n\r\n".encode()
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")

    def flood() -> None:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            sending = threading.Thread(target=connection.sendall, args=[request * (each - 1) + last])
            sending.start()
            while connection.recv(65536):
                pass
            sending.join()

    floods = [threading.Thread(target=flood) for _ in range(connections)]
    for one in floods:
        one.start()
    for one in floods:
        one.join()

    said: list[str] = []

    def is_all_said() -> bool:
        said[:] = docker("logs", setup.container).stdout.splitlines()
        return sum(line.count(mark) for line in said) >= connections * each

    time.sleep(1.5)  # nginx keeps what is little for a second
    eventually(setup, "all lines", is_all_said, 30)
    lines = [line for line in said if line]
    broken = [line for line in lines if not line.startswith("{") or line.count('"@timestamp"') != 1 or line[-1] != "}"]
    assert broken == [], f"{len(broken)} of {len(lines)}"
    assert sum(mark in line for line in lines) == connections * each


def test_counts_outlive_a_reload(setup: Setup) -> None:
    before = counts(setup)["requests"]
    assert before > 0
    docker("kill", "--signal", "HUP", setup.container)
    time.sleep(1)
    assert counts(setup)["requests"] >= before
