from __future__ import annotations

import pytest

from generator.plan import plan
from tests.unit.generator.clusters import logged, logged_alone, monitored


def test_every_host_ships_to_whoever_keeps() -> None:
    hosts = plan(logged()).hosts
    assert [host.shipper and host.shipper.logstashes for host in hosts] == [("192.168.1.12:5044",)] * 3
    assert [host.shipper and host.shipper.host for host in hosts] == ["gpu-01", "gpu-02", "gpu-03"]
    assert [host.log_store is not None for host in hosts] == [False, False, True]


def test_the_certificate_of_who_keeps_is_watched() -> None:
    """Those of Filebeats are made anew with it, by the same `up`."""
    metrics = plan(logged()).hosts[0].metrics
    assert metrics is not None
    assert "192.168.1.12:9200" in [target.address for target in metrics.targets.certificates]
    bare = plan(monitored()).hosts[0].metrics
    assert bare is not None
    assert not [target for target in bare.targets.certificates if target.address.endswith(":9200")]


def test_two_that_keep_are_told_to_every_host() -> None:
    hosts = logged().model_dump(mode="json")["hosts"]
    hosts["gpu-01"]["roles"].append("logs")
    the_plan = plan(logged(hosts=hosts))
    assert {host.shipper.logstashes for host in the_plan.hosts if host.shipper} == {
        ("192.168.1.10:5044", "192.168.1.12:5044")
    }


def test_a_single_host_ships_by_service_name() -> None:
    (host,) = plan(logged_alone()).hosts
    assert host.shipper is not None
    assert host.shipper.logstashes == ("logstash:5044",)


def test_without_the_driver_nobody_ships() -> None:
    assert not any(host.shipper or host.log_store for host in plan(monitored()).hosts)


@pytest.mark.parametrize(
    ("images", "version", "expected"),
    [
        ("elastic", "9.2.1", "elastic/logstash:9.2.1"),
        ("registry.example.net:5000/mirror", "9.3.0", "registry.example.net:5000/mirror/logstash:9.3.0"),
        ("", "mine", "logstash:mine"),
    ],
)
def test_the_images_are_of_one_version(images: str, version: str, expected: str) -> None:
    (host,) = plan(logged_alone(logs={"driver": "elastic", "images": images, "version": version})).hosts
    assert host.vendor_images["elasticsearch"]["logstash"] == expected
    assert list(host.vendor_images) == ["filebeat", "elasticsearch"]
    names = {name for group in host.vendor_images.values() for name in group}
    assert names == {"filebeat", "elasticsearch", "logstash"}


def test_half_of_the_memory_is_heap() -> None:
    (host,) = plan(logged_alone(logs={"driver": "elastic", "memory_gib": 4})).hosts
    assert host.log_store is not None
    assert (host.log_store.limits.memory, host.log_store.heap_mib) == ("4096m", 2048)
