"""Which ports each host publishes: those fixed by contract, and those an operator may choose in cluster.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

from generator.model import Cluster, Host, Role, TlsMode

API = 8000
WEBUI = 7860
NODE_EXPORTER = 9100
EXPORTER = 9400
PROMETHEUS = 9090
ALERTMANAGER = 9093
ALERTMANAGER_GOSSIP = 9094
GRAFANA = 3000
LOGSTASH = 5044
ELASTICSEARCH = 9200

EXPORTED_ROLES = frozenset({Role.GATEWAY, Role.CONTROL, Role.QUEUE, Role.WORKER})
"""A host with one of these has an exporter."""

_BY_ROLE: dict[Role, tuple[tuple[int, str], ...]] = {
    Role.CONTROL: ((API, "the api"),),
    Role.METRICS: (
        (PROMETHEUS, "Prometheus"),
        (ALERTMANAGER, "Alertmanager"),
        (ALERTMANAGER_GOSSIP, "Alertmanager's cluster"),
    ),
    Role.DASHBOARDS: ((GRAFANA, "Grafana"),),
    Role.LOGS: ((LOGSTASH, "Logstash"), (ELASTICSEARCH, "Elasticsearch")),
}


class Publication(NamedTuple):
    """A port on a host's address. `setting` is where cluster.yaml chooses it, `()` for a fixed one."""

    port: int
    owner: str
    setting: tuple[str, ...]
    bind: IPv4Address


def published(cluster: Cluster) -> Iterator[tuple[str, list[Publication]]]:
    """Per host. A single host publishes the gateway only: the rest stays inside its compose network."""
    several = len(cluster.hosts) > 1
    roles = [role for host in cluster.hosts.values() for role in host.roles]
    watched = Role.METRICS in roles
    sentinels = roles.count(Role.QUEUE) > 1
    for name, host in cluster.hosts.items():
        gateway = list(_gateway(cluster)) if Role.GATEWAY in host.roles else []
        inner = list(_inner(cluster, host, watched, sentinels)) if several else []
        yield name, inner + gateway


def worker_count(host: Host) -> int:
    return len(host.gpus) or host.cpu_workers


def _gateway(cluster: Cluster) -> Iterator[Publication]:
    keys = ("http_port",) if cluster.gateway.tls.mode is TlsMode.NONE else ("http_port", "https_port")
    for key in keys:
        yield Publication(getattr(cluster.gateway, key), f"gateway.{key}", ("gateway", key), cluster.gateway.bind)


def _inner(cluster: Cluster, host: Host, watched: bool, sentinels: bool) -> Iterator[Publication]:
    for role in dict.fromkeys(host.roles):
        for port, owner in _BY_ROLE.get(role, ()):
            yield Publication(port, owner, (), host.address)
    if watched:
        yield Publication(NODE_EXPORTER, "node-exporter", (), host.address)
    if EXPORTED_ROLES & set(host.roles):
        yield Publication(EXPORTER, "the exporter", (), host.address)
    if Role.QUEUE in host.roles:
        for key in ("port", "sentinel_port") if sentinels else ("port",):
            yield Publication(getattr(cluster.queue, key), f"queue.{key}", ("queue", key), host.address)
    if Role.WORKER in host.roles:
        for index in range(worker_count(host)):
            port = cluster.worker.first_port + index
            yield Publication(port, "a worker (worker.first_port)", ("worker", "first_port"), host.address)
