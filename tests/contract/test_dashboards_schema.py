"""Grafana's own types judge the dashboards: `tsc` over @grafana/schema, where npm can get it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generator.sources import ROOT
from tests.contract.typescript import compiled, installed

SCHEMA = "@grafana/schema@11.6.0"
DASHBOARDS = sorted((ROOT / "config/grafana/dashboards").glob("*.json"))
RAW = "@grafana/schema/dist/esm/raw"
PANELS = {
    "timeseries": "TimeSeriesPanelCfg",
    "stat": "StatPanelCfg",
    "bargauge": "BarGaugePanelCfg",
    "statetimeline": "StateTimelinePanelCfg",
    "table": "TablePanelCfg",
}
# As JSON has them: an enum's values instead of its names.
PLAIN = """
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("tsc"), [SCHEMA], "the dashboards against Grafana's types")


def head() -> list[str]:
    imports = [
        f"import type {{ Options as {name}Options }} from '{RAW}/composable/{name}/panelcfg/x/{file}_types.gen';"
        for name, file in PANELS.items()
    ]
    return [f"import type {{ Dashboard }} from '{RAW}/dashboard/x/dashboard_types.gen';", *imports, PLAIN]


def checks(name: str, dashboard: dict[str, Any]) -> list[str]:
    lines = [f"const {name}: Plain<Dashboard> = {json.dumps(dashboard)};", f"void {name};"]
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            kind = panel["type"].replace("-", "")
            variable = f"{name}_{panel['id']}"
            lines += [f"const {variable}: Plain<{kind}Options> = {json.dumps(panel['options'])};", f"void {variable};"]
    return lines


def test_grafanas_types_accept_every_dashboard(project: Path) -> None:
    lines = head()
    for path in DASHBOARDS:
        lines += checks(path.stem, json.loads(path.read_text()))
    assert compiled(project, lines) == ""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"titel": "Cost"}, '"titel"'),
        ({"refresh": 30}, "Type 'number' is not assignable to type 'string'"),
        ({"graphTooltip": 7}, "is not assignable to type"),
    ],
)
def test_grafanas_types_refuse_a_mistake(project: Path, spoil: dict[str, Any], said: str) -> None:
    """Proof that the test above can fail."""
    dashboard = json.loads(DASHBOARDS[0].read_text()) | spoil
    assert said in compiled(project, [*head(), *checks("spoilt", dashboard)])


def test_grafanas_types_refuse_a_mistake_in_a_panels_options(project: Path) -> None:
    dashboard = json.loads((ROOT / "config/grafana/dashboards/health.json").read_text())
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    panel["options"]["legend"]["displayMode"] = "tabel"
    assert "is not assignable to type" in compiled(project, [*head(), *checks("spoilt", dashboard)])
