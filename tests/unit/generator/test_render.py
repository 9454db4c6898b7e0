from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import pytest
import yaml

from generator import secret_marks
from generator.model import Cluster
from generator.plan import plan
from generator.render import HASH_LABEL, RenderError, Sources, render
from generator.sources import read_sources
from tests.unit.generator.clusters import (
    gpu,
    logged,
    logged_alone,
    monitored,
    monitored_alone,
    one_host,
    three_hosts,
    with_dashboards,
)

SOURCES = read_sources()
EXCEPTIONS: dict[str, dict[str, str]] = {
    "keepalived": {
        "user": "changes the host's addresses, which only root may",
        "cap_add": "NET_ADMIN for that, NET_RAW for VRRP and ARP, SETUID and SETGID to run its check as another user",
        "network_mode": "the address is the host's",
    },
    "filebeat": {
        "user": "Docker's log folders are root's, and list their files to root alone",
        "cap_add": "DAC_READ_SEARCH, to read there; without it even root could not, and nothing else is left to it",
    },
    "elasticsearch": {"user": "our uid in group 0, which owns what its image writes to"},
    "logstash": {"user": "our uid in group 0, which owns what its image writes to"},
    "node-exporter": {"network_mode": "tells of the host's own network, which a container does not see"},
}
"""Service → key → reason, for every service that may not be as hardened as the rest."""
VIP = {"vip": "192.168.1.100"}


def compose(cluster: Cluster, host: str, sources: Sources = SOURCES) -> dict[str, Any]:
    files = dict(render(plan(cluster), sources))[host]
    loaded: dict[str, Any] = yaml.safe_load(files["compose.yaml"])
    return loaded


def test_the_same_input_gives_the_same_bytes() -> None:
    assert list(render(plan(three_hosts()), SOURCES)) == list(render(plan(three_hosts()), read_sources()))


def test_services_of_each_host() -> None:
    assert list(compose(one_host(), "demo")["services"]) == [
        *("storage-init", "redis", "api", "webui-0", "agent-0", "webui-1", "agent-1", "gateway", "controller"),
        "exporter",
    ]
    assert {"gateway", "api", "controller"}.isdisjoint(compose(three_hosts(), "gpu-03")["services"])


def test_a_gpu_service_reserves_one_gpu_by_uuid() -> None:
    service = compose(three_hosts(), "gpu-02")["services"]["webui-1"]
    uuid = gpu(21)["uuid"]
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "device_ids": [uuid], "capabilities": ["gpu"]}
    ]
    assert service["environment"]["CUDA_VISIBLE_DEVICES"] == uuid
    assert service["environment"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_an_exporter_sees_all_gpus_of_its_host_and_may_only_look() -> None:
    service = compose(three_hosts(), "gpu-02")["services"]["exporter"]
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "utility"]}
    ]
    environment = service["environment"]
    assert environment["APPLIANCE_GPUS"] == f"{gpu(20)['uuid']},{gpu(21)['uuid']}"
    assert environment["APPLIANCE_WORKERS"] == "2"
    assert service["ports"] == [{"target": 9400, "published": "9400", "host_ip": "192.168.1.11", "protocol": "tcp"}]
    assert service["volumes"] == [
        {"type": "volume", "source": "gateway-run", "target": "/run/gateway", "read_only": True}
    ]
    assert "volumes" not in compose(three_hosts(), "gpu-03")["services"]["exporter"], "it has no gateway"


def test_an_exporter_of_a_host_without_gpus_asks_for_none() -> None:
    service = compose(one_host(), "demo")["services"]["exporter"]
    assert "reservations" not in service["deploy"]["resources"]
    assert "APPLIANCE_GPUS" not in service["environment"]
    assert "ports" not in service


@pytest.mark.parametrize(
    ("cluster", "host"),
    [
        (one_host(), "demo"),
        (three_hosts(gateway=VIP), "gpu-01"),
        (three_hosts(), "gpu-03"),
        (monitored(), "gpu-01"),
        (monitored_alone(), "demo"),
        (with_dashboards(), "gpu-02"),
        (logged(), "gpu-03"),
        (logged_alone(), "demo"),
    ],
)
def test_every_service_is_hardened(cluster: Cluster, host: str) -> None:
    shipped = (
        {"labels": "com.docker.compose.project,com.docker.compose.service"}
        if cluster.logs.driver.value != "none"
        else {}
    )
    expected = {
        "user": "10001:10001",
        "init": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5", **shipped}},
    }
    for name, service in compose(cluster, host)["services"].items():
        for key, value in expected.items():
            assert service[key] == value or key in EXCEPTIONS.get(name, {}), f"{name}.{key}"
        assert (
            not {"cap_add", "privileged", "container_name", "network_mode"}
            & service.keys() - EXCEPTIONS.get(name, {}).keys()
        )
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} == limits.keys()
        one_shot = service["restart"] == "no"
        assert one_shot or {"healthcheck", "stop_grace_period"} <= service.keys(), name


def test_the_virtual_address_is_held_beside_every_gateway() -> None:
    rendered = dict(render(plan(three_hosts(gateway=VIP)), SOURCES))
    with_it = {name for name, files in rendered.items() if b"  keepalived:" in files["compose.yaml"]}
    assert with_it == {name for name, files in rendered.items() if "config/keepalived/keepalived.conf" in files}
    assert with_it == {"gpu-01", "gpu-02"}
    conf = rendered["gpu-02"]["config/keepalived/keepalived.conf"].decode()
    assert 'keepalived-check-gateway 192.168.1.11:80 192.168.1.10:80"' in conf
    service = yaml.safe_load(rendered["gpu-02"]["compose.yaml"])["services"]["keepalived"]
    # Stopped before the gateway, and made anew with it.
    assert service["depends_on"] == {"gateway": {"condition": "service_healthy", "restart": True}}
    assert "APPLIANCE_VRRP_INTERFACE" not in service["environment"]
    chosen = compose(three_hosts(gateway={**VIP, "vrrp": {"interface": "bond0.7"}}), "gpu-01")["services"]
    assert chosen["keepalived"]["environment"]["APPLIANCE_VRRP_INTERFACE"] == "bond0.7"
    for gateway in ({}, {**VIP, "vrrp": {"mode": "none"}}):
        assert "keepalived" not in compose(three_hosts(gateway=gateway), "gpu-01")["services"]


def test_only_the_gateway_is_public() -> None:
    for cluster in (three_hosts(), monitored(), with_dashboards(), logged()):
        for number in (2, 3):
            for name, service in compose(cluster, f"gpu-0{number}")["services"].items():
                for port in service.get("ports", ()):
                    assert port["host_ip"] == ("0.0.0.0" if name == "gateway" else f"192.168.1.{9 + number}"), name
    for cluster in (one_host(), monitored_alone(), logged_alone()):
        published = {name for name, service in compose(cluster, "demo")["services"].items() if "ports" in service}
        assert published == {"gateway"}


def test_a_node_exporter_listens_beside_the_hosts_network_at_its_address_alone() -> None:
    beside = compose(monitored(), "gpu-03")["services"]["node-exporter"]
    assert (beside["network_mode"], "networks" in beside) == ("host", False)
    assert "--web.listen-address=192.168.1.12:9100" in beside["command"]
    inside = compose(monitored_alone(), "demo")["services"]["node-exporter"]
    assert (inside["networks"], "network_mode" in inside) == (["cluster"], False)
    assert "--web.listen-address=:9100" in inside["command"]
    assert {volume["read_only"] for volume in beside["volumes"]} == {True}


def test_grafana_is_reached_through_its_guard_alone_and_can_be_left_out() -> None:
    services = compose(with_dashboards(), "gpu-02")["services"]
    grafana, guard = services["grafana"], services["guard"]
    assert (grafana["image"], grafana["pull_policy"], "ports" in grafana) == (
        "grafana/grafana:11.6.0",
        "missing",
        False,
    )
    assert (guard["ports"][0]["published"], guard["ports"][0]["target"]) == ("3000", 8080)
    assert grafana["profiles"] == guard["profiles"] == ["vendor", "grafana"]
    assert guard["secrets"] == ["cluster_token"]
    others = [name for name, service in services.items() if "profiles" in service]
    assert others == ["grafana", "guard"], "nothing else waits for a vendor's image"
    assert not [name for name, service in services.items() if {"grafana", "guard"} & set(service.get("depends_on", ()))]
    assert "grafana" not in compose(monitored(), "gpu-02")["services"]


def test_every_host_ships_its_lines_and_one_keeps_them() -> None:
    for host in ("gpu-01", "gpu-02", "gpu-03"):
        services = compose(logged(), host)["services"]
        kept = {"elasticsearch", "elasticsearch-setup", "logstash"}
        assert set(services) & {"filebeat", *kept} == {"filebeat", *(kept if host == "gpu-03" else ())}
        assert services["filebeat"]["cap_add"] == ["DAC_READ_SEARCH"]
        assert {volume["target"]: volume.get("read_only") for volume in services["filebeat"]["volumes"]} == {
            "/usr/share/filebeat/data": None, "/etc/appliance-filebeat": True, "/var/lib/docker/containers": True
        }  # fmt: skip
    ports = {name: [port["published"] for port in one.get("ports", ())] for name, one in services.items()}
    assert (ports["elasticsearch"], ports["logstash"], ports["elasticsearch-setup"]) == (["9200"], ["5044"], [])
    assert services["logstash"]["depends_on"] == {
        "elasticsearch-setup": {"condition": "service_completed_successfully"}
    }
    assert {"filebeat", "elasticsearch"}.isdisjoint(compose(monitored(), "gpu-03")["services"])


def test_what_needs_a_vendor_s_image_can_be_left_out_alone() -> None:
    """Of one vendor's product the others must not depend: each has a profile of its own."""
    services = compose(logged(), "gpu-03")["services"]
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    both = ["vendor", "elasticsearch"]
    assert profiles == {
        "filebeat": ["vendor", "filebeat"], "elasticsearch": both, "elasticsearch-setup": both, "logstash": both
    }  # fmt: skip
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            assert set(profiles.get(other, ())) <= set(profiles.get(name, ())), f"{name} waits for {other}"


def test_an_elasticsearch_gets_half_of_its_memory_as_heap() -> None:
    service = compose(logged_alone(logs={"driver": "elastic", "memory_gib": 4}), "demo")["services"]["elasticsearch"]
    assert service["deploy"]["resources"]["limits"]["memory"] == "4096m"
    assert service["environment"]["ES_JAVA_OPTS"].startswith("-Xms2048m -Xmx2048m ")


def test_no_secret_in_environment_or_labels() -> None:
    for service in compose(three_hosts(), "gpu-01")["services"].values():
        mark = service["labels"].pop(secret_marks.LABEL, "")
        assert re.fullmatch(r"(\$\{SECRET_[A-Z_]+:-\} ?)*", mark), "compose fills in a digest, from .env"
        words = " ".join([*service.get("environment", {}), *service["labels"]]).lower()
        assert not any(word in words for word in ("password", "token", "secret", "api_key"))


def test_the_hash_of_a_service_changes_with_what_it_mounts_and_with_nothing_else() -> None:
    def hashes(sources: Sources) -> dict[str, str]:
        return {name: s["labels"][HASH_LABEL] for name, s in compose(one_host(), "demo", sources)["services"].items()}

    changed = {**SOURCES.config, "nginx/nginx.conf.j2": SOURCES.config["nginx/nginx.conf.j2"] + "\n# changed\n"}
    before, after = hashes(SOURCES), hashes(Sources(SOURCES.compose, changed))
    assert {name for name in before if before[name] != after[name]} == {"gateway"}
    assert len(set(before.values())) == len(before), "never one release hash on all"


def test_dollars_are_doubled_once() -> None:
    templates = {**SOURCES.compose, "control.yaml.j2": 'services: {x: {image: "a$b${C}", labels: {}}}'}
    assert compose(one_host(), "demo", Sources(templates, SOURCES.config))["services"]["x"]["image"] == "a$$b$${C}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("services: {redis: {labels: {}}}", "services.redis is defined by two templates"),
        ("volumes: {redis-data: {driver: other}}", "volumes.redis-data is defined by two templates"),
        ("services: {x: {{ nothing }}}", "'nothing' is undefined"),
        ("services: [", "gives no YAML"),
        ("version: 3", "expected only services"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_wrong_template_is_told(template: str, message: str) -> None:
    templates = {**SOURCES.compose, "control.yaml.j2": template}
    with pytest.raises(RenderError, match=message):
        compose(one_host(), "demo", Sources(templates, SOURCES.config))


def test_every_scalar_of_a_template_passes_through_tojson() -> None:
    """`{{ value }}` without `|tojson` would let a value change the YAML around it; names of keys are the exception."""
    environment = jinja2.Environment(autoescape=True)
    for name, text in SOURCES.compose.items():
        for line in text.splitlines():
            tokens = [part.split("}}")[0] for part in line.split("{{")[1:]]
            for token in tokens:
                is_key = line.strip().startswith(("{{ name }}:", "{{ worker.", "{{ volume.name")) or "m." in token
                assert "tojson" in token or is_key, f"{name}: {line}"
        environment.parse(text)


def test_a_foreign_image_takes_the_place_of_our_webui() -> None:
    services = compose(three_hosts(webui={"engine": "a1111", "image": "studio/a1111:1"}), "gpu-01")["services"]
    foreign, agent = services["webui-1"], services["agent-1"]
    assert (foreign["image"], foreign["pull_policy"]) == ("studio/a1111:1", "missing")
    assert "--api " in foreign["environment"]["COMMANDLINE_ARGS"]
    assert foreign["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    assert {volume["read_only"] for volume in foreign["volumes"]} == {True}
    assert "secrets" not in foreign, "it has no business with the cluster's token"
    assert (foreign["cap_drop"], foreign["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert agent["environment"]["APPLIANCE_WEBUI_ENGINE"] == "a1111"
    assert agent["environment"]["APPLIANCE_WEBUI_URL"] == "http://webui-1:7860"
    assert ("ports" in foreign, agent["ports"][0]["published"]) == (False, "7861"), "the agent answers the controller"


def test_the_users_of_the_nodes_stand_in_a_file_of_the_hosts() -> None:
    rendered = compose(three_hosts(webui={"auth_file": "/etc/webui-users"}), "gpu-02")
    assert rendered["services"]["webui-1"]["secrets"] == ["cluster_token", "api_auth"]
    assert rendered["secrets"]["api_auth"] == {"file": "/etc/webui-users"}
    assert "api_auth" not in rendered["services"]["agent-1"]["secrets"]
    assert "api_auth" not in compose(three_hosts(), "gpu-02")["secrets"]


def test_a_foreign_url_needs_no_container_of_its_own() -> None:
    webui = {"engine": "a1111", "url": "http://{address}:1786{index}", "auth_file": "/etc/a1111-auth"}
    rendered = compose(three_hosts(webui=webui), "gpu-02")
    services = rendered["services"]
    assert not [name for name in services if name.startswith("webui")]
    assert services["agent-1"]["environment"]["APPLIANCE_WEBUI_URL"] == "http://192.168.1.11:17861"
    assert "a1111_auth" in services["agent-1"]["secrets"]
    assert rendered["secrets"]["a1111_auth"] == {"file": "/etc/a1111-auth"}
    single = compose(one_host(webui={"engine": "a1111", "url": "http://10.0.0.9:786{index}"}), "demo")["services"]
    assert json.loads(single["controller"]["environment"]["APPLIANCE_CONTROLLER_TARGETS"])["webui"][0] == {
        "name": "demo/0", "address": "agent-0:7860"
    }  # fmt: skip
