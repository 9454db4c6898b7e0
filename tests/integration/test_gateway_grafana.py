"""Grafana's address on the real gateway: for operators, whose name is the gateway's word and nobody else's."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator

import httpx
import pytest

from generator.planned import Plan
from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_stage import KEY, OPERATOR, PLAIN, SHOWN_TOKEN, Setup, Upstream, running, wait_for

pytestmark = pytest.mark.docker

AS_OPERATOR = {"Authorization": "Basic " + base64.b64encode(f"anna:{OPERATOR}key".encode()).decode()}


def with_grafana(*guards: str) -> Plan:
    the_plan = gateway_plan(tls={"mode": "none"})
    first = the_plan.hosts[0]
    assert first.gateway
    host = dataclasses.replace(first, gateway=dataclasses.replace(first.gateway, grafana=guards))
    return dataclasses.replace(the_plan, hosts=(host, *the_plan.hosts[1:]))


@pytest.fixture(scope="module")
def guards() -> Iterator[list[Upstream]]:
    made = [Upstream("first"), Upstream("second")]
    try:
        for guard in made:
            guard.start()
        for guard in made:
            wait_for(guard.name, guard.listens, str)
        yield made
    finally:
        for guard in made:
            guard.stop()


@pytest.fixture(scope="module")
def setup(images: str, guards: list[Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    bridge = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").stdout.strip()
    the_plan = with_grafana(*(f"{bridge}:{guard.port}" for guard in guards))
    with running(tmp_path_factory.mktemp("gateway"), the_plan, images) as made:
        yield made


def ask(setup: Setup, path: str = "/grafana/d/health", **headers: str) -> httpx.Response:
    return httpx.get(setup.base + path, headers=headers, verify=PLAIN, timeout=10)


def test_an_operator_is_let_through_under_the_gateway_s_name(setup: Setup) -> None:
    forged = {"X-Appliance-User": "root", "X-Appliance-Role": "admin", "Cookie": "a=b"}
    answer = ask(setup, **AS_OPERATOR, **forged)
    assert answer.status_code == 200, answer.text
    seen = answer.json()
    assert (seen["node"], seen["path"]) == ("first", "/grafana/d/health")
    told = {name: seen["headers"].get(name) for name in ("x-appliance-user", "x-appliance-role", "authorization")}
    assert told == {"x-appliance-user": "anna", "x-appliance-role": "operator", "authorization": SHOWN_TOKEN}
    assert not {"cookie", "x-api-key"} & set(seen["headers"]), "the visitor's own credentials end at the gateway"


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [({}, 401, "unauthorized"), ({"X-Api-Key": "stranger"}, 401, "unauthorized"), (KEY, 403, "forbidden")],
    ids=["nobody", "stranger", "user"],
)
def test_nobody_else_is(setup: Setup, headers: dict[str, str], status: int, kind: str) -> None:
    for path in ("/grafana/", "/grafana/api/health", "/grafana/public/build/app.js"):
        refused = ask(setup, path, **headers)
        assert (refused.status_code, refused.json()["type"]) == (status, kind)
        assert ("www-authenticate" in refused.headers) == (status == 401)


def test_a_user_s_key_is_not_taken_for_an_operator_s_after_one_was_here(setup: Setup) -> None:
    assert ask(setup, **AS_OPERATOR).status_code == 200
    assert ask(setup, "/webui/page", **KEY).status_code == 200, "a good key, remembered as one"
    assert ask(setup, **KEY).status_code == 403


def test_the_second_grafana_takes_over(setup: Setup, guards: list[Upstream]) -> None:
    guards[0].stop()
    try:
        assert ask(setup, **AS_OPERATOR).json()["node"] == "second"
    finally:
        guards[0].start()
    wait_for("the first again", lambda: ask(setup, **AS_OPERATOR).json()["node"] == "first", setup.logs, 20)


def test_without_one_there_is_nothing(images: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("gateway"), gateway_plan(tls={"mode": "none"}), images) as setup:
        assert ask(setup, **AS_OPERATOR).status_code == 404
