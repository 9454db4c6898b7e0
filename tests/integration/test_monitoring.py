"""The rendered monitoring of one host, running as rendered: it asks all there is, and alerts get where they should."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from generator import tree
from generator.docker import Container, Engine
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, Values, lay_out
from generator.sources import read_sources
from tests.unit.generator.clusters import monitored_alone

pytestmark = pytest.mark.docker
PROJECT = "adha-monitoring"
STAND_IN = Path(__file__).with_name("monitoring_stand_in.py")
OURS = (
    "redis",
    "prometheus",
    "alertmanager",
    "redis-exporter",
    "blackbox-exporter",
    "node-exporter",
    "relay",
    "stand-in",
)
GIB = 1 << 30


@dataclass(frozen=True)
class Watched:
    """The running host. The gateway and the exporter are stand-ins, everything else is what a cluster runs."""

    engine: Engine
    plan: Plan
    secrets: Values

    def container(self, service: str) -> Container:
        return next(one for one in self.engine.containers(PROJECT) if one.service == service)

    def url(self, service: str, port: int) -> str:
        (address,) = self.container(service).networks.values()
        return f"http://{address}:{port}"

    def ask(self, service: str, port: int, path: str, **params: str) -> Any:
        login = ("operator", self.secrets["monitoring_password"].decode())
        response = httpx.get(f"{self.url(service, port)}{path}", params=params, auth=login, timeout=10)
        response.raise_for_status()
        return response.json()

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("prometheus", 9090, "/api/v1/query", query=expression)["data"]["result"]
        return found

    def tell(self, *lines: str) -> None:
        """From now on the exporter says this."""
        text = "".join(f"{line}\n" for line in lines)
        httpx.put(f"{self.url('stand-in', 8080)}/metrics", content=text.encode(), timeout=10).raise_for_status()

    def recorded(self, path: str, status: str) -> list[dict[str, Any]]:
        """What was told at `path` of alerts in this state, once for each of them."""
        told = httpx.get(f"{self.url('stand-in', 8080)}/recorded", timeout=10).json()
        return [
            {**alert, "authorization": one["authorization"]}
            for one in told
            if one["path"] == path
            for alert in one["body"].get("alerts", ())
            if alert["status"] == status
        ]

    def messages(self, path: str) -> list[str]:
        """What a group's robot got."""
        told = httpx.get(f"{self.url('stand-in', 8080)}/recorded", timeout=10).json()
        return [one["body"]["markdown"]["text"] for one in told if one["path"] == path]

    def logs(self) -> str:
        return "\n".join(
            f"--- {one.service} {one.state} {one.health}\n{self.engine.logs(one.id, lines=8)}"
            for one in self.engine.containers(PROJECT)
        )

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := ready()):
            if time.monotonic() > end:
                pytest.fail(f"{what}: not within {seconds:g} s\n{self.logs()}")
            time.sleep(0.3)
        return found


def gpu_memory(used_gib: float) -> tuple[str, ...]:
    labels = 'node_name="demo",gpu_id="0",uuid="GPU-0"'
    return (
        f"nvidia_smi_memory_used_bytes{{{labels}}} {used_gib * GIB:.0f}",
        f"nvidia_smi_memory_total_bytes{{{labels}}} {24 * GIB}",
        f"nvidia_smi_gpu_up{{{labels}}} 1",
    )


@pytest.fixture(scope="module")
def watched(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    hook, robot = folder / "hook_url", folder / "robot_url"
    for file in (hook, robot):
        file.write_text(f"http://gateway:8080/{file.name.removesuffix('_url')}")
        file.chmod(0o644)
    cluster = monitored_alone(
        name=PROJECT,
        images={"webui": "cpu", "tag": images},
        queue={"maxmemory_mib": 64},
        monitoring={
            "scrape_seconds": 1,
            "gpu_memory": {"high_seconds": 3, "low_seconds": 5},
            "receivers": {
                "hook": {"kind": "webhook", "url_file": str(hook), "severity": "info"},
                "robot": {"kind": "dingtalk", "url_file": str(robot), "severity": "critical"},
            },
        },
    )
    the_plan = plan(cluster)
    tree.write(folder, render(the_plan, read_sources()))
    store = Store(folder / "store")
    store.create_missing(("localhost",), tls=False)
    lay_out(the_plan, folder, store.read())
    place = folder / "demo"
    (place / "compose.override.yaml").write_text(json.dumps({"services": override(images)}))
    engine.compose(place, "down", "--volumes", "--remove-orphans", "--timeout", "1", timeout=120)
    try:
        engine.compose(place, "up", "--detach", "--wait", "--wait-timeout", "120", *OURS, timeout=180)
        yield Watched(engine, the_plan, store.read())
    finally:
        engine.compose(place, "down", "--volumes", "--remove-orphans", "--timeout", "5", timeout=120)


def override(tag: str) -> dict[str, Any]:
    stand_in = {
        "image": f"animatediff-ha/services:{tag}",
        "pull_policy": "never",
        "entrypoint": ["/opt/venv/bin/python", "/stand_in.py"],
        "volumes": [f"{STAND_IN}:/stand_in.py:ro"],
        "secrets": ["cluster_token"],
        "networks": {"cluster": {"aliases": ["exporter", "gateway"]}},
    }
    # Where nothing has made this machine's root a shared mount, as systemd does, Docker refuses to follow it.
    private = " / / " in Path("/proc/self/mountinfo").read_text() and not is_shared("/")
    root = {"type": "bind", "source": "/", "target": "/host", "read_only": True}
    return {"stand-in": stand_in} | ({"node-exporter": {"volumes": [root]}} if private else {})


def is_shared(mount_point: str) -> bool:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(line[4] == mount_point and any(field.startswith("shared:") for field in line[6:]) for line in lines)


def test_everything_that_is_asked_answers(watched: Watched) -> None:
    jobs = {"exporter", "node", "queue", "gateway", "prometheus", "alertmanager"}

    def up() -> bool:
        return {one["metric"]["job"] for one in watched.query("up == 1")} == jobs

    watched.wait("all jobs up", up)
    down = {one["metric"]["job"] for one in watched.query("up == 0")}
    assert down == {"webui"}, "which this test does not start"
    assert {one["metric"]["node_name"] for one in watched.query("up")} == {"demo"}


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ('redis_up{service="redis"} == 1', "as the user `exporter`, with its password"),
        ('redis_instance_info{role="master"}', "the alerts about the master"),
        ("redis_memory_max_bytes > 0", "the alert about its memory"),
        ("redis_aof_last_write_status == 1", "the alert about its file"),
        ('probe_success{job="gateway"} == 1', "the alerts about the gateways"),
        ('node_filesystem_avail_bytes{mountpoint="/"} > 0', "the alerts about disks"),
        ("node_filesystem_files > 0", "the alert about inodes"),
        ("node_memory_MemAvailable_bytes > 0", "the alert about memory"),
        ("abs(timestamp(node_time_seconds) - node_time_seconds) < 5", "the alert about clocks"),
        ("node_network_address_info", "the alerts about the virtual address"),
        ("prometheus_notifications_alertmanagers_discovered == 1", "the alert about Prometheus's own voice"),
        ("prometheus_notifications_dropped_total", "the same"),
        ("prometheus_rule_evaluation_failures_total == 0", "the alert about rules"),
        ("prometheus_tsdb_compactions_failed_total", "the alert about storage"),
        ("prometheus_tsdb_wal_corruptions_total", "the same"),
        ("prometheus_tsdb_wal_truncations_failed_total", "the same"),
        ("prometheus_target_scrapes_exceeded_sample_limit_total", "the alert about refused targets"),
        ("prometheus_target_scrapes_exceeded_body_size_limit_total", "the same"),
        ('alertmanager_notifications_total{receiver_name="hook"}', "the alert about receivers"),
        ('alertmanager_notifications_failed_total{receiver_name="hook"}', "the same"),
    ],
)
def test_what_the_rules_look_at_exists(watched: Watched, expression: str, why: str) -> None:
    """A metric that is called otherwise would make an alert silent for ever."""
    watched.wait(f"{expression}, for {why}", lambda: watched.query(expression))


def test_nobody_comes_in_without_the_password(watched: Watched) -> None:
    for service, port in (("prometheus", 9090), ("alertmanager", 9093), ("node-exporter", 9100)):
        url = watched.url(service, port)
        for path in ("/", "/metrics", "/api/v1/status/config", "/api/v2/status", "/-/healthy"):
            assert httpx.get(f"{url}{path}", timeout=10).status_code == 401, (service, path)
        wrong = httpx.get(f"{url}/metrics", auth=("operator", "wrong"), timeout=10)
        assert (wrong.status_code, wrong.headers["X-Frame-Options"]) == (401, "deny"), service


def test_a_full_gpu_reaches_the_gateway_with_the_key_and_everybody_else_too(watched: Watched) -> None:
    """From the sample to the gateway, through `for`, the hysteresis and the end; with all that the gateway needs."""
    watched.tell(*gpu_memory(12))
    watched.wait("the sample", lambda: watched.query("animatediff:gpu_memory:ratio == 0.5"))
    assert not named(watched.recorded("/api/v1/alerts", "firing"))

    begin = time.monotonic()
    watched.tell(*gpu_memory(23.9))
    (told, *_) = watched.wait("the gateway is told", lambda: named(watched.recorded("/api/v1/alerts", "firing")))
    print(f"\nthe gateway was told after {time.monotonic() - begin:.1f} s, of which 3 s are the alert's own")
    assert told["authorization"] == f"Bearer {watched.secrets['alerts_key'].decode()}"
    assert {"node_name": "demo", "gpu_id": "0", "uuid": "GPU-0", "severity": "critical"}.items() <= told[
        "labels"
    ].items()
    assert "99.58% of its memory" in told["annotations"]["description"]
    watched.wait("people are told", lambda: named(watched.recorded("/hook", "firing")))
    watched.wait("and groups", lambda: [text for text in watched.messages("/robot") if "**GpuMemoryHigh**" in text])

    watched.tell(*gpu_memory(21))  # below 95 %, above 80 %
    time.sleep(8)
    assert not named(watched.recorded("/api/v1/alerts", "resolved")), "it ended in between"
    assert watched.query('ALERTS{alertname="GpuMemoryHigh", alertstate="firing"}')

    watched.tell(*gpu_memory(12))
    watched.wait("the end is told", lambda: named(watched.recorded("/api/v1/alerts", "resolved")))
    watched.wait("to people as well", lambda: named(watched.recorded("/hook", "resolved")), 90)


def test_amtool_is_ready_to_be_used(watched: Watched) -> None:
    def names() -> set[str]:
        said = watched.engine.exec(watched.container("alertmanager").id, "amtool", "alert", "query", "-o", "json")
        return {alert["labels"]["alertname"] for alert in json.loads(said)}

    # What Prometheus says before it has found its Alertmanagers it says again a minute later: that is over by now.
    watched.wait("the watchdog", lambda: "Watchdog" in names(), 90)


def named(alerts: list[dict[str, Any]], name: str = "GpuMemoryHigh") -> list[dict[str, Any]]:
    return [alert for alert in alerts if alert["labels"]["alertname"] == name]


def test_the_watchdog_is_told_to_nobody(watched: Watched) -> None:
    assert watched.query('ALERTS{alertname="Watchdog", alertstate="firing"}')
    assert not named(watched.recorded("/hook", "firing"), "Watchdog")
    assert not named(watched.recorded("/api/v1/alerts", "firing"), "Watchdog")


def test_what_was_measured_survives_a_kill(watched: Watched) -> None:
    first_sample = "min_over_time(timestamp(up{job='prometheus'})[5m:1s])"
    before = float(watched.query(first_sample)[0]["value"][1])
    prometheus = watched.container("prometheus").id
    watched.engine.kill(prometheus)
    watched.engine.start(prometheus)
    watched.wait("healthy again", lambda: watched.container("prometheus").health == "healthy", 120)
    (after,) = watched.wait("its log is read", lambda: watched.query(first_sample))
    assert float(after["value"][1]) - before < 60


def test_a_silence_outlives_a_restart(watched: Watched) -> None:
    alertmanager = watched.container("alertmanager").id
    words = ("amtool", "silence", "add", "alertname=Nothing", "--comment=test", "--author=test")
    silence = watched.engine.exec(alertmanager, *words).strip()
    watched.engine.restart(alertmanager)
    watched.wait("healthy again", lambda: watched.container("alertmanager").health == "healthy", 120)
    assert silence in watched.engine.exec(alertmanager, "amtool", "silence", "query", "--quiet")
