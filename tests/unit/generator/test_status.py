from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from generator.ops.cluster import places
from generator.ops.status import ServiceStatus, Status, gateway_url, missing, parse_ps, table, workers_table
from generator.plan import plan
from tests.unit.generator.clusters import one_host, three_hosts

ROW = {"Service": "api", "State": "running", "Health": "healthy", "ExitCode": 0, "Status": "Up 2 minutes"}


@pytest.mark.parametrize(
    "listing",
    [
        f"{json.dumps({**ROW, 'Service': 'redis'})}\n{json.dumps(ROW)}\n",
        json.dumps([{**ROW, "Service": "redis"}, ROW]),
    ],
    ids=["one object a line", "one array"],
)
def test_both_forms_of_compose_ps(listing: str) -> None:
    assert [one.service for one in parse_ps("gpu-01", listing)] == ["api", "redis"]


def test_nothing_runs() -> None:
    assert parse_ps("gpu-01", "") == []
    assert not Status((), {}, None).well


def test_a_service_that_ended_is_missed_and_a_one_shot_is_not() -> None:
    ended = {**ROW, "State": "exited", "Health": ""}
    listing = json.dumps([ended, {**ended, "Service": "init", "Labels": "a=b,appliance.one-shot=true"}])
    assert [one.well for one in parse_ps("gpu-01", listing)] == [False, True]
    assert not Status(tuple(parse_ps("gpu-01", listing)), {}, None).well
    assert Status(tuple(parse_ps("gpu-01", json.dumps([ROW]))), {}, None).well


def test_a_host_that_cannot_be_asked_is_not_well_and_is_shown() -> None:
    healthy = ServiceStatus("gpu-01", "api", "running", "healthy", 0, "")
    status = Status((healthy,), {"gpu-02": "ssh: connect\nConnection refused"}, None)
    assert not status.well
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(table(status))
    assert "Connection refused" in console.export_text()
    assert json.loads(json.dumps(status.as_dict()))["well"] is False


def test_where_a_gateway_is_asked() -> None:
    plain, secure = plan(one_host()).hosts[0], plan(three_hosts()).hosts[0]
    assert plain.gateway is not None
    assert secure.gateway is not None
    assert gateway_url(plain, plain.gateway) == "http://127.0.0.1:80"
    assert gateway_url(secure, secure.gateway) == "https://192.168.1.10:443"


def test_what_was_rendered_and_never_started_is_missed(tmp_path: Path) -> None:
    """Of a host where nothing runs, compose lists nothing; the other hosts' health says nothing about it."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/compose.yaml").write_text("services: {api: {}, redis: {}}")
    (place,) = places(plan(one_host()), tmp_path)
    running = parse_ps("demo", json.dumps(ROW))
    assert [(one.service, one.well) for one in missing(place, running)] == [("redis", False)]
    assert not Status((*running, *missing(place, running)), {}, None).well


def test_brackets_in_an_error_are_no_markup() -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(table(Status((), {"gpu-02": "[/usr/bin/ssh] failed"}, None)))
    assert "[/usr/bin/ssh] failed" in console.export_text()


def test_a_narrow_terminal_loses_no_letter() -> None:
    console = Console(width=30, file=io.StringIO(), record=True)
    console.print(table(Status((ServiceStatus("gpu-01", "models-init", "restarting", "unhealthy", 0, ""),), {}, None)))
    assert "…" not in console.export_text()


def test_a_worker_that_has_loaded_something_else_is_marked() -> None:
    def worker(name: str, fingerprint: str, *, alive: bool = True) -> dict[str, object]:
        return {"name": name, "state": "idle", "alive": alive, "engine": "diffusers", "fingerprint": fingerprint}

    cluster = {"workers": [worker("a/0", "1" * 64), worker("b/0", "2" * 64), worker("c/0", "1" * 64), worker("d/0", ""),
                           worker("e/0", "2" * 64, alive=False), worker("f/0", "2" * 64, alive=False)]}  # fmt: skip
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(workers_table(cluster))
    lines = {line.split()[0]: line for line in console.export_text().splitlines()}
    assert [name for name, line in lines.items() if "differs" in line] == ["b/0", "e/0", "f/0"]
    assert "silent" in lines["e/0"]
    console.print(workers_table({"workers": []}))
