"""A key that is added while the api runs reaches its container, although Docker mounts the file by its inode."""

from __future__ import annotations

from pathlib import Path

import pytest
from testcontainers.core.container import DockerContainer

from generator.load import load
from generator.plan import plan
from generator.secrets import Store, lay_out
from generator.sources import ROOT

pytestmark = pytest.mark.docker
IDENTIFY = """\
import sys, pathlib
from starlette.datastructures import Headers
from appliance.api.auth import KeyRing
print(KeyRing(pathlib.Path("/run/secrets/api_keys")).identify(Headers({"x-api-key": sys.argv[1]})) is not None)
"""


def test_a_running_container_sees_the_new_key(images: str, tmp_path: Path) -> None:
    the_plan = plan(load(ROOT / "config/cluster.demo.yaml").cluster)
    store = Store(tmp_path / "store")
    store.create_missing(("localhost",), tls=False)
    lay_out(the_plan, tmp_path, store.read())
    mounted = tmp_path / the_plan.hosts[0].name / "secrets" / "api_keys"
    container = DockerContainer(f"animatediff-ha/services:{images}").with_volume_mapping(
        str(mounted), "/run/secrets/api_keys", "ro"
    )
    container.with_kwargs(entrypoint=["sleep"], network="none").with_command("120")
    with container:
        before = store.read()["api_key"]
        assert knows(container, before)
        store.rotate("api_key")
        lay_out(the_plan, tmp_path, store.read())
        after = store.read()["api_key"]
        assert after != before
        assert knows(container, after)
        assert not knows(container, before)


def knows(container: DockerContainer, key: bytes) -> bool:
    """As the api in this container would judge; the file is read in place, as its key ring does it every second."""
    code, said = container.get_wrapped_container().exec_run(["/opt/venv/bin/python", "-c", IDENTIFY, key.decode()])
    assert code == 0, said.decode()
    return said.decode().splitlines()[-1] == "True"
