"""The rendered configuration of Prometheus, Alertmanager and the exporters, judged by the images' own tools."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator import tree
from generator.model import Cluster
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, lay_out, logs_names, monitoring_names, redis_names
from generator.sources import read_sources
from tests.unit.generator.clusters import monitored, monitored_alone

pytestmark = pytest.mark.docker
RECEIVERS = {
    "hook": {"kind": "webhook", "url_file": "/etc/alerts/hook", "severity": "info"},
    "mail": {
        **{"kind": "email", "to": ["a@example.net", "b@example.net"], "sender": "video@example.net"},
        **{"server": "mail.example.net:587", "username": "video", "secret_file": "/etc/alerts/mail"},
    },
    "ding": {"kind": "dingtalk", "url_file": "/etc/alerts/ding", "secret_file": "/etc/alerts/sign"},
    "wecom": {"kind": "wecom", "url_file": "/etc/alerts/wecom", "severity": "critical"},
}


@dataclass(frozen=True)
class Rendered:
    """One monitoring host's folder, with its secrets."""

    tag: str
    folder: Path
    plan: Plan

    def run(self, image: str, tool: str, *words: str, spoil: tuple[str, str, str] | None = None) -> str:
        """What the tool says about the files where the container sees them; `spoil`: file, text, other text."""
        if spoil:
            path = self.folder / "config" / spoil[0]
            path.write_text(path.read_text().replace(spoil[1], spoil[2]))
        mounts = [
            f"-v={self.folder / 'config' / name}:/etc/appliance-{name}:ro"
            for name in os.listdir(self.folder / "config")
        ]
        # As root: the folder of the secrets is open to nobody else, compose mounts the files.
        options = [
            "--rm",
            "--network",
            "none",
            "--user",
            "0:0",
            *mounts,
            f"-v={self.folder / 'secrets'}:/run/secrets:ro",
        ]
        argv = ["docker", "run", *options, "--entrypoint", tool, f"animatediff-ha/{image}:{self.tag}", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        return "" if done.returncode == 0 else f"exit status {done.returncode}: {done.stdout}{done.stderr}"

    def compose(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((self.folder / "compose.yaml").read_bytes())
        return loaded

    def config(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((self.folder / "config" / name).read_bytes())
        return loaded


def rendered(tag: str, folder: Path, one: Cluster) -> Rendered:
    the_plan = plan(one)
    tree.write(folder, render(the_plan, read_sources()))
    store = Store(folder / "store")
    names = {"redis": redis_names(the_plan), "monitoring": monitoring_names(the_plan), "logs": logs_names(the_plan)}
    store.create_missing(("localhost",), tls=True, **names)
    lay_out(the_plan, folder, store.read())
    return Rendered(tag, folder / the_plan.hosts[0].name, the_plan)


CLUSTERS = {
    "pair": monitored(monitoring={"receivers": RECEIVERS, "ceph": ["192.168.1.20:9283"]}),
    "single": monitored_alone(),
    "single-tls": monitored_alone(gateway={"tls": {"mode": "self-signed"}}),
    "acme": monitored(gateway={"server_name": "video.example.net", "tls": {"mode": "acme"}}),
    "files": monitored(
        gateway={
            "server_name": "video.example.net",
            "tls": {"mode": "files", "certificate": "/etc/video/a.crt", "key": "/etc/video/a.key"},
        },
        monitoring={"gateway_ca": "/etc/video/ca.crt", "scrape_seconds": 1},
    ),
}


@pytest.fixture(params=CLUSTERS)
def host(images: str, tmp_path: Path, request: pytest.FixtureRequest) -> Rendered:
    return rendered(images, tmp_path, CLUSTERS[request.param])


def test_every_tool_accepts_its_configuration(host: Rendered) -> None:
    for image, tool, *words in (
        ("prometheus", "promtool", "check", "config", "/etc/appliance-prometheus/prometheus.yml"),
        ("prometheus", "promtool", "check", "web-config", "/run/secrets/monitoring_web.yml"),
        ("prometheus", "sh", "-c", "promtool check rules /etc/appliance-prometheus/rules/*.yml"),
        ("alertmanager", "amtool", "check-config", "/etc/appliance-alertmanager/alertmanager.yml"),
        (
            "blackbox-exporter",
            "prometheus-blackbox-exporter",
            "--config.check",
            "--config.file=/etc/appliance-blackbox/blackbox.yml",
        ),
    ):
        assert host.run(image, tool, *words) == "", tool


@pytest.mark.parametrize(
    ("image", "tool", "words", "spoil", "said"),
    [
        (
            "prometheus",
            "promtool",
            ("check", "config", "/etc/appliance-prometheus/prometheus.yml"),
            ("prometheus/prometheus.yml", "cluster_token", "cluster_tokens"),
            "no such file",
        ),
        (
            "prometheus",
            "sh",
            ("-c", "promtool check rules /etc/appliance-prometheus/rules/*.yml"),
            ("prometheus/rules/gpu.yml", "nvidia_smi_gpu_up) == 0", "nvidia_smi_gpu_up) == "),
            "parse error",
        ),
        (
            "alertmanager",
            "amtool",
            ("check-config", "/etc/appliance-alertmanager/alertmanager.yml"),
            ("alertmanager/alertmanager.yml", "receiver: appliance", "receiver: apliance"),
            'undefined receiver "apliance"',
        ),
    ],
)
def test_the_tools_refuse_what_is_broken(
    images: str, tmp_path: Path, image: str, tool: str, words: tuple[str, ...], spoil: tuple[str, str, str], said: str
) -> None:
    """Proof that the test above can fail."""
    assert said in rendered(images, tmp_path, CLUSTERS["pair"]).run(image, tool, *words, spoil=spoil)


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (
            "alertname=GpuMemoryHigh severity=critical action=drain node_name=gpu-01 gpu_id=0",
            "appliance,hook,mail,ding,wecom",
        ),
        ("alertname=GpuLost severity=critical", "hook,mail,ding,wecom"),
        ("alertname=DiskFull severity=warning", "hook,mail,ding"),
        ("alertname=Something severity=info", "hook"),
        ("alertname=Watchdog severity=info", "nobody"),
    ],
)
def test_who_is_told_of_what(images: str, tmp_path: Path, labels: str, receivers: str) -> None:
    host = rendered(images, tmp_path, CLUSTERS["pair"])
    words = ["config", "routes", "test", "--config.file=/etc/appliance-alertmanager/alertmanager.yml"]
    assert host.run("alertmanager", "amtool", *words, f"--verify.receivers={receivers}", *labels.split()) == ""
    assert host.run("alertmanager", "amtool", *words, "--verify.receivers=someone", *labels.split()) != ""


def test_every_host_is_asked_with_a_secret_and_everything_that_is_asked_listens(host: Rendered) -> None:
    jobs = {job["job_name"]: job for job in host.config("prometheus/prometheus.yml")["scrape_configs"]}
    asked = {name: [target for one in job["static_configs"] for target in one["targets"]] for name, job in jobs.items()}
    several = len(host.plan.hosts) > 1
    names = [one.address if several else "" for one in host.plan.hosts]
    assert asked["exporter"] == [f"{name or 'exporter'}:9400" for name in names]
    assert asked["node"] == [f"{name or 'node-exporter'}:9100" for name in names]
    assert len(asked["webui"]) == sum(len(one.workers) for one in host.plan.hosts)
    assert len(asked["gateway"]) >= sum(one.gateway is not None for one in host.plan.hosts)
    open_to_all = {"queue", "gateway", "certificate", "ceph"}  # by exporters beside it, and what is not ours
    for name, job in jobs.items():
        assert name in open_to_all or {"authorization", "basic_auth"} & job.keys(), name
        assert several == (job.get("scheme") == "https") or name in open_to_all | {"exporter", "webui"}, name
        for one in job["static_configs"]:
            assert one["labels"]["node_name"]
    published = {
        port["published"] for service in host.compose()["services"].values() for port in service.get("ports", ())
    }
    assert ({"9090", "9093"} <= published) == several
    for service in ("prometheus", "alertmanager", "redis-exporter", "blackbox-exporter"):
        for port in host.compose()["services"][service].get("ports", ()):
            assert port["host_ip"] == host.plan.hosts[0].address


def test_two_monitoring_hosts_are_a_monitored(images: str, tmp_path: Path) -> None:
    host = rendered(images, tmp_path, CLUSTERS["pair"])
    command = host.compose()["services"]["alertmanager"]["command"]
    assert {
        "--cluster.listen-address=0.0.0.0:9094",
        "--cluster.advertise-address=192.168.1.10:9094",
        "--cluster.peer=192.168.1.11:9094",
        "--cluster.tls-config=/etc/appliance-alertmanager/gossip.yml",
    } <= set(command)
    config = host.config("prometheus/prometheus.yml")
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == [
        "192.168.1.10:9093",
        "192.168.1.11:9093",
    ]
    assert config["global"]["external_labels"] == {"cluster": "studio", "replica": "gpu-01"}
    other = yaml.safe_load((tmp_path / "gpu-02/config/prometheus/prometheus.yml").read_bytes())
    assert other["scrape_configs"] == config["scrape_configs"], "each asks everything"


def test_one_alone_has_no_cluster(images: str, tmp_path: Path) -> None:
    host = rendered(images, tmp_path, CLUSTERS["single"])
    command = host.compose()["services"]["alertmanager"]["command"]
    assert [word for word in command if "cluster" in word] == ["--cluster.listen-address="]
    assert not (host.folder / "config/alertmanager/gossip.yml").exists()


@pytest.mark.parametrize(
    ("name", "urls", "tls"),
    [
        (
            "pair",
            ["https://192.168.1.10:443/api/v1/alerts", "https://192.168.1.11:443/api/v1/alerts"],
            {"server_name": "localhost", "ca_file": "/run/secrets/ca.crt"},
        ),
        ("single", ["http://gateway:8080/api/v1/alerts"], None),
        (
            "single-tls",
            ["https://gateway:8443/api/v1/alerts"],
            {"server_name": "localhost", "ca_file": "/run/secrets/ca.crt"},
        ),
        ("acme", None, {"server_name": "video.example.net"}),
        ("files", None, {"server_name": "video.example.net", "ca_file": "/run/secrets/gateway_ca.crt"}),
    ],
)
def test_the_gateways_are_told_with_a_key_and_over_tls_where_they_have_it(
    images: str, tmp_path: Path, name: str, urls: list[str] | None, tls: dict[str, str] | None
) -> None:
    host = rendered(images, tmp_path, CLUSTERS[name])
    receivers = {one["name"]: one for one in host.config("alertmanager/alertmanager.yml")["receivers"]}
    hooks = receivers["appliance"]["webhook_configs"]
    assert urls is None or [hook["url"] for hook in hooks] == urls
    for hook in hooks:
        assert hook["http_config"].get("tls_config") == tls
        assert hook["http_config"]["authorization"] == {"credentials_file": "/run/secrets/alerts_key"}
        assert hook["send_resolved"] is True


def test_what_holds_a_secret_is_a_file(images: str, tmp_path: Path) -> None:
    host = rendered(images, tmp_path, CLUSTERS["pair"])
    mounted = host.compose()["secrets"]
    services = host.compose()["services"]
    assert mounted["receiver_mail_secret"] == {"file": "/etc/alerts/mail"}
    assert {"receiver_hook_url", "receiver_mail_secret"} <= set(services["alertmanager"]["secrets"])
    assert not {"receiver_ding_url", "receiver_wecom_url"} & set(services["alertmanager"]["secrets"])
    assert {"receiver_ding_url", "receiver_ding_secret", "receiver_wecom_url"} <= set(services["relay"]["secrets"])
    assert json.loads(services["relay"]["environment"]["APPLIANCE_RELAYS"]) == {"ding": "dingtalk", "wecom": "wecom"}
    values = [path.read_text() for path in (host.folder / "secrets").glob("*_password")]
    texts = [path.read_text() for path in (host.folder / "config").rglob("*") if path.is_file()]
    assert values
    assert not [value for value in values for text in texts if value in text]


def test_a_host_that_is_only_asked_knows_the_passwords_hash_alone(images: str, tmp_path: Path) -> None:
    rendered(images, tmp_path, CLUSTERS["pair"])
    secrets = {path.name for path in (tmp_path / "gpu-03/secrets").iterdir()}
    assert {"monitoring_web.yml", "monitoring.crt", "monitoring.key"} <= secrets
    assert not {"monitoring_password", "alerts_key", "redis_exporter.json"} & secrets
