"""Building for real: base and services, twice."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from generator.docker import Engine
from generator.errors import ToolError
from generator.ops.images import BuildsFailed, build_images
from generator.progress import Mode, Progress

ROOT = Path(__file__).resolve().parents[2]
TAG = "test-images"

pytestmark = pytest.mark.docker


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    yield TAG
    for name in ("services", "redis", "acme", "webui-synthetic", "base"):
        with suppress(ToolError):
            engine.remove_image(f"animatediff-ha/{name}:{TAG}")


def test_the_second_run_builds_nothing_and_the_image_is_locked_down(engine: Engine, tag: str, tmp_path: Path) -> None:
    # A copy: an edit in the checkout between the two builds would be a good reason for the second.
    for name in ("base", "services", "sdapi"):
        shutil.copytree(ROOT / "images" / name, tmp_path / "images" / name)

    def build() -> list[bool]:
        results = build_images(engine, tmp_path, tag=tag, only=["services"], progress=Progress(Mode.QUIET))
        assert [result.name for result in results] == ["base", "services"]
        return [result.built for result in results]

    build()
    started = time.monotonic()
    assert build() == [False, False]
    # Not a benchmark: a build that happened all the same takes several times as long.
    assert time.monotonic() - started < 10
    limits = ["--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"]
    ref = f"animatediff-ha/services:{tag}"
    code = "import appliance, os; print(appliance.__file__, os.getuid(), os.getgid())"
    said = engine.run("run", *limits, "--entrypoint=/opt/venv/bin/python", ref, "-c", code)
    assert said.split() == ["/opt/appliance/appliance/__init__.py", "10001", "10001"]
    # Nothing of the building machine stays inside.
    leftovers = "ls /run/secrets /root/.cache /build /var/lib/apt/lists/* 2>/dev/null | wc -l"
    assert engine.run("run", *limits, "--entrypoint=/bin/sh", ref, "-c", leftovers).strip() == "0"


def test_a_checkout_that_is_closed_to_others_makes_images_that_run(engine: Engine, tag: str, tmp_path: Path) -> None:
    """As under a umask of 077: what runs in the containers is another user than the one who cloned."""
    for name in ("base", "services", "sdapi", "acme", "webui"):
        shutil.copytree(ROOT / "images" / name, tmp_path / "images" / name)
    for code in ("services/appliance", "sdapi/sdapi", "acme/keeper", "webui/webui"):
        folder = tmp_path / "images" / code
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
    code_of = {"services": "appliance.job, sdapi.answers", "acme": "keeper.__main__", "webui-synthetic": "webui.serve"}
    build_images(engine, tmp_path, tag=tag, only=list(code_of), progress=Progress(Mode.QUIET))
    for name, modules in code_of.items():
        python = "/usr/bin/python3" if name == "acme" else "/opt/venv/bin/python"
        words = ["--rm", "--network=none", f"--entrypoint={python}", f"animatediff-ha/{name}:{tag}"]
        engine.run("run", *words, "-c", f"import {modules}")


def test_a_failing_build_tells_its_last_lines(engine: Engine, tag: str, tmp_path: Path) -> None:
    for name in ("base", "redis"):
        (tmp_path / "images" / name).mkdir(parents=True)
    base = (ROOT / "images" / "base" / "Dockerfile").read_text()
    (tmp_path / "images" / "base" / "Dockerfile").write_text(base)
    (tmp_path / "images" / "base" / ".dockerignore").write_text((ROOT / "images/base/.dockerignore").read_text())
    broken = "ARG BASE\nFROM ${BASE}\nRUN echo about to fail && exit 7\n"
    (tmp_path / "images" / "redis" / "Dockerfile").write_text(broken)
    with pytest.raises(BuildsFailed, match=r"image redis: docker buildx build[^\n]*(\n.*)*about to fail"):
        build_images(engine, tmp_path, tag=tag, only=["redis"], progress=Progress(Mode.QUIET))
    assert engine.image(f"animatediff-ha/redis:{tag}") is None
