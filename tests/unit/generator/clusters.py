"""Small clusters for tests, as the operator would have written them."""

from __future__ import annotations

import json
from typing import Any

from generator.model import Cluster


def gpu(number: int) -> dict[str, Any]:
    return {"uuid": f"GPU-{number:08x}-0000-4000-8000-{number:012x}"}


def three_hosts(**changes: Any) -> Cluster:
    hosts = {
        f"gpu-0{i}": {
            "address": f"192.168.1.{9 + i}",
            "roles": ["gateway", "control", "queue", "worker"] if i < 3 else ["queue", "worker"],
            "gpus": [gpu(10 * i), gpu(10 * i + 1)],
        }
        for i in (1, 2, 3)
    }
    return cluster(hosts=hosts, storage={"driver": "cephfs", "cephfs": {"path": "/mnt/ceph"}}, **changes)


def one_host(**changes: Any) -> Cluster:
    host = {"address": "127.0.0.1", "roles": ["gateway", "control", "queue", "worker"], "cpu_workers": 2}
    return cluster(
        **{"hosts": {"demo": host}, "images": {"webui": "cpu"}, "gateway": {"tls": {"mode": "none"}}, **changes}
    )


def monitored(**changes: Any) -> Cluster:
    """Three hosts with a GPU each, two of them watch all of it; a virtual address."""
    roles = ["gateway", "control", "queue", "worker"]
    hosts = {
        f"gpu-0{n}": {
            "address": f"192.168.1.{9 + n}",
            "roles": [*roles, "metrics"] if n < 3 else ["queue", "worker"],
            "gpus": [gpu(n)],
        }
        for n in (1, 2, 3)
    }
    storage = {"driver": "cephfs", "cephfs": {"path": "/mnt/ceph"}}
    gateway = {"vip": "192.168.1.100", "server_name": "video.example.net"}
    return cluster(**{"hosts": hosts, "storage": storage, "gateway": gateway, **changes})


def with_dashboards(**changes: Any) -> Cluster:
    """As `monitored`, with Grafana on the second host."""
    hosts = monitored().model_dump(mode="json")["hosts"]
    hosts["gpu-02"]["roles"].append("dashboards")
    monitoring = {"grafana_image": "grafana/grafana:11.6.0", **changes.pop("monitoring", {})}
    return monitored(**{"hosts": hosts, "monitoring": monitoring, **changes})


def monitored_alone(**changes: Any) -> Cluster:
    """One host that does everything."""
    roles = ["gateway", "control", "queue", "worker", "metrics"]
    return one_host(hosts={"demo": {"address": "127.0.0.1", "roles": roles, "cpu_workers": 2}}, **changes)


def logged(**changes: Any) -> Cluster:
    """As `monitored`; the third host keeps the lines of all."""
    hosts = monitored().model_dump(mode="json")["hosts"]
    hosts["gpu-03"]["roles"].append("logs")
    return monitored(**{"hosts": hosts, "logs": {"driver": "elastic"}, **changes})


def logged_alone(**changes: Any) -> Cluster:
    """One host that does everything, without monitoring."""
    roles = ["gateway", "control", "queue", "worker", "logs"]
    hosts = {"demo": {"address": "127.0.0.1", "roles": roles, "cpu_workers": 2}}
    return one_host(**{"hosts": hosts, "logs": {"driver": "elastic"}, **changes})


def cluster(**changes: Any) -> Cluster:
    raw: dict[str, Any] = {
        "name": "studio",
        "models": {
            "checkpoint": "sd15",
            "motion_module": "mm.safetensors",
            "available": [
                {"name": "sd15", "kind": "checkpoint"},
                {"name": "mm.safetensors", "kind": "motion_module"},
            ],
        },
        **changes,
    }
    return Cluster.model_validate_json(json.dumps(raw))
