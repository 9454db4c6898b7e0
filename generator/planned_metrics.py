"""The monitoring's part of what `plan` makes: who is asked for metrics, who is told of alerts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from generator.limits import Limits

USER = "operator"
"""Whom Prometheus, Alertmanager and the node-exporters let in, by the password `monitoring_password`."""
OWN_AUTHORITY = "/run/secrets/ca.crt"
"""The cluster's own CA certificate in a container, where it has one."""
RELAYED = frozenset({"dingtalk", "wecom"})
"""Kinds of receivers that want a body of their own shape, which `appliance relay` makes of Alertmanager's."""


@dataclass(frozen=True)
class Target:
    """What Prometheus asks, and the labels that everything from there gets."""

    address: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Targets:
    """Everything that is asked, the same for every Prometheus."""

    exporters: tuple[Target, ...]
    nodes: tuple[Target, ...]
    webuis: tuple[Target, ...]
    queues: tuple[Target, ...]
    """Redis and Sentinel, as the URLs that the redis-exporter asks."""
    gateways: tuple[Target, ...]
    """URLs of /readyz, the virtual address first."""
    certificates: tuple[Target, ...]
    """`address:port` that speaks TLS from the first byte."""
    prometheuses: tuple[Target, ...]
    alertmanagers: tuple[Target, ...]
    ceph: tuple[Target, ...]


@dataclass(frozen=True)
class ReceiverPlan:
    """Somebody who is told. A file is a path on the host, empty where there is none."""

    name: str
    kind: str
    severities: tuple[str, ...]
    url_file: str
    secret_file: str
    to: str
    sender: str
    server: str
    username: str

    @property
    def relayed(self) -> bool:
        return self.kind in RELAYED

    @property
    def secrets(self) -> dict[str, str]:
        """Secret → file on the host."""
        files = {f"receiver_{self.name}_url": self.url_file, f"receiver_{self.name}_secret": self.secret_file}
        return {name: file for name, file in files.items() if file}


@dataclass(frozen=True)
class BurnPlan:
    """An alert of two windows: as much of what an SLO allows is spent in both that it will not last."""

    short: str
    long: str
    bad_ratio: float
    severity: str
    wait: str
    """How long it must hold before it is told."""


@dataclass(frozen=True)
class SloPlan:
    name: str
    objective: float
    """Share that has to be good."""
    burns: tuple[BurnPlan, ...]


@dataclass(frozen=True)
class AlertPlan:
    """The numbers of `config/prometheus/rules`."""

    gpu_high: float
    gpu_high_seconds: int
    gpu_low: float
    gpu_low_seconds: int
    gpu_drains: bool
    """What torch only keeps is known, so that a GPU which is full of something else may cost a worker its work."""
    wait_seconds: int
    wait: SloPlan
    success: SloPlan
    vip: str
    """Empty where the address is not moved by us."""


@dataclass(frozen=True)
class GatewayReportPlan:
    """Where the alert about a GPU's memory goes, that the appliance may act."""

    urls: tuple[str, ...]
    ca: str
    """File in the container; empty: the public authorities."""
    name: str
    """In the certificate. Empty: plain HTTP."""
    ca_file: str
    """The operator's own, on the host; mounted as the secret `gateway_ca.crt`."""


@dataclass(frozen=True)
class MetricsPlan:
    """What one monitoring host runs."""

    host: str
    tls: bool
    url: str
    """Where a person reaches this host's Prometheus."""
    targets: Targets
    alerts: AlertPlan
    receivers: tuple[ReceiverPlan, ...]
    gateways: GatewayReportPlan
    scrape_seconds: int
    retention_days: int
    retention_gib: int
    gossip_address: str
    """Of this host's Alertmanager for the others; empty where it is the only one."""
    gossip_peers: tuple[str, ...]
    limits: Limits

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def trusts_own_authority(self) -> bool:
        """Whether something here meets a certificate of the cluster's own CA: on one host only the gateway's is one."""
        return self.tls or self.gateways.ca == OWN_AUTHORITY

    @property
    def scrape_timeout_seconds(self) -> int:
        return max(1, min(10, self.scrape_seconds - 1))

    @property
    def relays(self) -> tuple[ReceiverPlan, ...]:
        return tuple(receiver for receiver in self.receivers if receiver.relayed)

    @property
    def relay_kinds(self) -> str:
        """JSON: receiver → kind."""
        return json.dumps({receiver.name: receiver.kind for receiver in self.relays}, separators=(",", ":"))

    @property
    def redis_accounts(self) -> tuple[str, ...]:
        """What the redis-exporter's file of passwords is sorted by."""
        return tuple(target.address.replace("://", "://exporter@", 1) for target in self.targets.queues)


@dataclass(frozen=True)
class SourcePlan:
    """A Prometheus as Grafana sees it. The uid is fixed: the dashboards know it."""

    uid: str
    name: str
    url: str


@dataclass(frozen=True)
class DashboardsPlan:
    """Grafana, and the guard before it that lets in who has the cluster's token."""

    image: str
    url: str
    """Public, behind the gateway."""
    sources: tuple[SourcePlan, ...]
    tls: bool
