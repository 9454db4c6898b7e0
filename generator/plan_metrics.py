"""Cluster → the monitoring's part of the plan. Pure, as `plan`; every Prometheus asks everything, so the lists are made
once for all of them."""

from __future__ import annotations

from collections.abc import Iterator

from generator import ports
from generator.limits import Limits
from generator.model import (
    Cluster,
    LogDriver,
    Receiver,
    Role,
    Severity,
    TlsMode,
    VrrpMode,
    WebuiEngine,
)
from generator.planned import WorkerPlan
from generator.planned_metrics import (
    OWN_AUTHORITY,
    AlertPlan,
    BurnPlan,
    DashboardsPlan,
    GatewayReportPlan,
    MetricsPlan,
    ReceiverPlan,
    SloPlan,
    SourcePlan,
    Target,
    Targets,
)

ALERTS_PATH = "/api/v1/alerts"
BURNS = (
    ("5m", "1h", 14.4, "critical", "1m"),
    ("30m", "6h", 6.0, "critical", "2m"),
    ("2h", "1d", 3.0, "warning", "10m"),
)
"""Two windows, how many times as fast as the SLO allows, and what that is worth, after the SRE workbook's chapter
"Alerting on SLOs". Three days, its fourth, would hardly fit into what is kept."""
MOST_BAD = 0.9
"""Where an SLO allows much, no share of bad ones could be several times as much."""
GPU_HOST_MIB, BASE_MIB = 12, 512
"""Memory of Prometheus: what one host's series need, and what it needs without any."""


def metrics_of(cluster: Cluster, workers: dict[str, tuple[WorkerPlan, ...]]) -> dict[str, MetricsPlan]:
    """Host → what it runs, for those of role metrics. `workers`: of every host with some."""
    names = _names_with(cluster, Role.METRICS)
    if not names:
        return {}
    targets, several = _targets(cluster, workers), _several(cluster)
    return {
        name: MetricsPlan(
            host=name,
            tls=several,
            url=f"{_scheme(cluster)}://{_place(cluster, name, 'prometheus', ports.PROMETHEUS)}/",
            targets=targets,
            alerts=_alerts(cluster),
            receivers=tuple(_receiver(key, one) for key, one in cluster.monitoring.receivers.items()),
            gateways=_gateway_reports(cluster),
            scrape_seconds=cluster.monitoring.scrape_seconds,
            retention_days=cluster.monitoring.retention_days,
            retention_gib=cluster.monitoring.retention_gib,
            gossip_address=_gossip(cluster, name) if len(names) > 1 else "",
            gossip_peers=tuple(_gossip(cluster, other) for other in names if other != name),
            limits=Limits(2.0, BASE_MIB + GPU_HOST_MIB * len(cluster.hosts), 256),
        )
        for name in names
    }


def dashboards_of(cluster: Cluster) -> dict[str, DashboardsPlan]:
    """Host → its Grafana, for those of role dashboards; nothing where no image of it is named."""
    image = cluster.monitoring.grafana_image
    if image is None:
        return {}
    metrics = _names_with(cluster, Role.METRICS)
    return {
        name: DashboardsPlan(
            image=image,
            url=f"{public_url(cluster)}/grafana/",
            # Its own host's first: the two live and die together.
            sources=tuple(_sources(cluster, sorted(metrics, key=lambda other: other != name))),
            tls=_several(cluster),
        )
        for name in _names_with(cluster, Role.DASHBOARDS)
    }


def guards_of(cluster: Cluster) -> tuple[str, ...]:
    """Where the gateways find those before Grafana, as host:port."""
    if cluster.monitoring.grafana_image is None:
        return ()
    names = _names_with(cluster, Role.DASHBOARDS)
    return tuple(_place(cluster, name, "guard", ports.GRAFANA if _several(cluster) else 8080) for name in names)


def public_url(cluster: Cluster) -> str:
    """Where people find the gateways, as far as cluster.yaml knows."""
    gateway = cluster.gateway
    first = cluster.hosts[_names_with(cluster, Role.GATEWAY)[0]].address
    name = str(gateway.vip or first) if gateway.server_name == "_" else gateway.server_name
    scheme, port, usual = ("http", gateway.http_port, 80) if _plain(cluster) else ("https", gateway.https_port, 443)
    return f"{scheme}://{name}" + ("" if port == usual else f":{port}")


def _several(cluster: Cluster) -> bool:
    return len(cluster.hosts) > 1


def _scheme(cluster: Cluster) -> str:
    return "https" if _several(cluster) else "http"


def _plain(cluster: Cluster) -> bool:
    return cluster.gateway.tls.mode is TlsMode.NONE


def _names_with(cluster: Cluster, role: Role) -> list[str]:
    return [name for name, host in cluster.hosts.items() if role in host.roles]


def _place(cluster: Cluster, name: str, service: str, port: int) -> str:
    """Where the service of this host is reached from another container; by name on a single host."""
    return f"{cluster.hosts[name].address if _several(cluster) else service}:{port}"


def _gossip(cluster: Cluster, name: str) -> str:
    return f"{cluster.hosts[name].address}:{ports.ALERTMANAGER_GOSSIP}"


# --- who is asked ---------------------------------------------------------------------------------------------------


def _targets(cluster: Cluster, workers: dict[str, tuple[WorkerPlan, ...]]) -> Targets:
    def every(names: list[str], service: str, port: int) -> tuple[Target, ...]:
        return tuple(Target(_place(cluster, name, service, port), {"node_name": name}) for name in names)

    hosts, monitors = list(cluster.hosts), _names_with(cluster, Role.METRICS)
    exported = [name for name, host in cluster.hosts.items() if ports.EXPORTED_ROLES & set(host.roles)]
    nodes = every(hosts, "node-exporter", ports.NODE_EXPORTER)
    prometheuses = every(monitors, "prometheus", ports.PROMETHEUS)
    alertmanagers = every(monitors, "alertmanager", ports.ALERTMANAGER)
    queues = tuple(_queues(cluster))
    stores = _names_with(cluster, Role.LOGS) if cluster.logs.driver is LogDriver.ELASTIC else []
    own_tls = (
        *(Target(t.address.partition("://")[2], t.labels) for t in queues),
        *nodes,
        *prometheuses,
        *alertmanagers,
        *every(stores, "elasticsearch", ports.ELASTICSEARCH),
    )
    return Targets(
        exporters=every(exported, "exporter", ports.EXPORTER),
        nodes=nodes,
        webuis=tuple(_webuis(cluster, workers)),
        queues=queues,
        gateways=tuple(_gateways(cluster)),
        certificates=own_tls if _several(cluster) else (),
        prometheuses=prometheuses,
        alertmanagers=alertmanagers,
        ceph=tuple(Target(address, {"node_name": address.partition(":")[0]}) for address in cluster.monitoring.ceph),
    )


def _webuis(cluster: Cluster, workers: dict[str, tuple[WorkerPlan, ...]]) -> Iterator[Target]:
    if cluster.webui.engine is WebuiEngine.A1111:
        return
    for name, its in workers.items():
        for worker in its:
            address = _place(cluster, name, worker.webui, worker.port if _several(cluster) else ports.WEBUI)
            uuid = {"uuid": worker.gpu_uuid} if worker.gpu_uuid else {}
            yield Target(address, {"node_name": name, "worker": worker.worker, **uuid})


def _queues(cluster: Cluster) -> Iterator[Target]:
    scheme = "rediss" if _several(cluster) else "redis"
    names = _names_with(cluster, Role.QUEUE)
    services = {"redis": cluster.queue.port} | ({"sentinel": cluster.queue.sentinel_port} if len(names) > 1 else {})
    for service, port in services.items():
        for name in names:
            labels = {"node_name": name, "service": service}
            yield Target(f"{scheme}://{_place(cluster, name, service, port)}", labels)


def _gateways(cluster: Cluster) -> Iterator[Target]:
    gateway = cluster.gateway
    scheme, port = ("http", gateway.http_port) if _plain(cluster) else ("https", gateway.https_port)
    if gateway.vip:
        yield Target(f"{scheme}://{gateway.vip}:{port}/readyz", {"node_name": "virtual-address"})
    for name in _names_with(cluster, Role.GATEWAY):
        yield Target(f"{_gateway_url(cluster, name)}/readyz", {"node_name": name})


def _gateway_url(cluster: Cluster, name: str) -> str:
    """As another container reaches this very gateway."""
    gateway = cluster.gateway
    if not _several(cluster):
        return "http://gateway:8080" if _plain(cluster) else "https://gateway:8443"
    address = cluster.hosts[name].address if gateway.bind.is_unspecified else gateway.bind
    return f"http://{address}:{gateway.http_port}" if _plain(cluster) else f"https://{address}:{gateway.https_port}"


# --- who is told ----------------------------------------------------------------------------------------------------


def _gateway_reports(cluster: Cluster) -> GatewayReportPlan:
    gateway, own = cluster.gateway, cluster.monitoring.gateway_ca or ""
    name, ca = gateway.server_name, "/run/secrets/gateway_ca.crt" if own else ""
    if gateway.tls.mode is TlsMode.SELF_SIGNED:
        name, ca = "localhost", OWN_AUTHORITY  # a name that our certificates always have
    urls = tuple(f"{_gateway_url(cluster, host)}{ALERTS_PATH}" for host in _names_with(cluster, Role.GATEWAY))
    return GatewayReportPlan(urls, ca, "" if _plain(cluster) else name, own)


def _receiver(name: str, receiver: Receiver) -> ReceiverPlan:
    severities = [severity.value for severity in Severity]
    worst_last = severities[severities.index(receiver.severity.value) :]
    return ReceiverPlan(
        name=name,
        kind=receiver.kind.value,
        severities=tuple(worst_last),
        url_file=receiver.url_file or "",
        secret_file=receiver.secret_file or "",
        to=", ".join(receiver.to),
        sender=receiver.sender or "",
        server=receiver.server or "",
        username=receiver.username or "",
    )


# --- the numbers of the rules ---------------------------------------------------------------------------------------


def _alerts(cluster: Cluster) -> AlertPlan:
    memory, slo = cluster.monitoring.gpu_memory, cluster.monitoring.slo
    ours = cluster.gateway.vip is not None and cluster.gateway.vrrp.mode is VrrpMode.KEEPALIVED
    return AlertPlan(
        gpu_high=round(memory.high_percent / 100, 4),
        gpu_high_seconds=memory.high_seconds,
        gpu_low=round(memory.low_percent / 100, 4),
        gpu_low_seconds=memory.low_seconds,
        gpu_drains=cluster.webui.engine is WebuiEngine.OWN,
        wait_seconds=slo.wait_seconds,
        wait=_slo("wait", slo.wait_percent),
        success=_slo("success", slo.success_percent),
        vip=str(cluster.gateway.vip) if ours else "",
    )


def _slo(name: str, percent: float) -> SloPlan:
    allowed = 1 - percent / 100
    burns = tuple(
        BurnPlan(short, long, round(min(MOST_BAD, factor * allowed), 4), severity, wait)
        for short, long, factor, severity, wait in BURNS
    )
    return SloPlan(name, round(percent / 100, 4), burns)


# --- Grafana --------------------------------------------------------------------------------------------------------


def _sources(cluster: Cluster, names: list[str]) -> Iterator[SourcePlan]:
    for number, name in enumerate(names, start=1):
        url = f"{_scheme(cluster)}://{_place(cluster, name, 'prometheus', ports.PROMETHEUS)}"
        yield SourcePlan("prometheus" if number == 1 else f"prometheus-{number}", f"Prometheus on {name}", url)
