"""The rendered folders as the real tools see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator import tree
from generator.docker import Engine
from generator.load import load
from generator.model import Cluster
from generator.ops import cluster
from generator.plan import plan
from generator.progress import Mode, Progress
from generator.render import render
from generator.secrets import Store, lay_out, logs_names, monitoring_names, redis_names
from generator.sources import ROOT, read_sources
from tests.unit.generator.clusters import logged, logged_alone, one_host, three_hosts, with_dashboards

pytestmark = pytest.mark.docker


@pytest.mark.parametrize(("file", "hosts"), [("cluster.example.yaml", 3), ("cluster.demo.yaml", 1)])
def test_compose_accepts_every_rendered_folder(engine: Engine, tmp_path: Path, file: str, hosts: int) -> None:
    the_plan = plan(load(ROOT / "config" / file).cluster)
    tree.write(tmp_path, render(the_plan, read_sources()))
    store = Store(tmp_path / "store")
    store.create_missing(
        ("localhost",),
        tls=True,
        redis=redis_names(the_plan),
        monitoring=monitoring_names(the_plan),
        logs=logs_names(the_plan),
    )
    lay_out(the_plan, tmp_path, store.read())
    folders = sorted(path.parent for path in tmp_path.glob("*/compose.yaml"))
    assert len(folders) == hosts
    for folder in folders:
        assert engine.compose(folder, "config", "-q") == ""


@pytest.mark.parametrize(
    "tls",
    [{"mode": "acme"}, {"mode": "files", "certificate": "/etc/video/a.crt", "key": "/etc/keys/a.key"}],
    ids=["acme", "files"],
)
def test_compose_accepts_every_way_to_a_certificate(engine: Engine, tmp_path: Path, tls: dict[str, str]) -> None:
    one = three_hosts(gateway={"server_name": "video.example.net", "tls": tls})
    tree.write(tmp_path, render(plan(one), read_sources()))
    for host in ("gpu-01", "gpu-02"):
        assert engine.compose(tmp_path / host, "config", "-q") == ""


@pytest.mark.parametrize(
    "webui",
    [
        {"engine": "a1111", "image": "studio/a1111:1"},
        {"engine": "a1111", "url": "http://{address}:1786{index}", "auth_file": "/etc/a1111-auth"},
    ],
    ids=["image", "url"],
)
def test_compose_accepts_a_foreign_a1111(engine: Engine, tmp_path: Path, webui: dict[str, str]) -> None:
    for one in (three_hosts(webui=webui), one_host(webui=webui)):
        tree.write(tmp_path / one.name / str(len(one.hosts)), render(plan(one), read_sources()))
    folders = [path.parent for path in tmp_path.glob("*/*/*/compose.yaml")]
    assert len(folders) == 4
    for folder in folders:
        assert engine.compose(folder, "config", "-q") == ""


@pytest.mark.parametrize("one", [logged(), logged_alone()], ids=["three hosts", "one host"])
def test_compose_accepts_hosts_that_ship_and_keep_lines(engine: Engine, tmp_path: Path, one: Cluster) -> None:
    tree.write(tmp_path, render(plan(one), read_sources()))
    for name, host in plan(one).by_name.items():
        without = engine.compose(tmp_path / name, "config", "--services").split()
        alone = engine.compose(tmp_path / name, "--profile", "filebeat", "config", "--services").split()
        every = engine.compose(tmp_path / name, "--profile", "vendor", "config", "--services").split()
        kept = {"elasticsearch", "elasticsearch-setup", "logstash"} if host.log_store else set()
        assert set(alone) - set(without) == {"filebeat"}
        assert set(every) - set(alone) == kept


def test_compose_accepts_a_host_with_grafana(engine: Engine, tmp_path: Path) -> None:
    tree.write(tmp_path, render(plan(with_dashboards()), read_sources()))
    assert "grafana" not in engine.compose(tmp_path / "gpu-02", "config", "--services")
    assert "grafana" in engine.compose(tmp_path / "gpu-02", "--profile", "vendor", "config", "--services")


@pytest.mark.parametrize(
    ("image", "there"), [("animatediff-ha/there-is-no-such-image:0", False), ("animatediff-ha/gateway:{tag}", True)]
)
def test_a_vendor_s_image_that_cannot_be_had_is_left_out(
    engine: Engine, images: str, tmp_path: Path, image: str, there: bool
) -> None:
    """By what docker compose really answers; the gateway's image stands in for one that is there."""
    roles = ["gateway", "control", "queue", "worker", "metrics", "dashboards"]
    host = {"address": "127.0.0.1", "roles": roles, "cpu_workers": 1}
    settings = {"grafana_image": image.format(tag=images)}
    the_plan = plan(one_host(name="adha-vendor", hosts={"demo": host}, monitoring=settings, images={"webui": "cpu"}))
    tree.write(tmp_path, render(the_plan, read_sources()))
    store = Store(tmp_path / "store")
    store.create_missing(("localhost",), tls=False)
    lay_out(the_plan, tmp_path, store.read())
    (place,) = cluster.places(the_plan, tmp_path)
    try:
        fetched = cluster._fetch_vendor_images(place, Progress(Mode.QUIET), lambda _: None)
        assert fetched == ([cluster.VENDOR_PROFILE] if there else [])
        assert [one.service for one in engine.containers("adha-vendor")] == (["grafana"] if there else [])
    finally:
        engine.compose(place.folder, "--profile", "vendor", "down", "--volumes")
