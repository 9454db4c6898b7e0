"""Each case changes a cluster that has no problem, and runs one rule alone so that no other covers up for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from generator import checks
from generator.checks import RULES, check
from generator.errors import Problem
from generator.load import Loaded, load
from generator.model import Cluster
from generator.ports import published

Data: TypeAlias = dict[str, Any]
BY_NAME = {rule.__name__: rule for rule in RULES}
Change: TypeAlias = Callable[[Data], object]


def gpu(number: int) -> Data:
    return {"uuid": f"GPU-00000000-0000-0000-0000-{number:012}"}


def three_hosts() -> Data:
    every = ["gateway", "control", "queue", "worker"]
    return {
        "name": "x",
        "hosts": {
            "a": {"address": "10.0.0.1", "roles": [*every, "metrics"], "gpus": [gpu(1), gpu(2)]},
            "b": {"address": "10.0.0.2", "roles": [*every, "dashboards"], "gpus": [gpu(3)]},
            "c": {"address": "10.0.0.3", "roles": ["queue", "worker", "logs"], "gpus": [gpu(4)]},
        },
        "network": {"subnet": "10.0.0.0/24"},
        "gateway": {"vip": "10.0.0.100"},
        "storage": {"driver": "nfs", "nfs": {"server": "nas", "export": "/srv"}},
        "models": {
            "checkpoint": "sd15",
            "motion_module": "mm_v3",
            "available": [
                {"name": "sd15", "kind": "checkpoint"},
                {"name": "mm_v3", "kind": "motion_module"},
                {"name": "mm_v2", "kind": "motion_module"},
            ],
        },
        "queue": {"port": 6379},
        "timeouts": {"drain_seconds": 60},
        "logs": {"driver": "elastic"},
    }


def one_host() -> Data:
    data = three_hosts()
    data["hosts"] = {
        "a": {"address": "127.0.0.1", "roles": ["gateway", "control", "queue", "worker"], "cpu_workers": 3}
    }
    data["images"] = {"webui": "cpu"}
    data["gateway"] = {"bind": "127.0.0.1", "tls": {"mode": "none"}}
    data["storage"] = {"driver": "local"}
    for key in ("network", "logs"):
        del data[key]
    return data


def loaded(tmp_path: Path, data: Data) -> Loaded:
    """JSON is YAML; indented, so that every value has a line of its own."""
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps(data, indent=1))
    return load(path)


def price(**whose: str) -> Data:
    return {"usd_per_hour": 1.5, "market": "spot", "as_of": "2026-01-15", **whose}


def put(path: str, value: object) -> Change:
    """`a.b.0.c` → value; None removes the key."""

    def change(data: Any) -> None:
        *steps, last = path.split(".")
        for step in steps:
            data = data[int(step)] if isinstance(data, list) else data.setdefault(step, {})
        if value is None:
            del data[last]
        elif isinstance(data, list):
            data[int(last)] = value
        else:
            data[last] = value

    return change


def roles(host: str, *names: str) -> Change:
    return put(f"hosts.{host}.roles", list(names))


CASES: list[tuple[str, list[Change], str]] = [
    (
        "_duplicate_addresses",
        [put("hosts.c.address", "10.0.0.1")],
        "hosts.c.address: 10.0.0.1: also the address of a (line 5); give each host its own",
    ),
    ("_unusable_addresses", [put("hosts.c.address", "0.0.0.0")], "hosts.c.address: 0.0.0.0: stands for every address"),
    ("_unusable_addresses", [put("hosts.c.address", "224.0.0.18")], "hosts.c.address: 224.0.0.18: a multicast address"),
    (
        "_unusable_addresses",
        [put("hosts.c.address", "255.255.255.255")],
        "hosts.c.address: 255.255.255.255: a reserved address",
    ),
    (
        "_unusable_addresses",
        [put("hosts.c.address", "127.0.0.1")],
        "hosts.c.address: 127.0.0.1: a loopback address, whic",
    ),
    (
        "_unusable_addresses",
        [put("gateway.vip", "127.0.0.9")],
        "gateway.vip: 127.0.0.9: a loopback address; write an add",
    ),
    ("_unusable_addresses", [put("gateway.vip", "0.0.0.0")], "gateway.vip: 0.0.0.0: stands for every address"),
    ("_unusable_addresses", [put("gateway.bind", "224.0.0.1")], "gateway.bind: 224.0.0.1: a multicast address"),
    (
        "_outside_subnet",
        [put("hosts.c.address", "10.0.1.3")],
        "hosts.c.address: 10.0.1.3: outside network.subnet 10.0.0.0/24 (line 52)",
    ),
    ("_outside_subnet", [put("hosts.c.address", "10.0.0.255")], "hosts.c.address: 10.0.0.255: is the network or broad"),
    ("_outside_subnet", [put("gateway.vip", "10.9.0.1")], "gateway.vip: 10.9.0.1: outside network.subnet 10.0.0.0/24"),
    ("_outside_subnet", [put("gateway.vip", "10.0.0.0")], "gateway.vip: 10.0.0.0: is the network or broadcast address"),
    ("_virtual_address", [put("gateway.vip", "10.0.0.3")], "gateway.vip: 10.0.0.3: is the address of c (line "),
    (
        "_virtual_address",
        [roles("b", "control", "worker")],
        "gateway.vip: 10.0.0.100: needs two hosts with the role gateway, there is 1; add one or remove vip",
    ),
    (
        "_virtual_address",
        [put("gateway.vip", "10.0.0.3"), put("gateway.vrrp.mode", "none")],
        "gateway.vip: 10.0.0.3: is the address of c (line ",
    ),
    ("_virtual_address", [put("network.subnet", None)], "gateway.vip: 10.0.0.100: needs network.subnet"),
    (
        "_vrrp",
        [put("gateway.vrrp.mode", "none"), put("gateway.vrrp.router_id", 51)],
        "gateway.vrrp.router_id: 51: is not used with mode none; remove it",
    ),
    (
        "_vrrp",
        [put("gateway.vip", None), put("gateway.vrrp.interface", "eth1")],
        "gateway.vrrp.interface: eth1: is not used without gateway.vip; remove it",
    ),
    ("_bind", [put("gateway.bind", "10.0.0.1")], "gateway.bind: 10.0.0.1: one address cannot be bound on 2 gateways"),
    (
        "_port_clashes",
        [put("gateway.http_port", 443)],
        "gateway.http_port: 443: port 443 is also taken by gateway.https_port on a and 1 more; choose another",
    ),
    (
        "_port_clashes",
        [put("gateway.https_port", 80)],
        "gateway.https_port: 80: port 80 is also taken by gateway.http_por",
    ),
    (
        "_port_clashes",
        [put("gateway.http_port", 6379)],
        "gateway.http_port: 6379: port 6379 is also taken by queue.port",
    ),
    (
        "_port_clashes",
        [put("gateway.http_port", 7861)],
        "gateway.http_port: 7861: port 7861 is also taken by a worker (worker.first_port) on a; choose",
    ),
    (
        "_port_clashes",
        [put("gateway.https_port", 8000)],
        "gateway.https_port: 8000: port 8000 is also taken by the api",
    ),
    (
        "_port_clashes",
        [put("gateway.http_port", 9090)],
        "gateway.http_port: 9090: port 9090 is also taken by Prometheu",
    ),
    (
        "_port_clashes",
        [put("gateway.http_port", 3000)],
        "gateway.http_port: 3000: port 3000 is also taken by Grafana on",
    ),
    (
        "_port_clashes",
        [put("worker.first_port", 9200)],
        "worker.first_port: 9200: port 9200 is also taken by Elasticse",
    ),
    (
        "_port_clashes",
        [put("worker.first_port", 9399)],
        "worker.first_port: 9399: port 9400 is also taken by the expor",
    ),
    (
        "_port_clashes",
        [put("queue.sentinel_port", 6379)],
        "queue.sentinel_port: 6379: port 6379 is also taken by queue.port on a and 2 more; choose another",
    ),
    (
        "_port_clashes",
        [put("queue.port", 7860)],
        "queue.port: 7860: port 7860 is also taken by a worker (worker.first_port) on a and 2 more",
    ),
    (
        "_port_clashes",
        [put("queue.sentinel_port", 9100)],
        "queue.sentinel_port: 9100: port 9100 is also taken by node-e",
    ),
    (
        "_port_range",
        [put("worker.first_port", 65535)],
        "worker.first_port: 65535: a has 2 workers, whose ports would go past 65535",
    ),
    (
        "_missing_roles",
        [roles("a", "queue", "worker", "control"), roles("b", "queue", "worker")],
        "hosts: no host has the role gateway; add it to one",
    ),
    (
        "_missing_roles",
        [roles("a", "queue", "worker", "gateway"), roles("b", "queue", "worker")],
        "hosts: no host has the role control; add it to one",
    ),
    ("_repeated_roles", [roles("c", "queue", "worker", "queue")], "hosts.c.roles[2]: queue: given twice; remove one"),
    (
        "_sentinels",
        [roles("c", "worker")],
        "hosts.b.roles[2]: queue: an even number of Sentinels (2) cannot outvote a lost half; give the role",
    ),
    (
        "_sentinels",
        [put("queue.sentinel_quorum", 1)],
        "queue.sentinel_quorum: 1: with 3 hosts of role queue the quorum m",
    ),
    (
        "_sentinels",
        [put("queue.sentinel_quorum", 4)],
        "queue.sentinel_quorum: 4: with 3 hosts of role queue the quorum m",
    ),
    (
        "_workers",
        [put("hosts.c.gpus", None)],
        "hosts.c.roles: a worker without gpus; add gpus, or remove the role worker",
    ),
    ("_workers", [roles("c", "queue")], "hosts.c.gpus: only a worker uses this; add worker to the roles, or remove it"),
    (
        "_workers",
        [roles("c", "queue"), put("hosts.c.gpus", None), put("hosts.c.cpu_workers", 2)],
        "hosts.c.cpu_workers: 2: only a worker uses this",
    ),
    (
        "_workers",
        [put("hosts.c.cpu_workers", 2)],
        "hosts.c.cpu_workers: 2: images.webui is cuda, which runs one worker per",
    ),
    (
        "_duplicate_gpus",
        [put("hosts.c.gpus.0", gpu(2))],
        "hosts.c.gpus[0].uuid: GPU-00000000-0000-0000-0000-000000000002: also listed for a (line 18); run",
    ),
    (
        "_duplicate_gpus",
        [put("hosts.a.gpus.1", gpu(1))],
        "hosts.a.gpus[1].uuid: GPU-00000000-0000-0000-0000-000000000001: also listed for a (line 15)",
    ),
    (
        "_role_needs",
        [roles("a", "gateway", "control", "queue", "worker")],
        "hosts.b.roles[4]: dashboards: no host has the role metrics",
    ),
    ("_role_needs", [roles("c", "queue", "worker")], "logs.driver: elastic: no host has the role logs; add it to one"),
    (
        "_role_needs",
        [put("logs.driver", "none")],
        "hosts.c.roles[2]: logs: logs.driver is none, so nothing would arrive",
    ),
    (
        "_timeouts",
        [put("timeouts.job_seconds", 1860)],
        "timeouts.job_seconds: 1860: must be less than stop_grace_seconds (1860), or Docker kills",
    ),
    (
        "_timeouts",
        [put("timeouts.stop_grace_seconds", 1800)],
        "timeouts.stop_grace_seconds: 1800: must be more than job_seconds (1800), or Docker kills",
    ),
    (
        "_timeouts",
        [put("timeouts.proxy_seconds", 1799)],
        "timeouts.proxy_seconds: 1799: must be at least job_seconds (1800), or the gateway hangs up",
    ),
    (
        "_timeouts",
        [put("timeouts.drain_seconds", 1860)],
        "timeouts.drain_seconds: 1860: must be less than stop_grace_seconds (1860), or Docker kills a worker",
    ),
    (
        "_timeouts",
        [put("timeouts.no_progress_seconds", 1800)],
        "timeouts.no_progress_seconds: 1800: must be less than job_seconds (1800), or a hung job is never",
    ),
    (
        "_lease",
        [put("queue.lease_seconds", 1.2)],
        "queue.lease_seconds: 1.2: a lease of 1.2 s is less than 2.5 beats of 0.5 s, so one late",
    ),
    (
        "_lease",
        [put("queue.beat_seconds", 1.3)],
        "queue.beat_seconds: 1.3: a lease of 2.5 s is less than 2.5 beats of 1.3 s",
    ),
    (
        "_models",
        [put("models.motion_module", "mm_v33")],
        "models.motion_module: mm_v33: no motion_module of this name in models.available; add it there or",
    ),
    (
        "_models",
        [put("models.checkpoint", "other")],
        "models.checkpoint: other: no checkpoint of this name in models.available; add it there or correct",
    ),
    (
        "_models",
        [put("models.checkpoint", "mm_v2")],
        "models.checkpoint: mm_v2: models.available lists this as motion_module, not as checkpoint",
    ),
    (
        "_models",
        [put("models.vae", "mm_v2")],
        "models.vae: mm_v2: models.available lists this as motion_module, not as vae",
    ),
    (
        "_models",
        [put("models.available.2.name", "mm_v3")],
        "models.available[2].name: mm_v3: this motion_module is listed twice (line ",
    ),
    (
        "_tls",
        [put("gateway.tls", {"mode": "files", "certificate": "/c"})],
        "gateway.tls.mode: files: files needs key as well; add the path of the key on the gateway hosts",
    ),
    (
        "_tls",
        [put("gateway.tls", {"mode": "files", "key": "/k"})],
        "gateway.tls.mode: files: files needs certificate as",
    ),
    (
        "_tls",
        [put("gateway.tls.certificate", "/c")],
        "gateway.tls.certificate: /c: is not used with mode self-signed; remove it, or write mode: files",
    ),
    (
        "_tls",
        [put("gateway.tls", {"mode": "files", "certificate": "/etc/video.crt", "key": "/etc/video/key"})],
        "gateway.tls.certificate: /etc/video.crt: the gateway mounts the folder of the certificate; put it into one of",
    ),
    (
        "_tls",
        [put("gateway.tls", {"mode": "files", "certificate": "/etc/video/crt", "key": "/etc/video/../key"})],
        "gateway.tls.key: /etc/video/../key: the gateway mounts the folder of the key; put it into one of its own",
    ),
    (
        "_tls",
        [
            put(
                "gateway.tls",
                {"mode": "files", "certificate": "/etc/letsencrypt/live/v/fullchain.pem", "key": "/etc/video/key"},
            )
        ],
        "gateway.tls.certificate: /etc/letsencrypt/live/v/fullchain.pem: a link that leads out of its folder, to a",
    ),
    (
        "_acme",
        [put("gateway.tls.email", "a@example.net")],
        "gateway.tls.email: a@example.net: is not used with mode self-signed; remove it, or write mode: acme",
    ),
    (
        "_acme",
        [put("gateway.tls.mode", "acme"), put("gateway.server_name", "_")],
        "gateway.tls.mode: acme: mode acme gets a certificate for one name; write it as gateway.server_name",
    ),
    (
        "_acme",
        [put("gateway.tls.mode", "acme"), put("gateway.server_name", "10.0.0.9")],
        "gateway.server_name: 10.0.0.9: mode acme needs a name, not an address; write the one that clients use",
    ),
    (
        "_acme",
        [put("gateway.tls.mode", "acme"), put("gateway.server_name", "video")],
        "gateway.server_name: video: Let's Encrypt knows public names only, like video.example.net; write such a one",
    ),
    (
        "_acme",
        [
            put("gateway.tls.mode", "acme"),
            put("gateway.server_name", "video.example.net"),
            put("gateway.http_port", 8080),
        ],
        "gateway.http_port: 8080: Let's Encrypt asks on port 80 only; write 80",
    ),
    (
        "_workers",
        [put("webui", {"engine": "a1111", "image": "x"}), put("hosts.c.cpu_workers", 2)],
        "hosts.c.cpu_workers: 2: beside gpus there are none",
    ),
    ("_webui", [put("webui.image", "x")], "webui.image: x: is not used with engine own; remove it, or write engine: a"),
    ("_webui", [put("webui.engine", "a1111")], "webui.engine: a1111: needs either image or url beside it"),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "image": "x", "url": "http://{address}:1786{index}"})],
        "webui.engine: a1111: needs either image or url",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "image": "x", "auth_file": "/x"})],
        "webui.auth_file: /x: is used with url only",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "url": "http://{address}:17860"})],
        "webui.url: http://{address}:17860: the same for several workers on one host",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "url": "http://a1111:1786{index}"})],
        "webui.url: http://a1111:1786{index}: the same for several hosts with workers",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "url": "http://{address}:{port}{index}"})],
        "webui.url: http://{address}:{port}{index}: only {address} and {index} can stand in braces",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "url": "http://{address}:786{index}"})],
        "webui.url: http://{address}:786{index}: port 7860 is that of our own worker there (worker.first_port); have",
    ),
    (
        "_webui",
        [put("webui", {"engine": "a1111", "url": "https://{address}:443{index}"}), put("worker.first_port", 4431)],
        "webui.url: https://{address}:443{index}: port 4431 is that of our own worker there",
    ),
    (
        "_webui",
        [
            put("webui", {"engine": "a1111", "url": "http://{address}"}),
            put("hosts.a.gpus", [gpu(1)]),
            put("worker.first_port", 80),
        ],
        "webui.url: http://{address}: port 80 is that of our own worker there",
    ),
    ("_storage", [put("storage.nfs", None)], "storage.driver: nfs: needs a section storage.nfs; add it"),
    (
        "_storage",
        [put("storage", {"driver": "cephfs"})],
        "storage.driver: cephfs: needs a section storage.cephfs; add it",
    ),
    (
        "_storage",
        [put("storage.cephfs", {"path": "/x"})],
        "storage.cephfs: is not used with driver nfs; remove it, or write driver: cephfs",
    ),
    (
        "_storage",
        [put("storage", {"driver": "local"})],
        "storage.driver: local: 3 hosts would each keep jobs on a disk",
    ),
    ("_storage", [put("storage", None)], "storage.driver: local: 3 hosts would each keep jobs on a disk"),
    (
        "_prices",
        [put("cost.gpu_prices", [price(model="A10G"), price(model="NVIDIA a10g")])],
        "cost.gpu_prices[1].model: NVIDIA a10g: has a price already (line ",
    ),
    (
        "_prices",
        [put("cost.host_prices", [price(host="a"), price(host="a")])],
        "cost.host_prices[1].host: a: has a price already (line ",
    ),
    ("_prices", [put("cost.host_prices", [price(host="gpu-9")])], "cost.host_prices[0].host: gpu-9: no host of this"),
    (
        "_prices",
        [roles("c", "logs"), put("hosts.c.gpus", None), put("cost.host_prices", [price(host="c")])],
        "cost.host_prices[0].host: c: has none of the roles control, gateway, queue, worker, so nobody tells its price",
    ),
    (
        "_prices",
        [put("cost.host_prices", [price(host="a", as_of="2026-02-30")])],
        "cost.host_prices[0].as_of: 2026-02-30: no day of the calendar; correct it",
    ),
    (
        "_prices",
        [put("hosts", one_host()["hosts"]), put("cost.gpu_prices", [price(model="A10G")])],
        "cost.gpu_prices: no host has GPUs; use host_prices instead",
    ),
    (
        "limits",
        [put("monitoring.gpu_memory.low_percent", 95)],
        "monitoring.gpu_memory.low_percent: 95: low_percent (95) must be less than high_percent (95), or the alert",
    ),
    (
        "limits",
        [put("monitoring.gpu_memory.high_percent", 70)],
        "monitoring.gpu_memory.high_percent: 70: low_percent (80) must be less than high_percent (70), or the alert",
    ),
    (
        "limits",
        [put("monitoring.slo.wait_seconds", 61)],
        "monitoring.slo.wait_seconds: 61: is not counted; one of 1, 2, 5,",
    ),
    (
        "receivers",
        [put("monitoring.receivers.ops", {"kind": "webhook"})],
        "monitoring.receivers.ops.kind: webhook: needs url_file as well; add it",
    ),
    (
        "receivers",
        [put("monitoring.receivers.ops", {"kind": "wecom", "url_file": "/etc/a", "secret_file": "/etc/b"})],
        "monitoring.receivers.ops.secret_file: /etc/b: is not used with kind wecom; remove it",
    ),
    (
        "receivers",
        [
            put(
                "monitoring.receivers.ops",
                {"kind": "email", "to": ["a@b.c"], "sender": "d@e.f", "server": "g:25", "username": "me"},
            )
        ],
        "monitoring.receivers.ops.username: me: kind email needs secret_file as well; add it, or leave both out",
    ),
    (
        "receivers",
        [put("monitoring.receivers.appliance", {"kind": "webhook", "url_file": "/etc/a"})],
        "monitoring.receivers.appliance: this name is taken by a receiver of the appliance itself; choose another",
    ),
    (
        "gateway_name",
        [put("gateway.tls", {"mode": "files", "certificate": "/etc/video/a.crt", "key": "/etc/video/a.key"})],
        "gateway.tls.mode: files: with role metrics, files needs a name that stands in the certificate; write it",
    ),
    (
        "gateway_name",
        [put("monitoring.gateway_ca", "/etc/video/ca.crt")],
        "monitoring.gateway_ca: /etc/video/ca.crt: is not used with gateway.tls.mode self-signed; remove it",
    ),
    (
        "unused_log_settings",
        [put("logs", {"driver": "none", "memory_gib": 4}), put("hosts.c.roles", ["queue", "worker"])],
        "logs.memory_gib: 4: is not used with driver none; remove it, or write driver: elastic",
    ),
]


@pytest.mark.parametrize("base", [three_hosts, one_host])
def test_a_consistent_cluster_has_no_problem(tmp_path: Path, base: Callable[[], Data]) -> None:
    assert check(loaded(tmp_path, base())) == []


@pytest.mark.parametrize(("rule", "changes", "expected"), CASES)
def test_a_contradiction_is_told_where_it_stands(
    tmp_path: Path, rule: str, changes: list[Change], expected: str
) -> None:
    data = three_hosts()
    for change in changes:
        change(data)
    cluster = loaded(tmp_path, data)
    problems = list(BY_NAME[rule](cluster))
    assert len(problems) == 1
    problem = problems[0]
    assert str(problem).startswith(f"{cluster.file}:{problem.line}: {expected}")
    assert blamed(data, problem) in Path(cluster.file).read_text().splitlines()[(problem.line or 0) - 1]
    assert problem in check(cluster), "RULES lacks the rule"


def blamed(data: Data, problem: Problem) -> str:
    """What the line must hold that the problem names: the key, an item of a list, or nothing for a default."""
    if problem.path.endswith("]"):
        return f'"{problem.value}"'
    return "{" if problem.path == "storage.driver" and "storage" not in data else f'"{problem.path.rpartition(".")[2]}"'


def test_every_rule_is_seen_to_fire() -> None:
    assert {rule.__name__ for rule in RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ([put("hosts.a.cpu_workers", None)], ["hosts.a.roles"]),
        ([put("hosts.a.gpus", [gpu(1)])], ["hosts.a.gpus"]),
        ([put("images.webui", "cuda")], ["hosts.a.cpu_workers"]),
        ([put("hosts.a.roles", ["control"])], ["hosts", "hosts", "hosts", "hosts.a.cpu_workers"]),
        ([put("gateway.http_port", 443)], []),  # without TLS nobody listens on https_port
        ([put("gateway.http_port", 7860)], []),  # a single host publishes nothing else
        ([put("queue.sentinel_quorum", 2)], ["queue.sentinel_quorum"]),
        ([put("gateway.vip", "127.0.0.2")], ["gateway.vip"] * 3),
        ([put("hosts.a.address", "0.0.0.0")], ["hosts.a.address"]),
        ([put("webui", {"engine": "a1111", "url": "http://a1111-{index}:7860"})], []),  # whatever images.webui is
        ([put("webui", {"engine": "a1111", "url": "http://a1111:7860"}), put("hosts.a.cpu_workers", 1)], []),
        ([put("webui", {"engine": "a1111", "url": "http://{address}:786{index}"})], []),  # ours is not published
    ],
)
def test_a_single_host(tmp_path: Path, changes: list[Change], paths: list[str]) -> None:
    data = one_host()
    for change in changes:
        change(data)
    assert sorted(problem.path for problem in check(loaded(tmp_path, data))) == paths


@pytest.mark.parametrize(
    "changes",
    [
        [put("worker.first_port", 65534)],
        [put("webui", {"engine": "a1111", "url": "http://{address}:785{index}"})],
        [put("webui", {"engine": "a1111", "url": "http://{address}:1786{index}"})],
        [put("webui", {"engine": "a1111", "url": "http://{address}{index}.lan:786{index}"})],
        [put("queue.sentinel_quorum", 2)],
        [put("queue.sentinel_quorum", 3)],
        [put("queue.lease_seconds", 2.5), put("queue.beat_seconds", 1.0)],
        [put("timeouts.proxy_seconds", 1800)],
        [
            roles("b", "gateway", "worker"),
            roles("c", "worker", "logs"),
            put("queue.sentinel_port", 6379),
        ],  # no Sentinel
    ],
)
def test_the_bounds_themselves_are_allowed(tmp_path: Path, changes: list[Change]) -> None:
    data = three_hosts()
    for change in changes:
        change(data)
    assert check(loaded(tmp_path, data)) == []


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    data = three_hosts()
    put("models.checkpoint", "x" * 100)(data)
    (problem,) = check(loaded(tmp_path, data))
    assert problem.value == "x" * 59 + "…"


def test_two_gateways_without_a_virtual_address_are_allowed(tmp_path: Path) -> None:
    data = three_hosts()
    put("gateway.vip", None)(data)
    assert check(loaded(tmp_path, data)) == []


@pytest.mark.parametrize(
    "change", [roles("b", "control", "worker"), put("network.subnet", None), put("gateway.vip", None)]
)
def test_the_address_of_a_load_balancer_may_lie_anywhere(tmp_path: Path, change: Change) -> None:
    data = three_hosts()
    put("gateway.vip", "203.0.113.7")(data)
    put("gateway.vrrp.mode", "none")(data)
    change(data)
    assert [one.path for one in check(loaded(tmp_path, data)) if one.path.startswith(("gateway", "network"))] == []


def test_the_virtual_address_itself_cannot_be_listened_on(tmp_path: Path) -> None:
    """A gateway could not bind it while another host has it."""
    data = three_hosts()
    put("gateway.bind", "10.0.0.100")(data)
    (problem,) = check(loaded(tmp_path, data))
    assert (problem.path, problem.hint.endswith("remove bind, or write 0.0.0.0")) == ("gateway.bind", True)


def test_all_problems_come_at_once_and_in_order(tmp_path: Path) -> None:
    data = three_hosts()
    for change in (
        put("logs.driver", "none"),
        put("hosts.b.address", "10.0.0.1"),
        put("timeouts.job_seconds", 4000),
        put("models.checkpoint", "gone"),
    ):
        change(data)
    problems = check(loaded(tmp_path, data))
    assert [problem.path for problem in problems] == [
        "hosts.b.address", "hosts.c.roles[2]", "models.checkpoint", "timeouts.job_seconds", "timeouts.job_seconds",
    ]  # fmt: skip
    assert [problem.line for problem in problems] == sorted(problem.line or 0 for problem in problems)


def test_a_clash_on_different_addresses_is_none(tmp_path: Path) -> None:
    data = three_hosts()
    put("gateway.vip", None)(data)
    roles("b", "control", "queue", "worker", "dashboards")(data)
    for bind, clashes in (("0.0.0.0", 1), ("10.0.0.1", 1), ("203.0.113.7", 0)):
        data["gateway"] = {"bind": bind, "http_port": 6379}
        assert len(list(checks._port_clashes(loaded(tmp_path, data)))) == clashes


def test_published_ports_of_a_host() -> None:
    ports = dict(published(Cluster.model_validate(three_hosts())))
    assert [p.port for p in ports["a"]] == [8000, 9090, 9093, 9094, 9100, 9400, 6379, 26379, 7860, 7861, 80, 443]
    data = three_hosts()
    roles("a", "gateway", "control", "queue", "worker")(data)
    assert [p.port for p in dict(published(Cluster.model_validate(data)))["b"] if p.port in (9100, 9400)] == [9400]
    single = dict(published(Cluster.model_validate(one_host())))
    assert [p.port for p in single["a"]] == [80]
