"""`images build --push` against a real registry on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from generator.docker import Engine
from generator.ops.demo import free_port
from generator.sources import ROOT

pytestmark = pytest.mark.docker
START_SECONDS = 20.0


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """`127.0.0.1:PORT` of an empty registry; an engine takes plain HTTP from the loopback."""
    if shutil.which("docker-registry") is None:
        reason = "needs a registry: install the package docker-registry"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    address = f"127.0.0.1:{free_port(25_000)}"
    settings = tmp_path / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\nhttp: {{addr: {address}}}\n"
    )
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    try:
        _wait_for(server, address, tmp_path / "log")
        yield address
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"http://{address}/v2/", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the registry did not start:\n{log.read_text()}")
        time.sleep(0.1)


def test_what_was_pushed_can_be_pulled(registry: str, engine: Engine, images: str) -> None:
    command = [
        sys.executable,
        "-m",
        "generator",
        "images",
        "build",
        "--tag",
        images,
        "--push",
        f"{registry}/team",
        "redis",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    built = engine.image(f"animatediff-ha/redis:{images}")
    remote = f"{registry}/team/animatediff-ha/redis:{images}"
    engine.remove_image(remote)
    assert engine.image(remote) is None
    for _ in engine.pull(remote, first_line_within=30, timeout=120):
        pass
    try:
        pulled = engine.image(remote)
        assert built is not None
        assert pulled is not None
        assert pulled.id == built.id
    finally:
        _forget(engine, f"{registry}/team", images)


def test_a_registry_that_is_not_there_is_told(engine: Engine, images: str) -> None:
    command = [sys.executable, "-m", "generator", "images", "build", "--tag", images, "--push", "127.0.0.1:9", "redis"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert "127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
    _forget(engine, "127.0.0.1:9", images)


def _forget(engine: Engine, prefix: str, tag: str) -> None:
    for name in ("redis", "base"):
        if engine.image(f"{prefix}/animatediff-ha/{name}:{tag}"):
            engine.remove_image(f"{prefix}/animatediff-ha/{name}:{tag}")
