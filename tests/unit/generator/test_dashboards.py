"""The dashboards as data: what was committed is what the script builds, and it keeps the house's rules."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from generator.sources import ROOT
from tests.metric_names import CANONICAL

FOLDER = ROOT / "config/grafana/dashboards"
NAMES = ("cost", "errors", "health", "performance")
# Recorded ones and those of the exporters of others.
OTHERS = [
    "nginx_upstream_responses_total",
    "animatediff_node_state",
    "animatediff_node_state_changes_total",
    "animatediff_exporter_source_up",
    "webui_steps_total",
    "webui_generations_total",
    "webui_engine_starts_total",
    "webui_engine_resident_memory_bytes",
    "up",
    "ALERTS",
    "probe_success",
    "probe_ssl_earliest_cert_expiry",
    "redis_up",
    "redis_instance_info",
    "redis_memory_used_bytes",
    "redis_memory_max_bytes",
    "redis_commands_processed_total",
    "node_cpu_seconds_total",
    "node_memory_MemAvailable_bytes",
    "node_memory_MemTotal_bytes",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total",
    "node_disk_io_time_seconds_total",
]
ALIASES = (
    "nvidia_smi_utilization_gpu_percent",
    "nginx_upstream_response_milliseconds",
    "animatediff_job_failure_reason",
)
METRIC = re.compile(r"\b(?:[a-z]+_[a-zA-Z0-9_]+|up|ALERTS)\b(?=[{\[\s)]|$)")
RECORDED = re.compile(r"\banimatediff:[a-z_:0-9]+")


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def expressions() -> Iterator[tuple[str, str, str]]:
    for where, panel in panels():
        for target in panel["targets"]:
            yield where, target["expr"], target["legendFormat"]


def metrics_in(expression: str) -> set[str]:
    without = re.sub(r'"[^"]*"|\{\{.*?\}\}', "", expression)
    without = re.sub(r"\b(by|on|group_left|without|ignoring)\s*\([^)]*\)", "", without)
    without = re.sub(r"\{[^}]*\}", "{}", without)
    functions = {"histogram_quantile", "avg_over_time", "clamp_max", "vector"}
    found = {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(without)} - functions
    return {name for name in found if not name.startswith("__")}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk is for Python 3.11 and newer")
def test_what_is_committed_is_what_the_script_builds() -> None:
    from generator.dashboards.__main__ import texts

    assert texts() == {path.name: path.read_text() for path in sorted(FOLDER.glob("*.json"))}, (
        "run `python -m generator.dashboards`"
    )


def test_there_are_four_with_fixed_names() -> None:
    assert {name: one["uid"] for name, one in dashboards().items()} == {name: f"animatediff-{name}" for name in NAMES}
    for one in dashboards().values():
        assert one["editable"] is False
        assert one["description"]
        assert "animatediff" in one["tags"]


def test_every_panel_has_a_unit_a_description_and_a_number_of_its_own() -> None:
    for name, one in dashboards().items():
        numbers = [panel["id"] for panel in one["panels"]]
        assert len(numbers) == len(set(numbers)), name
    for where, panel in panels():
        assert panel["description"].endswith("."), where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert panel["targets"], where


def test_every_panel_asks_the_chosen_prometheus() -> None:
    source = {"type": "prometheus", "uid": "${source}"}
    for where, panel in panels():
        assert panel["datasource"] == source, where
        assert [target["datasource"] for target in panel["targets"]] == [source] * len(panel["targets"]), where
    for name, one in dashboards().items():
        variables = {variable["name"]: variable for variable in one["templating"]["list"]}
        assert variables["source"]["current"]["value"] == "prometheus", f"{name}: the uid that is provisioned"
        assert {variable["datasource"]["uid"] for variable in variables.values() if "datasource" in variable} == {
            "${source}"
        }


def test_nothing_overlaps() -> None:
    for name, one in dashboards().items():
        taken: dict[tuple[int, int], str] = {}
        for panel in one["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, f"{name}: {panel['title']}"
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    other = taken.setdefault((x, y), panel["title"])
                    assert other == panel["title"], f"{name}: {panel['title']} lies upon {other}"


def test_only_canonical_names_are_used() -> None:
    known = {*CANONICAL, *OTHERS}
    for where, expression, _ in expressions():
        assert not [alias for alias in ALIASES if alias in expression], where
        assert metrics_in(expression) <= known, f"{where}: {metrics_in(expression) - known}"


def test_every_metric_of_the_contract_is_shown_or_judged() -> None:
    assert len(CANONICAL) == 33
    shown = {name for _, expression, _ in expressions() for name in metrics_in(expression)}
    rules = "".join(path.read_text() for path in (ROOT / "config/prometheus/rules").iterdir())
    assert [name for name in CANONICAL if name not in shown and name not in rules] == []


def test_every_recorded_metric_that_is_shown_is_recorded() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "config/prometheus/rules").iterdir())
    recorded = set(re.findall(r"record: (\S+)", rules))
    shown = {name for _, expression, _ in expressions() for name in RECORDED.findall(expression)}
    assert shown
    assert shown <= recorded


def test_where_a_host_is_told_apart_the_legend_says_which() -> None:
    for where, expression, legend in expressions():
        if re.search(r"\bby \([^)]*node_name", expression):
            assert "{{node_name}}" in legend, where
