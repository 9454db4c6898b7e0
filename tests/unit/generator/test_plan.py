from __future__ import annotations

import json

import pytest

from generator.plan import plan
from tests.unit.generator.clusters import gpu, one_host, three_hosts


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
    asked = three_hosts(gateway={"vip": "192.168.1.100"}, logs={"driver": "elastic"})
    assert [notice.split(" ")[0] for notice in plan(asked).notices] == ["gateway.vip", "logs.driver"]
    assert plan(three_hosts()).notices == ()


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
