"""Cluster → the logs' part of the plan. Pure, as `plan`."""

from __future__ import annotations

from generator import ports
from generator.limits import Limits
from generator.model import Cluster, LogDriver, Logs, Role
from generator.planned_logs import LogStorePlan, ShipperPlan


def shippers_of(cluster: Cluster) -> dict[str, ShipperPlan]:
    """Host → its Filebeat; every host has one, or none."""
    logs = cluster.logs
    if logs.driver is LogDriver.NONE:
        return {}
    logstashes = tuple(_logstash(cluster, name) for name in _stores(cluster))
    return {
        name: ShipperPlan(name, cluster.name, _image(logs, "filebeat"), logs.docker_folder, logstashes)
        for name in cluster.hosts
    }


def log_stores_of(cluster: Cluster) -> dict[str, LogStorePlan]:
    """Host → its Logstash and Elasticsearch, for those of role logs."""
    logs = cluster.logs
    if logs.driver is LogDriver.NONE:
        return {}
    limits = Limits(2.0, logs.memory_gib << 10, 1024)
    return {
        name: LogStorePlan(name, _image(logs, "logstash"), _image(logs, "elasticsearch"), logs.retention_days, limits)
        for name in _stores(cluster)
    }


def _image(logs: Logs, name: str) -> str:
    return f"{logs.images}/{name}:{logs.version}" if logs.images else f"{name}:{logs.version}"


def _stores(cluster: Cluster) -> list[str]:
    return [name for name, host in cluster.hosts.items() if Role.LOGS in host.roles]


def _logstash(cluster: Cluster, name: str) -> str:
    """As a container of any host reaches it; by name on a single host."""
    address = str(cluster.hosts[name].address) if len(cluster.hosts) > 1 else "logstash"
    return f"{address}:{ports.LOGSTASH}"
