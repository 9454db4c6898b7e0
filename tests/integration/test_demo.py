"""The README's first command, as a newcomer runs it: a real diffusion pipeline, a killed worker, a playable video."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from generator.docker import Engine
from generator.ops.demo import with_free_port
from generator.sources import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
PROJECT = "adha-test-demo"
"""Not the default: the newcomer's own demo may still be running."""


def generator(*words: str, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "generator", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def folder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    for leftover in engine.containers(PROJECT):
        engine.remove(leftover.id)
    for volume in engine.volumes(PROJECT):
        engine.run("volume", "rm", volume)
    made = tmp_path_factory.mktemp("demo") / "demo"
    yield made
    generator("demo", "down", "--dir", str(made))
    assert engine.containers(PROJECT) == []


def demo(folder: Path) -> tuple[dict[str, Any], float]:
    begin = time.monotonic()
    result = generator("demo", "--json", "--name", PROJECT, "--dir", str(folder))
    assert result.returncode == 0, result.stderr[-5000:]
    for line in result.stderr.splitlines():
        json.loads(line)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer, time.monotonic() - begin


def test_the_demo_ends_with_a_playable_video_twice(folder: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # taken already, which does as well
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        first, seconds = demo(folder)
    assert first["url"] != "http://127.0.0.1:8080", "a port that is taken is not used"
    print(f"\ndemo: {seconds:.0f} s, recovery {first['recovery']['seconds']} s")
    again, seconds = demo(folder)
    print(f"demo again: {seconds:.0f} s, recovery {again['recovery']['seconds']} s")
    assert again["url"] == first["url"], "a demo that runs keeps its address"
    assert again["job"] != first["job"]
    for result in (first, again):
        assert result["recovery"]["taken_over_by"] != result["recovery"]["killed"]
        with av.open(result["video"]) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == 16
        assert {frame.shape for frame in frames} == {(128, 128, 3)}
        assert all((one != other).any() for one, other in pairwise(frames)), "it moves"
    assert os.stat(folder / "secrets/api_key").st_mode & 0o777 == 0o600


def test_a_second_demo_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    result = generator("demo", "--name", PROJECT, "--dir", str(tmp_path / "other"))
    assert result.returncode == 1
    assert f"demo down --dir {folder}" in result.stderr


def test_another_demos_down_leaves_this_one_alone(folder: Path, tmp_path: Path, engine: Engine) -> None:
    """Its folder still says that what runs under this name is its own."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    before = [one.id for one in engine.containers(PROJECT)]
    result = generator("demo", "down", "--dir", str(other))
    assert (result.returncode, str(folder) in result.stderr) == (0, True), result.stderr
    assert not other.exists()
    assert [one.id for one in engine.containers(PROJECT)] == before


def test_a_clusters_volumes_are_not_taken_for_the_demos(engine: Engine, tmp_path: Path) -> None:
    """One that is down for a while has no containers, but its queue and its jobs."""
    name = f"{PROJECT}-volumes"
    volume = engine.run("volume", "create", "--label", f"com.docker.compose.project={name}", f"{name}_jobs").strip()
    try:
        result = generator("demo", "--name", name, "--dir", str(tmp_path / "demo"))
        assert (result.returncode, volume in result.stderr) == (1, True), result.stderr
        assert volume in engine.volumes(name)
    finally:
        engine.run("volume", "rm", volume)


def test_status_is_well_and_says_so_to_programs(folder: Path) -> None:
    end = time.monotonic() + 60  # the demo ends while the worker that it killed is still coming back
    while True:
        result = generator("status", str(folder / "cluster.yaml"), "--out", str(folder / "rendered"), "--json")
        if result.returncode == 0:
            break
        assert time.monotonic() < end, result.stdout
        time.sleep(1)
    status = json.loads(result.stdout)
    assert status["well"] is True
    assert {worker["engine"] for worker in status["cluster"]["workers"]} == {"diffusers-cpu"}


def test_status_of_a_sick_cluster_is_2(folder: Path, engine: Engine) -> None:
    gateway = next(one for one in engine.containers(PROJECT) if one.service == "controller")
    engine.stop(gateway.id)
    try:
        result = generator("status", str(folder / "cluster.yaml"), "--out", str(folder / "rendered"), "--json")
        assert result.returncode == 2
        stopped = [one for one in json.loads(result.stdout)["services"] if one["service"] == "controller"]
        assert stopped[0]["state"] == "exited"
    finally:
        engine.start(gateway.id)


def test_a_free_port_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert with_free_port(f"gateway:\n  http_port: {port}   # x\n") != f"gateway:\n  http_port: {port}   # x\n"
    assert with_free_port("gateway: {}\n") == "gateway: {}\n"
