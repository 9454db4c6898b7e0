from __future__ import annotations

import json

import pytest

from generator.model import LETS_ENCRYPT
from generator.plan import TLS_FOLDER, plan
from generator.planned import AcmePlan, CertificatePlan
from tests.unit.generator.clusters import cluster, gpu, one_host, three_hosts, with_dashboards


def test_every_gpu_is_its_own_pair() -> None:
    host = plan(three_hosts()).by_name["gpu-02"]
    assert [(w.webui, w.agent, w.worker, w.gpu_uuid, w.port) for w in host.workers] == [
        ("webui-0", "agent-0", "gpu-02/0", gpu(20)["uuid"], 7860),
        ("webui-1", "agent-1", "gpu-02/1", gpu(21)["uuid"], 7861),
    ]


def test_one_host_publishes_nothing_and_speaks_by_service_name() -> None:
    the_plan = plan(one_host())
    host = the_plan.hosts[0]
    assert host.publish == ""
    assert host.redis_environment == {"APPLIANCE_REDIS_ADDRESS": "redis:6379"}
    assert host.gateway is not None
    assert json.loads(host.gateway.controller_targets) == {
        "api": [{"name": "demo", "address": "api:8000"}],
        "webui": [{"name": "demo/0", "address": "webui-0:7860"}, {"name": "demo/1", "address": "webui-1:7860"}],
    }
    assert the_plan.cluster.redis_replicas == 0


def test_three_hosts_replicate_the_queue_and_ask_sentinels() -> None:
    the_plan = plan(three_hosts())
    queues = [host.queue for host in the_plan.hosts if host.queue]
    assert [queue.master_address for queue in queues] == ["", "192.168.1.10", "192.168.1.10"]
    assert {queue.quorum for queue in queues} == {2}
    assert {queue.min_replicas for queue in queues} == {1}
    assert the_plan.cluster.redis_replicas == 1
    sentinels = "192.168.1.10:26379,192.168.1.11:26379,192.168.1.12:26379"
    assert all(host.redis_environment["APPLIANCE_SENTINELS"] == sentinels for host in the_plan.hosts)


def test_gateways_reach_workers_of_other_hosts_by_address() -> None:
    the_plan = plan(three_hosts())
    gateway = the_plan.by_name["gpu-01"].gateway
    assert gateway is not None
    targets = json.loads(gateway.controller_targets)
    assert {"name": "gpu-03/1", "address": "192.168.1.12:7861"} in targets["webui"]
    assert [target["name"] for target in targets["api"]] == ["gpu-01", "gpu-02"]
    assert the_plan.by_name["gpu-03"].gateway is None


PRICE = {"usd_per_hour": 1.5, "market": "spot", "as_of": "2026-01-15"}


def test_a_hosts_own_price_counts_before_those_of_its_gpus() -> None:
    cost = {"gpu_prices": [{"model": "A10G", **PRICE}], "host_prices": [{"host": "gpu-02", **PRICE}]}
    the_plan = plan(three_hosts(cost=cost))
    exporters = [host.exporter for host in the_plan.hosts if host.exporter]
    assert [json.loads(exporter.prices) for exporter in exporters] == [
        {"gpus": {"A10G": PRICE}},
        {"host": PRICE},
        {"gpus": {"A10G": PRICE}},
    ]


def test_without_prices_there_is_no_table() -> None:
    assert [host.exporter.prices for host in plan(three_hosts()).hosts if host.exporter] == [""] * 3
    host_prices = [{"host": "demo", **PRICE}]
    exporter = plan(one_host(cost={"host_prices": host_prices})).hosts[0].exporter
    assert exporter is not None
    assert json.loads(exporter.prices) == {"host": PRICE}


def test_one_host_alone_asks_aws() -> None:
    the_plan = plan(three_hosts(cost={"aws_credentials": "/etc/aws"}))
    assert [host.exporter.aws_credentials for host in the_plan.hosts if host.exporter] == ["/etc/aws", "", ""]


def test_a_host_of_monitoring_alone_has_no_exporter() -> None:
    hosts = {
        "gpu-01": {
            "address": "192.168.1.1",
            "roles": ["gateway", "control", "queue", "worker"],
            "gpus": [gpu(1)],
        },
        "watch": {"address": "192.168.1.2", "roles": ["metrics"]},
    }
    the_plan = plan(cluster(hosts=hosts, cost={"aws_credentials": "/etc/aws"}))
    first, second = the_plan.hosts
    assert second.exporter is None
    assert first.exporter is not None
    assert first.exporter.aws_credentials == "/etc/aws"


def certificate_of(**tls: str) -> CertificatePlan | None:
    gateway = plan(three_hosts(gateway={"server_name": "video.example.net", "tls": tls})).by_name["gpu-02"].gateway
    assert gateway is not None
    return gateway.certificate


def test_certificates_are_mounted_as_folders() -> None:
    assert certificate_of(mode="none") is None
    own = certificate_of(mode="self-signed")
    assert own == CertificatePlan("/etc/nginx/tls/tls.crt", "/etc/nginx/tls/tls.key", (("./secrets/tls", TLS_FOLDER),))
    together = certificate_of(mode="files", certificate="/etc/video/a.crt", key="/etc/video/a.key")
    assert together == CertificatePlan("/etc/nginx/tls/a.crt", "/etc/nginx/tls/a.key", (("/etc/video", TLS_FOLDER),))
    apart = certificate_of(mode="files", certificate="/etc/video/a.crt", key="/etc/keys/a.key")
    assert apart == CertificatePlan(
        "/etc/nginx/tls/a.crt",
        "/etc/nginx/tls-key/a.key",
        (("/etc/video", TLS_FOLDER), ("/etc/keys", f"{TLS_FOLDER}-key")),
    )


def test_acme_asks_for_the_name_and_knows_the_other_gateways() -> None:
    made = certificate_of(mode="acme", email="admin@example.net")
    assert made is not None
    assert made.folders == ()
    assert made.acme == AcmePlan(LETS_ENCRYPT, "admin@example.net", "video.example.net", ("192.168.1.10:80",))
    shared = plan(three_hosts(gateway={"server_name": "video.example.net", "tls": {"mode": "acme"}})).cluster
    assert shared.images["acme"] == "animatediff-ha/acme:0.1.0"
    assert "acme" not in plan(three_hosts()).cluster.images


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("", "animatediff-ha/webui-cuda:0.1.0"),
        ("registry.lan:5000/team", "registry.lan:5000/team/animatediff-ha/webui-cuda:0.1.0"),
    ],
)
def test_image_names(registry: str, expected: str) -> None:
    shared = plan(three_hosts(images={"registry": registry})).cluster
    assert shared.images["webui"] == expected
    assert shared.images_from_registry is bool(registry)


def test_storage_drivers() -> None:
    assert [v.options for v in plan(one_host()).cluster.volumes] == [{}, {}]
    cephfs = plan(three_hosts()).cluster
    assert cephfs.volumes[0].options == {"type": "none", "o": "bind", "device": "/mnt/ceph/jobs"}
    assert not cephfs.create_storage, "an unmounted Ceph folder must not be filled by mistake"
    nfs = three_hosts().model_copy(
        update={"storage": one_host(storage={"driver": "nfs", "nfs": {"server": "nas", "export": "/x"}}).storage}
    )
    assert plan(nfs).cluster.volumes[1].options["device"] == ":/x/models"


def test_what_is_not_rendered_is_told() -> None:
    asked = with_dashboards(monitoring={"grafana_image": None})
    assert [notice.split(" ")[1] for notice in plan(asked).notices] == ["dashboards:"]
    assert plan(with_dashboards()).notices == ()


def test_every_gateway_host_may_hold_the_virtual_address() -> None:
    the_plan = plan(three_hosts(gateway={"vip": "192.168.1.100", "http_port": 8080}))
    first, second, third = (host.vip for host in the_plan.hosts)
    assert third is None, "no gateway"
    assert first is not None
    assert second is not None
    assert (first.address, first.own, first.peers) == ("192.168.1.100", "192.168.1.10", ("192.168.1.11",))
    assert (second.own, second.peers, second.port, second.interface) == ("192.168.1.11", ("192.168.1.10",), 8080, "")
    assert first.priority > second.priority
    assert first.router_id == second.router_id
    assert the_plan.addresses == ("192.168.1.100",)
    assert the_plan.cluster.images["keepalived"] == "animatediff-ha/keepalived:0.1.0"


def test_virtual_addresses_of_one_network_have_router_ids_of_their_own() -> None:
    def router_id(vip: str, **vrrp: int) -> int:
        found = plan(three_hosts(gateway={"vip": vip, "vrrp": vrrp})).hosts[0].vip
        assert found is not None
        return found.router_id

    made = [router_id(f"192.168.1.{last}") for last in range(1, 255)]
    assert len(set(made)) == len(made)
    assert min(made) >= 1
    assert max(made) <= 255
    assert router_id("192.168.1.100", router_id=51) == 51


def test_an_outside_load_balancer_needs_no_keepalived() -> None:
    for gateway in ({"vip": "203.0.113.7", "vrrp": {"mode": "none"}}, {}):
        the_plan = plan(three_hosts(gateway=gateway))
        assert [host.vip for host in the_plan.hosts] == [None, None, None]
        assert "keepalived" not in the_plan.cluster.images
        assert the_plan.addresses == (("203.0.113.7",) if gateway else ()), "the certificate names it all the same"


@pytest.mark.parametrize(
    ("gateway", "seconds"),
    [
        ({"vip": "192.168.1.100"}, 1.5),
        ({"vip": "203.0.113.7", "vrrp": {"mode": "none"}}, 15.0),
        ({}, 15.0),
    ],
)
def test_a_gateway_leaves_when_the_others_have_taken_over(gateway: dict[str, object], seconds: float) -> None:
    host = plan(three_hosts(gateway=gateway)).hosts[0]
    assert host.gateway is not None
    assert host.gateway.leave_seconds == seconds


def test_the_only_gateway_leaves_at_once() -> None:
    host = plan(one_host()).hosts[0]
    assert host.gateway is not None
    assert host.gateway.leave_seconds == 0


def test_many_gateways_still_have_a_priority_that_vrrp_allows() -> None:
    hosts: dict[str, object] = {f"gw-{n}": {"address": f"10.0.0.{n}", "roles": ["gateway"]} for n in range(1, 100)}
    hosts["node"] = {"address": "10.0.0.150", "roles": ["control", "queue", "worker"], "cpu_workers": 1}
    found = [host.vip.priority for host in plan(cluster(hosts=hosts, gateway={"vip": "10.0.0.200"})).hosts if host.vip]
    assert (len(found), max(found), min(found)) == (99, 250, 1)


def test_demo_models_are_made_only_when_asked_for() -> None:
    assert not plan(one_host()).cluster.make_demo_models
    models = {
        "checkpoint": "tiny",
        "motion_module": "tiny",
        "available": [
            {"name": "tiny", "kind": "checkpoint", "source": "demo"},
            {"name": "tiny", "kind": "motion_module", "source": "demo"},
        ],
    }
    assert plan(one_host(models=models)).cluster.make_demo_models
    assert not plan(one_host(models=models, images={"webui": "synthetic"})).cluster.make_demo_models


def test_only_the_api_learns_what_each_user_weighs() -> None:
    weighted = one_host(queue={"user_weights": {"batch": 0.5, "ada": 2.0}, "max_pixel_frames": 4096})
    environment = plan(weighted).cluster.api_environment
    assert environment == {"APPLIANCE_MAX_PIXEL_FRAMES": "4096", "APPLIANCE_USER_WEIGHTS": '{"ada":2.0,"batch":0.5}'}
    assert "APPLIANCE_USER_WEIGHTS" not in plan(one_host()).cluster.api_environment
