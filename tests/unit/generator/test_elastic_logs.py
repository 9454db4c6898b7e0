from __future__ import annotations

from pathlib import Path

import pytest

from generator.errors import ToolError, Unhealthy
from generator.ops import elastic_logs
from generator.ops.cluster import Place
from generator.ops.elastic_logs import address_of, search_body
from generator.plan import plan
from tests.unit.generator.clusters import logged, logged_alone


def place_alone(ssh: tuple[str, ...] = ()) -> Place:
    the_plan = plan(logged_alone())
    return Place(the_plan.cluster.name, the_plan.hosts[0], Path("/nowhere"), ssh, 60)


def test_a_host_among_several_is_asked_at_its_address() -> None:
    the_plan = plan(logged())
    assert address_of(Place("studio", the_plan.by_name["gpu-03"], Path("/nowhere"), ("ssh", "x"), 60)) == "192.168.1.12"


def test_a_single_host_is_asked_at_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"compose": "0123abc\n", "inspect": "172.20.0.5\n"}
    monkeypatch.setattr(
        "generator.processes.run", lambda argv, **_: answers["inspect" if "inspect" in argv else "compose"]
    )
    assert address_of(place_alone()) == "172.20.0.5"
    for lacking in answers:
        monkeypatch.setitem(answers, lacking, "")
        with pytest.raises(Unhealthy, match="it does not run"):
            address_of(place_alone())


def test_why_a_single_host_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unhealthy, match="it is not published; run this on demo"):
        address_of(place_alone(("ssh", "demo")))

    def refuse(argv: list[str], **_: object) -> str:
        raise ToolError(argv, 1, "permission denied")

    monkeypatch.setattr("generator.processes.run", refuse)
    with pytest.raises(Unhealthy, match="permission denied"):
        address_of(place_alone())


def test_a_page_begins_after_the_last_line_of_the_one_before() -> None:
    first, second = search_body("a", 1.5, 2), search_body("a", 1.5, 2, [1500, "f", 7])
    assert second == first | {"search_after": [1500, "f", 7]}
    assert first["query"]["bool"]["filter"][0]["range"]["@timestamp"]["gte"] == 1500
    assert len(first["sort"]) == 3
    assert first["size"] == elastic_logs.PAGE
