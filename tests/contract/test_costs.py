"""What an hour of the cluster costs while hosts come, go and change their market, before promtool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator.sources import ROOT
from tests.contract.test_alerts import promtool, rules

pytestmark = pytest.mark.docker
DASHBOARD = ROOT / "config/grafana/dashboards/cost.json"
PRICE = "animatediff_node_price_usd_per_hour"
# Six hours, in minutes: one GPU is at work in all of them, and a second of video comes out in each minute.
WORK = {
    'animatediff_gpu_seconds_total{node_name="a", resolution="512x512", gpu_model="A10G"}': "0+60x400",
    'animatediff_video_seconds_generated_total{node_name="a", resolution="512x512"}': "0+1x400",
    'animatediff_job_cost_usd_total{node_name="a", resolution="512x512"}': "0+0.05x400",
}
AWAY = "Prometheus was away for an hour"
STORIES: dict[str, tuple[dict[str, str], int]] = {
    "nothing changes": ({'a", source="spot': "2x400", 'b", source="owned': "4x400"}, 36),
    "a host changes its market": ({'a", source="spot': "2x181 stale", 'a", source="on-demand': "_x182 6x218"}, 24),
    "a host comes and one goes": (
        {'a", source="spot': "3x400", 'b", source="spot': "_x302 6x98", 'c", source="spot': "6x61 stale"},
        18 + 6 + 6,
    ),
    "the only one came an hour ago": ({'a", source="spot': "_x302 24x98"}, 24),
    AWAY: ({'a", source="spot': "4x181 _x60 4x159"}, 24),
}
"""Series of prices → what the six hours before the 361st minute cost, in US dollars."""
SECONDS = 360
"""Of video in these six hours."""


def panel(title: str) -> str:
    """The query of a panel that shows these six hours."""
    found = next(one for one in json.loads(DASHBOARD.read_text())["panels"] if one["title"] == title)
    expression: str = found["targets"][0]["expr"]
    everything = expression.replace("$__range_s", "21600").replace("$__range", "6h")
    return everything.replace('"$node"', '".*"').replace('"$resolution"', '".*"')


def told(usd: float) -> dict[str, float]:
    """Expression → its value."""
    return {
        'animatediff_cost_usd_per_video_second{basis="cluster"}': usd / SECONDS,
        panel("With what stood idle"): usd / SECONDS,
        panel("Stood idle"): 1 - min(1, 18 / usd),
    }


def as_test(name: str, prices: dict[str, str], usd: float) -> dict[str, Any]:
    up = {'up{job="prometheus", node_name="a"}': "1x181 _x60 1x159" if name == AWAY else "1x400"}
    series = WORK | up | {f'{PRICE}{{node_name="{labels}"}}': values for labels, values in prices.items()}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [
            {"expr": f"round(sum({expr}), 0.01)", "eval_time": "361m",
             "exp_samples": [{"labels": "{}", "value": round(value, 2)}]}
            for expr, value in told(usd).items()
        ],
    }  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_what_the_cluster_cost(images: str, tmp_path: Path, story: str) -> None:
    (tmp_path / "costs.yml").write_text(yaml.safe_dump(rules()["costs.yml"]))
    tests = {"rule_files": ["costs.yml"], "evaluation_interval": "1m", "tests": [as_test(story, *STORIES[story])]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(tests, sort_keys=False))
    done = promtool(images, tmp_path, "test", "rules", "/t/test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
