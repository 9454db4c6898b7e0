"""The gateway's pools: who is in them, who takes over, and what it keeps while its controller or it is away."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_stage import (  # noqa: F401
    KEY,
    NODES,
    PLAIN,
    Setup,
    Upstream,
    Visitors,
    running,
    setup,
    shared,
    wait_for,
)

pytestmark = pytest.mark.docker


def test_visitors_stay_and_only_those_of_a_dead_node_move(setup: Setup) -> None:
    visitors = Visitors(setup, 60)
    before = visitors.nodes()
    assert min(Counter(before)[node] for node in NODES) >= 8
    assert visitors.nodes() == before
    setup.upstreams[NODES[1]].stop()
    wait_for("node out", lambda: NODES[1] not in setup.pool(), setup.logs)
    after = visitors.nodes()
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {NODES[1]}
    assert set(after) == {NODES[0], NODES[2]}
    setup.upstreams[NODES[1]].start()
    setup.wait_for_all()
    assert visitors.nodes() == before


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_broken_node_leaves_quickly(setup: Setup, fault: signal.Signals) -> None:
    victim = setup.upstreams[NODES[2]]
    victim.signal(fault)
    seconds = wait_for("node out", lambda: NODES[2] not in setup.pool() | setup.pool("api"), setup.logs)
    print(f"\n{fault.name}: out of the pools after {seconds:.2f} s")
    assert setup.pool() == {NODES[0], NODES[1]}
    victim.stop()


def test_a_killed_node_costs_no_get(setup: Setup) -> None:
    visitors = Visitors(setup, 20)
    answered: list[str] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answered.extend(visitors.nodes())
            except Exception as error:
                failed.append(error)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    wait_for("the first round", lambda: len(answered) >= 20, setup.logs)
    setup.upstreams[NODES[0]].stop()
    wait_for("three rounds more", lambda: len(answered) + 20 * len(failed) >= 80, setup.logs)
    stop.set()
    asking.join()
    assert failed == []
    assert set(answered[-20:]) <= {NODES[1], NODES[2]}


def test_a_get_that_broke_off_is_answered_by_another(setup: Setup) -> None:
    answers = {httpx.get(f"{setup.base}/api/v1/x?die={NODES[0]}", timeout=5).json()["node"] for _ in range(6)}
    assert answers == {NODES[1], NODES[2]}


def alive_of(setup: Setup) -> list[Upstream]:
    return [peer for peer in setup.upstreams.values() if peer.process and peer.process.poll() is None]


def test_a_post_that_broke_off_is_never_sent_twice(setup: Setup) -> None:
    answer = httpx.post(f"{setup.base}/api/v1/jobs?die=any", json={}, headers=KEY, timeout=5)
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "2"
    wait_for("the end of the one that broke off", lambda: len(alive_of(setup)) == 2, setup.logs)
    alive = alive_of(setup)
    assert [peer.seen().get("POST /api/v1/jobs", 0) for peer in alive] == [0, 0]


def test_a_post_to_a_peer_that_refuses_goes_to_another(setup: Setup) -> None:
    """Nothing was sent, so nothing can be doubled. The controller is stopped: nginx alone has to cope."""
    setup.stop_controller()
    setup.upstreams[NODES[0]].stop()
    answers = [httpx.post(f"{setup.base}/api/v1/other", json={}, headers=KEY, timeout=5) for _ in range(9)]
    assert {answer.status_code for answer in answers} == {200}
    alive = [setup.upstreams[name].seen().get("POST /api/v1/other", 0) for name in NODES[1:]]
    assert sum(alive) == 9


def test_a_wrong_state_is_refused_and_the_last_good_one_kept(setup: Setup) -> None:
    setup.stop_controller()
    good = setup.state().json()["state"]
    peer = {"name": "a", "ip": "10.0.0.1", "port": 1}
    wrong: list[Any] = [
        "",
        "{",
        "3",
        [],
        {**good, "epoch": 3},
        {**good, "epoch": "x"},
        {**good, "version": "9"},
        {**good, "version": 1.5},
        {**good, "pools": {"api": []}},
        {**good, "pools": {"api": {"a": peer}, "webui": []}},
        *({**good, "version": good["version"] + 1, "pools": {"api": [entry], "webui": []}} for entry in (
            3, {**peer, "name": ""}, {**peer, "ip": "gpu-01"}, {**peer, "ip": "300.1.1.1"}, {**peer, "port": 0},
            {**peer, "port": "80"}, {"name": "a", "ip": "10.0.0.1"},
        )),
        {**good, "pools": {"api": [peer, peer], "webui": []}},
        {**good, "pools": {"api": [], "webui": [peer]}},
        {**good, "pools": {"api": [], "webui": [{**peer, "weight": -1}]}},
        {**good, "pools": {"api": [], "webui": [{**peer, "weight": 1, "trial": 1}]}},
    ]  # fmt: skip
    for body in wrong:
        assert setup.state(body).status_code == 400, body
    empty: dict[str, list[Any]] = {"api": [], "webui": []}
    outdated = [
        {**good, "version": good["version"] - 1, "pools": empty},
        {**good, "pools": empty},
        {**good, "epoch": str(int(good["epoch"]) - 1), "version": 99, "pools": empty},
    ]
    for body in outdated:
        assert setup.state(body).status_code == 409, body
    assert setup.state().json()["state"] == good
    assert setup.status("/readyz") == 200
    newer = {**good, "version": good["version"] + 1, "pools": empty}
    assert setup.state(newer).status_code == 200
    assert setup.status("/readyz") == 503


def test_an_empty_pool_is_waited_for_once_and_then_answered_with_503(setup: Setup) -> None:
    setup.stop_controller()
    state = setup.state().json()["state"]
    emptied = {**state, "version": state["version"] + 1, "pools": {"api": [], "webui": []}}
    assert setup.state(emptied).status_code == 200
    for path in ("/api/v1/jobs", "/webui/", "/webui/queue/join"):
        answer = httpx.get(setup.base + path, headers=KEY)
        assert answer.status_code == 503, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["type"] == "unavailable"
    # The first of them waited for 3 s. Whoever comes later knows that nobody will be back by then.
    begin = time.monotonic()
    for path in ("/api/v1/jobs", "/webui/") * 3:
        assert httpx.get(setup.base + path, headers=KEY, verify=PLAIN).status_code == 503
    assert time.monotonic() - begin < 2.5


def test_the_state_returns_soon_after_the_gateway_restarted(setup: Setup) -> None:
    docker("kill", setup.container)  # leaves the socket file behind
    docker("start", setup.container)
    setup.find_ports()
    seconds = wait_for("state", lambda: setup.status("/readyz") == 200, setup.logs)
    print(f"\nready {seconds:.2f} s after the container's restart")


@pytest.mark.parametrize("kind", ["drain", "quarantine"])
def test_a_controller_that_starts_without_redis_keeps_to_the_orders(setup: Setup, kind: str) -> None:
    """The node that is ordered out answers as well as the others; only the gateway still knows."""
    setup.stop_controller()
    before = setup.state().json()["state"]
    orders = {NODES[1]: json.dumps({"order": kind, "by": "ada", "at": 0}), NODES[2]: "no order"}
    assert setup.state(before | {"version": before["version"] + 1, "orders": orders}).status_code == 200
    setup.start_controller()
    try:
        weights: dict[str, float] = {}

        def others_are_in() -> bool:
            state = setup.state().json()["state"]  # read once: between two reads another one may come
            weights.clear()
            weights.update({peer["name"]: peer["weight"] for peer in state["pools"]["webui"]})
            return state["epoch"] != before["epoch"] and all(weights.get(name, 0) > 0 for name in (NODES[0], NODES[2]))

        for _ in range(2):  # as soon as it knows them, and still when it has pushed again
            wait_for("the other nodes", others_are_in, setup.logs)
            assert weights.get(NODES[1]) == (0 if kind == "drain" else None)
            time.sleep(2.5)
        assert set(setup.state().json()["state"]["orders"]) == {NODES[1]}
    finally:
        setup.stop_controller()
        last = setup.state().json()["state"]
        setup.state(last | {"version": last["version"] + 1, "orders": {}})


def test_tls_and_its_redirect(images: str, tmp_path: Path) -> None:
    the_plan = gateway_plan(balance="ip_hash", server_name="localhost")
    with running(tmp_path, the_plan, images) as setup:
        assert setup.status("/healthz") == setup.status("/readyz") == 200
        moved = httpx.post(setup.base + "/api/v1/jobs?a=b", json={})
        assert (moved.status_code, moved.headers["location"]) == (308, "https://localhost/api/v1/jobs?a=b")
        with httpx.Client(base_url=setup.tls_base, verify=False, headers=KEY) as client:  # noqa: S501
            assert client.get("/healthz").headers["strict-transport-security"] == "max-age=31536000"
            answers = [client.get("/webui/page") for _ in range(6)]
        # ip_hash: one address, one node, no cookie
        assert len({answer.json()["node"] for answer in answers}) == 1
        assert "set-cookie" not in answers[0].headers
        assert answers[0].json()["headers"]["x-forwarded-proto"] == "https"


def test_who_is_about_to_stop_says_so_first_and_answers_meanwhile(images: str, tmp_path: Path) -> None:
    with running(tmp_path, gateway_plan(tls={"mode": "none"}), images, leave_seconds=2.0) as setup:
        stopping = subprocess.Popen(["docker", "stop", "--time", "20", setup.container])
        took = wait_for("not ready", lambda: setup.status("/readyz") == 503, setup.logs)
        assert httpx.get(setup.base + "/readyz", verify=PLAIN).json()["status"] == "leaving"
        begin = time.monotonic()
        while time.monotonic() - begin < 1.2:
            assert httpx.get(setup.base + "/webui/page", headers=KEY, timeout=2, verify=PLAIN).status_code == 200
        assert stopping.wait(20) == 0
        print(f"\nnot ready after {took:.2f} s, stopped {time.monotonic() - begin:.2f} s later")
        assert docker("inspect", "--format", "{{.State.ExitCode}}", setup.container).stdout.strip() == "0"
        docker("start", setup.container)
        setup.find_ports()
        wait_for("ready again", lambda: setup.status("/readyz") == 200, setup.logs)
