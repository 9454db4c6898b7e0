"""Which services docker compose itself makes anew once a secret has another content, and what they read then."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator import secret_marks
from generator.docker import Engine
from generator.keys import KeyRole
from generator.ops import cluster
from generator.plan import plan
from generator.progress import Mode, Progress
from generator.secrets import Store
from tests.unit.generator.clusters import one_host

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
PLAN = plan(one_host())
MOUNTS = {
    "redis": ("redis_users.acl",),
    "agent": (),
    "asked": ("redis_password", "api_keys"),
    "listed": ("api_keys",),
    "others": ("cluster_token",),
    "bare": (),
    "setup": ("redis_password",),
    "waiting": (),
}


class Site:
    """Containers of nothing but a shell, with the secrets and the marks of a rendered host."""

    def __init__(self, engine: Engine, tag: str, folder: Path) -> None:
        self.engine, self.folder, self.store = engine, folder / "out" / "demo", Store(folder / "secrets")
        self.store.create_missing(("localhost",), tls=False)
        self.lay_out()
        services = {name: _service(tag, mounted) for name, mounted in MOUNTS.items()}
        services["setup"] |= {"command": ["sh", "-c", "sha256sum < /run/secrets/redis_password"], "restart": "no"}
        services["setup"]["labels"][cluster.ONE_SHOT] = "true"
        services["waiting"]["depends_on"] = {"setup": {"condition": "service_completed_successfully"}}
        services["agent"]["depends_on"] = {"redis": {"condition": "service_started"}}
        files = {name: {"file": f"./secrets/{name}"} for mounted in MOUNTS.values() for name in mounted}
        self.project = f"test-marks-{os.getpid()}"
        compose = {"name": self.project, "services": services, "secrets": files}
        (self.folder / "compose.yaml").write_text(yaml.safe_dump(compose))

    def lay_out(self) -> None:
        self.store.lay_out(PLAN, self.folder.parent)

    def up(self) -> dict[str, str]:
        """Service → its container, after an `up` of ours."""
        (place,) = cluster.places(PLAN, self.folder.parent)
        place = replace(place, project=self.project)
        cluster.up([place], Progress(Mode.QUIET))
        return self.containers()

    def containers(self) -> dict[str, str]:
        lines = self.engine.compose_json(self.folder, "ps", "--all", "--format", "json").splitlines()
        return {one["Service"]: one["ID"] for one in map(json.loads, lines)}

    def read(self, service: str, name: str) -> bytes:
        return self.engine.compose_json(self.folder, "exec", "-T", service, "cat", f"/run/secrets/{name}").encode()


def _service(tag: str, mounted: tuple[str, ...]) -> dict[str, Any]:
    mark = secret_marks.label(mounted)
    labels: dict[str, str] = {secret_marks.LABEL: mark} if mark else {}
    base = {
        "image": f"animatediff-ha/base:{tag}",
        "command": ["sleep", "infinity"],
        "init": True,
        "network_mode": "none",
    }
    return {**base, "labels": labels, "secrets": list(mounted), "stop_grace_period": "1s"}


@pytest.fixture
def site(engine: Engine, images: str, tmp_path: Path) -> Iterator[Site]:
    made = Site(engine, images, tmp_path)
    try:
        yield made
    finally:
        engine.compose(made.folder, "down", "--timeout", "1")


def test_a_replaced_secret_reaches_who_mounts_it_and_nobody_else_is_made_anew(site: Site) -> None:
    before = site.up()
    assert site.up() == before, "nothing has changed"
    site.store.rotate("redis_password")
    site.store.add_api_key("ada", KeyRole.USER)
    for _ in range(2):  # whatever else lays them out before the next `up`, or broke one off
        site.lay_out()
    after = site.up()
    anew = {name for name in before if before[name] != after[name]}
    # It waits for `setup`: compose up to 2.26, for one, makes it anew with that.
    assert anew - {"waiting"} == {"asked", "redis", "setup"}
    assert site.read("asked", "redis_password") == site.store.read()["redis_password"]
    assert b"ada" in site.read("listed", "api_keys")
    assert site.up() == after


def test_compose_alone_does_the_same_from_the_folder(site: Site) -> None:
    before = site.up()
    site.store.rotate("redis_password")
    site.lay_out()
    site.engine.compose(site.folder, "up", "--detach")
    after = site.containers()
    anew = {name for name in before if before[name] != after[name]}
    assert anew - {"agent", "waiting"} == {"asked", "redis", "setup"}
    assert site.read("asked", "redis_password") == site.store.read()["redis_password"]
