"""Two monitoring hosts for real, each with a Docker daemon of its own: one watches the other, all of it over TLS."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator import tree
from generator.docker import Container, Engine
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, Values, lay_out, logs_names, monitoring_names, redis_names
from generator.sources import read_sources
from tests.cluster.hosts import HostMachine, from_outside, machines
from tests.unit.generator.clusters import monitored

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
STAND_IN = Path(__file__).parents[1] / "integration/monitoring_stand_in.py"
FIRST, SECOND, THIRD = "gpu-01", "gpu-02", "gpu-03"
ON_ALL = ("redis", "sentinel", "node-exporter", "stand-in")
ON_PAIR = ("prometheus", "alertmanager", "redis-exporter", "blackbox-exporter", "gateway")
IMAGES = ("prometheus", "alertmanager", "node-exporter", "redis-exporter", "blackbox-exporter", "redis", "gateway")


@dataclass(frozen=True)
class Pair:
    plan: Plan
    hosts: dict[str, HostMachine]
    folder: Path
    secrets: Values
    authority: Path

    @cached_property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def container(self, host: str, service: str) -> Container:
        found = self.hosts[host].engine.containers(self.plan.cluster.name)
        return next(one for one in found if one.service == service)

    def ask(self, host: str, port: int, path: str, **params: str) -> Any:
        """As an operator does, from outside, with the cluster's CA."""
        login = ("operator", self.secrets["monitoring_password"].decode())

        def there() -> Any:
            url = f"https://{self.plan.by_name[host].address}:{port}{path}"
            with httpx.Client(verify=self.trust, auth=login, timeout=10, trust_env=False) as client:
                return client.get(url, params=params).raise_for_status().json()

        return from_outside(there)

    def query(self, host: str, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask(host, 9090, "/api/v1/query", query=expression)["data"]["result"]
        return found

    def firing(self, host: str) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask(host, 9093, "/api/v2/alerts")}

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 90) -> Any:
        end, last = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if found := ready():
                    return found
            except (httpx.HTTPError, StopIteration) as error:
                last = repr(error)
            time.sleep(0.5)
        down = self.query(FIRST, "up == 0")
        return pytest.fail(f"{what}: not within {seconds:g} s; {last}\ndown: {[one['metric'] for one in down]}")


@pytest.fixture(scope="module")
def pair(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    cluster = monitored(
        name="adha-pair", images={"tag": images}, queue={"maxmemory_mib": 64}, monitoring={"scrape_seconds": 1}
    )
    the_plan = plan(cluster)
    tree.write(folder / "out", render(the_plan, read_sources()))
    store = Store(folder / "store")
    names = {"redis": redis_names(the_plan), "monitoring": monitoring_names(the_plan), "logs": logs_names(the_plan)}
    store.create_missing(tuple(host.address for host in the_plan.hosts), tls=True, **names)
    lay_out(the_plan, folder / "out", store.read())
    for host in the_plan.hosts:
        override = {"services": {"stand-in": stand_in(images, host.address)}}
        (folder / "out" / host.name / "compose.override.yaml").write_text(json.dumps(override))
    needed = [*(the_plan.cluster.images[name] for name in IMAGES), f"animatediff-ha/services:{images}"]
    addresses = {host.name: host.address for host in the_plan.hosts}
    with machines(addresses, folder / "machines", needed, engine) as hosts:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: up(hosts[host.name], folder / "out" / host.name), the_plan.hosts))
        assert store.authority is not None
        yield Pair(the_plan, hosts, folder, store.read(), store.authority)


def stand_in(tag: str, address: str) -> dict[str, Any]:
    """The exporter of a host."""
    return {
        "image": f"animatediff-ha/services:{tag}",
        "pull_policy": "never",
        "entrypoint": ["/opt/venv/bin/python", "/stand_in.py"],
        "volumes": [f"{STAND_IN}:/stand_in.py:ro"],
        "secrets": ["cluster_token"],
        "networks": ["cluster"],
        "ports": [f"{address}:9400:9400"],
    }


def up(host: HostMachine, folder: Path) -> None:
    services = (*ON_ALL, *(ON_PAIR if host.name != THIRD else ()))
    host.engine.compose(
        folder, "up", "--detach", "--wait", "--wait-timeout", "240", "--no-deps", *services, timeout=300
    )


def test_each_sees_all_hosts_over_tls(pair: Pair) -> None:
    for watcher in (FIRST, SECOND):
        for job, hosts in {
            "exporter": {FIRST, SECOND, THIRD},
            "node": {FIRST, SECOND, THIRD},
            "queue": {FIRST, SECOND, THIRD},
            "certificate": {FIRST, SECOND, THIRD},
            "prometheus": {FIRST, SECOND},
            "alertmanager": {FIRST, SECOND},
        }.items():

            def up(watcher: str = watcher, job: str = job, hosts: set[str] = hosts) -> bool:
                return {one["metric"]["node_name"] for one in pair.query(watcher, f'up{{job="{job}"}} == 1')} == hosts

            pair.wait(f"{watcher} sees {job}", up, 150)


def test_the_queue_is_seen_as_it_is(pair: Pair) -> None:
    pair.wait("one master", lambda: len(pair.query(FIRST, 'redis_instance_info{role="master"}')) == 1)
    pair.wait("two replicas", lambda: pair.query(FIRST, "redis_connected_slaves == 2"))
    pair.wait("three Sentinels", lambda: len(pair.query(FIRST, "redis_sentinel_master_ckquorum_status == 1")) == 3)
    assert len(pair.query(FIRST, "redis_master_link_up == 1")) == 2


def test_every_certificate_and_address_is_known(pair: Pair) -> None:
    shown = 'count(probe_ssl_earliest_cert_expiry{job="certificate"} - time() > 800 * 86400)'
    expected = str(len(pair.plan.by_name[FIRST].metrics.targets.certificates))  # type: ignore[union-attr]
    pair.wait("all certificates", lambda: pair.query(FIRST, shown)[0]["value"][1] == expected, 150)
    for host in pair.plan.hosts:
        own = f'node_network_address_info{{address="{host.address}", node_name="{host.name}"}}'
        assert pair.query(FIRST, own), "the virtual address is found in the same way"
        assert pair.query(
            FIRST, f'rate(node_network_receive_bytes_total{{device="eth0", node_name="{host.name}"}}[1m])'
        )


def test_the_alertmanagers_are_one_cluster_and_take_nobody_else_in(pair: Pair) -> None:
    for host in (FIRST, SECOND):
        pair.wait(
            "both members", lambda host=host: len(pair.ask(host, 9093, "/api/v2/status")["cluster"]["peers"]) == 2
        )

    def stranger() -> str:
        """One without a certificate of ours."""
        try:
            with httpx.Client(verify=pair.trust, timeout=5, trust_env=False) as client:
                return str(client.get(f"https://{pair.plan.by_name[FIRST].address}:9094/"))
        except httpx.TransportError as error:
            return type(error).__name__

    assert from_outside(stranger) in ("ReadError", "RemoteProtocolError", "ConnectError")


def test_nothing_speaks_in_the_clear_or_to_a_stranger(pair: Pair) -> None:
    address = pair.plan.by_name[FIRST].address

    def knock() -> dict[int, tuple[int, int]]:
        answers = {}
        with httpx.Client(verify=pair.trust, timeout=5, trust_env=False) as client:
            for port in (9090, 9093, 9100):
                clear = client.get(f"http://{address}:{port}/metrics")
                answers[port] = (clear.status_code, client.get(f"https://{address}:{port}/metrics").status_code)
        return answers

    assert from_outside(knock) == dict.fromkeys((9090, 9093, 9100), (400, 401))


def test_a_silence_given_to_one_counts_for_both(pair: Pair) -> None:
    words = ("amtool", "silence", "add", "alertname=Nothing", "--comment=test", "--author=test")
    silence = pair.hosts[FIRST].engine.exec(pair.container(FIRST, "alertmanager").id, *words).strip()
    pair.wait("the other knows", lambda: silence in {one["id"] for one in pair.ask(SECOND, 9093, "/api/v2/silences")})


def test_the_loss_of_a_host_is_told_once_and_what_follows_is_not(pair: Pair) -> None:
    """The third host's cable is pulled: both Prometheuses see it, the Alertmanagers make one alert of it."""
    pair.hosts[THIRD].cut()
    begin = time.monotonic()
    try:
        for host in (FIRST, SECOND):
            pair.wait(f"{host} tells", lambda host=host: "HostDown" in pair.firing(host), 180)
        print(f"\nthe loss of a host is told after {time.monotonic() - begin:.0f} s")
        pair.wait("and what follows", lambda: {"ExporterDown", "RedisDown"} <= pair.firing(FIRST), 240)
        alerts = pair.ask(FIRST, 9093, "/api/v2/alerts")
        down = [one for one in alerts if one["labels"]["alertname"] == "HostDown"]
        assert [one["labels"]["node_name"] for one in down] == [THIRD], "one, although two tell of it"
        assert [one["labels"].get("replica") for one in down] == [None]
        source = down[0]["fingerprint"]
        follows = [one for one in alerts if one["labels"].get("node_name") == THIRD and one not in down]
        assert {one["labels"]["alertname"] for one in follows} >= {"ExporterDown", "RedisDown"}
        assert all(one["status"]["state"] == "suppressed" for one in follows), follows
        assert all(source in one["status"]["inhibitedBy"] for one in follows)
    finally:
        pair.hosts[THIRD].plug()
    pair.wait("it is over", lambda: "HostDown" not in pair.firing(FIRST) or None, 400)


def test_one_watches_the_other(pair: Pair) -> None:
    pair.hosts[SECOND].engine.stop(*(pair.container(SECOND, name).id for name in ("prometheus", "alertmanager")))
    try:
        pair.wait("the first tells", lambda: {"PrometheusDown", "AlertmanagerDown"} <= pair.firing(FIRST), 240)
    finally:
        pair.hosts[SECOND].engine.start(*(pair.container(SECOND, name).id for name in ("prometheus", "alertmanager")))
    pair.wait("one again", lambda: len(pair.ask(SECOND, 9093, "/api/v2/status")["cluster"]["peers"]) == 2, 120)
