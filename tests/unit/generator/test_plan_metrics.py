from __future__ import annotations

from typing import Any

import pytest
import yaml

from generator.checks_monitoring import WAIT_BOUNDS
from generator.model import Cluster
from generator.plan import plan
from generator.planned_metrics import MetricsPlan, Target
from generator.render import render_host
from generator.sources import read_sources
from tests.unit.generator.clusters import gpu, monitored, monitored_alone, three_hosts, with_dashboards

GRAFANA = {"grafana_image": "grafana/grafana:11.6.0"}


def metrics_of(host: str = "gpu-01", **changes: Any) -> MetricsPlan:
    found = plan(monitored(**changes)).by_name[host].metrics
    assert found is not None
    return found


def test_the_gateways_know_where_grafana_is() -> None:
    def guards(found: Cluster) -> list[tuple[tuple[str, ...], bool]]:
        return [(host.gateway.grafana, host.gateway.grafana_named) for host in plan(found).hosts if host.gateway]

    assert guards(with_dashboards()) == [(("192.168.1.11:3000",), False)] * 2
    assert guards(monitored()) == [((), False)] * 2
    alone = monitored_alone().model_dump(mode="json")
    alone["hosts"]["demo"]["roles"].append("dashboards")
    assert guards(Cluster.model_validate({**alone, "monitoring": GRAFANA})) == [(("guard:8080",), True)]


def test_every_monitoring_host_asks_the_same() -> None:
    first, second = metrics_of(), metrics_of("gpu-02")
    assert first.targets == second.targets
    assert first.targets.nodes == tuple(
        Target(f"192.168.1.{9 + n}:9100", {"node_name": f"gpu-0{n}"}) for n in (1, 2, 3)
    )
    assert first.targets.webuis[2] == Target(
        "192.168.1.12:7860", {"node_name": "gpu-03", "worker": "gpu-03/0", "uuid": gpu(3)["uuid"]}
    )
    assert [target.address for target in first.targets.queues][2:4] == [
        "rediss://192.168.1.12:6379",
        "rediss://192.168.1.10:26379",
    ]
    assert [target.address for target in first.targets.gateways] == [
        "https://192.168.1.100:443/readyz",
        "https://192.168.1.10:443/readyz",
        "https://192.168.1.11:443/readyz",
    ]


def test_the_monitoring_hosts_know_each_other() -> None:
    assert (metrics_of().gossip_address, metrics_of().gossip_peers) == ("192.168.1.10:9094", ("192.168.1.11:9094",))
    assert (metrics_of("gpu-02").gossip_address, metrics_of("gpu-02").gossip_peers[0]) == (
        "192.168.1.11:9094",
        "192.168.1.10:9094",
    )


def test_without_a_monitoring_host_nothing_is_measured() -> None:
    the_plan = plan(three_hosts())
    assert not any(host.monitored or host.metrics or host.dashboards for host in the_plan.hosts)
    assert "prometheus" not in the_plan.cluster.images


def test_a_single_host_speaks_by_service_name_and_in_the_clear() -> None:
    metrics = plan(monitored_alone()).hosts[0].metrics
    assert metrics is not None
    assert not metrics.tls
    assert [target.address for target in metrics.targets.exporters] == ["exporter:9400"]
    assert [target.address for target in metrics.targets.queues] == ["redis://redis:6379"]
    assert [target.address for target in metrics.targets.webuis] == ["webui-0:7860", "webui-1:7860"]
    assert metrics.targets.certificates == ()
    assert metrics.redis_accounts == ("redis://exporter@redis:6379",)
    assert metrics.gossip_address == ""


def test_a_foreign_a1111_tells_no_metrics() -> None:
    assert metrics_of(webui={"engine": "a1111", "image": "studio/a1111:1"}).targets.webuis == ()


@pytest.mark.parametrize(
    ("gateway", "vip", "first"),
    [
        ({"vip": "192.168.1.100"}, "192.168.1.100", "https://192.168.1.100:443/readyz"),
        ({"vip": "203.0.113.7", "vrrp": {"mode": "none"}}, "", "https://203.0.113.7:443/readyz"),
        ({"http_port": 8080, "tls": {"mode": "none"}}, "", "http://192.168.1.10:8080/readyz"),
        ({"bind": "203.0.113.9", "https_port": 8443}, "", "https://203.0.113.9:8443/readyz"),
    ],
    ids=["ours", "a load balancer's", "none, plain", "one address"],
)
def test_the_public_address_is_watched(gateway: dict[str, object], vip: str, first: str) -> None:
    metrics = metrics_of(gateway=gateway)
    assert (metrics.alerts.vip, metrics.targets.gateways[0].address) == (vip, first)


@pytest.mark.parametrize(
    ("percent", "thresholds"),
    [(99.0, [0.144, 0.06, 0.03]), (95.0, [0.72, 0.3, 0.15]), (90.0, [0.9, 0.6, 0.3]), (50.0, [0.9, 0.9, 0.9])],
)
def test_an_slo_is_burnt_where_more_fails_than_it_allows(percent: float, thresholds: list[float]) -> None:
    alerts = metrics_of(monitoring={"slo": {"wait_percent": percent}}).alerts
    assert [burn.bad_ratio for burn in alerts.wait.burns] == thresholds, "a share is never more than all"


def test_an_slo_asks_for_a_bound_that_is_counted() -> None:
    """The queue's scripts count by these; another one could never be told."""
    counts = pytest.importorskip("appliance.queue.counts", reason="NOT CHECKED: there is no exporter here yet")
    assert set(WAIT_BOUNDS) <= set(counts.BOUNDS)


def test_an_order_to_drain_outlives_a_repetition_that_gets_lost_and_hardly_more() -> None:
    """Its end may never be told: an alert that ends while another one inhibits it is not told at all."""
    alerts = pytest.importorskip("appliance.api.alerts", reason="NOT CHECKED: there is no api here")
    the_plan = plan(monitored())
    text = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())["config/alertmanager/alertmanager.yml"]
    (route,) = (one for one in yaml.safe_load(text)["route"]["routes"] if one["receiver"] == "appliance")
    assert route["repeat_interval"].endswith("m")
    repeat_seconds = 60 * int(route["repeat_interval"].removesuffix("m"))
    assert 2 * repeat_seconds < alerts.HOLD_SECONDS <= 3 * repeat_seconds


def test_a_receiver_gets_what_is_as_bad_or_worse() -> None:
    receivers = {
        name: {"kind": "webhook", "url_file": "/etc/url", "severity": name} for name in ("info", "warning", "critical")
    }
    found = {one.name: one.severities for one in metrics_of(monitoring={"receivers": receivers}).receivers}
    assert found == {
        "info": ("info", "warning", "critical"),
        "warning": ("warning", "critical"),
        "critical": ("critical",),
    }


def test_the_memory_of_prometheus_grows_with_the_cluster() -> None:
    hosts: dict[str, Any] = {
        f"w-{n}": {"address": f"10.0.0.{n}", "roles": ["worker"], "gpus": [gpu(n)]} for n in range(1, 101)
    }
    hosts["head"] = {"address": "10.0.0.200", "roles": ["gateway", "control", "queue", "metrics"]}
    found = plan(monitored(hosts=hosts, gateway={})).by_name["head"].metrics
    assert found is not None
    assert found.limits.memory_mib > 3 * metrics_of().limits.memory_mib
    assert found.limits.go_environment == {"GOMAXPROCS": "2", "GOMEMLIMIT": f"{found.limits.memory_mib * 9 // 10}MiB"}


def test_grafana_runs_where_an_image_of_it_is_named() -> None:
    hosts = monitored().model_dump(mode="json")["hosts"]
    hosts["gpu-02"]["roles"].append("dashboards")
    without = plan(monitored(hosts=hosts))
    assert not any(host.dashboards for host in without.hosts)
    assert without.notices == ("role dashboards: monitoring.grafana_image names no image, so there will be no Grafana",)
    the_plan = plan(monitored(hosts=hosts, monitoring=GRAFANA))
    assert the_plan.notices == ()
    grafana = the_plan.by_name["gpu-02"].dashboards
    assert grafana is not None
    assert (grafana.image, grafana.url) == ("grafana/grafana:11.6.0", "https://video.example.net/grafana/")
    assert [(one.uid, one.url) for one in grafana.sources] == [
        ("prometheus", "https://192.168.1.11:9090"),
        ("prometheus-2", "https://192.168.1.10:9090"),
    ]
    assert the_plan.by_name["gpu-01"].dashboards is None


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ({"vip": "192.168.1.100"}, "https://192.168.1.100/grafana/"),
        ({"https_port": 8443}, "https://192.168.1.10:8443/grafana/"),
        ({"tls": {"mode": "none"}}, "http://192.168.1.10/grafana/"),
    ],
)
def test_grafana_knows_its_public_address(gateway: dict[str, object], url: str) -> None:
    hosts = monitored().model_dump(mode="json")["hosts"]
    hosts["gpu-01"]["roles"].append("dashboards")
    grafana = plan(monitored(hosts=hosts, monitoring=GRAFANA, gateway=gateway)).by_name["gpu-01"].dashboards
    assert grafana is not None
    assert grafana.url == url
