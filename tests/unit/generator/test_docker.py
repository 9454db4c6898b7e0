"""The engine's argument lists and parsers, with a stand-in `docker` on PATH that prints what it was given."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from generator import processes
from generator.docker import Engine, Image, parse_container, parse_version
from generator.errors import ToolError, Unhealthy


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "docker"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("26.1.5+dfsg1\n", (26, 1, 5)),
        ("github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3", (0, 13, 1)),
        ("github.com/docker/buildx v0.23.0 28c90ea", (0, 23, 0)),
        ("v2.40.3-desktop.1", (2, 40, 3)),
        ("2.26.1-4", (2, 26, 1)),
        ("", None),
        ("dev", None),
    ],
)
def test_versions_as_they_are_printed(text: str, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


def test_the_host_goes_before_the_command() -> None:
    assert Engine().argv("ps") == ["docker", "ps"]
    assert Engine("ssh://root@gpu-01").argv("ps") == ["docker", "--host", "ssh://root@gpu-01", "ps"]


def test_compose_runs_in_the_project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, 'echo "$PWD: $@"', monkeypatch)
    project = tmp_path / "gpu-01"
    project.mkdir()
    seen: list[str] = []
    output = Engine("unix:///x.sock").compose(project, "up", "--detach", on_line=seen.append)
    assert output == f"{project}: --host unix:///x.sock compose up --detach"
    assert seen == [output]


def test_builds_use_the_builder_that_sees_local_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, '[ "$1" = context ] && echo rootless || echo "$@"', monkeypatch)
    assert list(Engine().build(["."])) == ["buildx build --builder rootless --progress=plain ."]
    remote = list(Engine("ssh://a").build(["."]))
    assert remote == ["--host ssh://a buildx build --builder default --progress=plain ."]


def test_a_failure_carries_argv_status_and_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "echo out; echo 'no space left on device' >&2; exit 17", monkeypatch)
    with pytest.raises(ToolError) as caught:
        Engine().run("load")
    assert caught.value.argv == ("docker", "load")
    assert caught.value.returncode == 17
    assert caught.value.stderr_tail == "no space left on device"
    assert "free disk space" in str(caught.value)
    with pytest.raises(ToolError, match="exit status 17") as streamed:
        list(Engine().stream("build"))
    assert streamed.value.stderr_tail == "out\nno space left on device"


def test_a_missing_image_is_none_and_a_broken_engine_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "echo 'Error response from daemon: No such image: a:b' >&2; exit 1", monkeypatch)
    assert Engine().image("a:b") is None
    stand_in(tmp_path, "echo 'Cannot connect to the Docker daemon' >&2; exit 1", monkeypatch)
    with pytest.raises(ToolError, match="doctor --install"):
        Engine().image("a:b")


def test_an_image_is_read_from_inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"Id": "sha256:1", "Config": {"Labels": None}, "Size": 5, "Architecture": "amd64"}]
    stand_in(tmp_path, f"echo '{json.dumps(found)}'", monkeypatch)
    assert Engine().image("a:b") == Image("sha256:1", {}, 5, "amd64")


def test_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "echo 26.1.5", monkeypatch)
    assert Engine().why_not() is None
    # A client without an engine: it prints an empty line and the reason.
    stand_in(tmp_path, "echo; echo 'Cannot connect to the Docker daemon at unix:///x' >&2; exit 1", monkeypatch)
    assert Engine().why_not() == "Cannot connect to the Docker daemon at unix:///x"
    stand_in(tmp_path, "exec sleep 5", monkeypatch)
    assert Engine().why_not(timeout=0.1) == "the engine did not answer within 0 s"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert Engine().why_not() == "there is no `docker` command on this machine"


def test_leaving_a_stream_stops_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    lines = processes.stream(["sh", "-c", f"echo $$ > {pid_file}; echo one; exec sleep 60"])
    assert next(lines) == "one"
    lines.close()  # type: ignore[attr-defined]
    assert not Path("/proc", pid_file.read_text().strip()).exists()


def test_a_stream_has_a_deadline_and_one_for_its_first_line() -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match="did not finish in time"):
        list(processes.stream(["sh", "-c", "echo one; exec sleep 60"], timeout=0.2))
    with pytest.raises(ToolError, match="did not finish in time"):
        list(processes.stream(["sleep", "60"], first_line_within=0.2, timeout=60))
    assert list(processes.stream(["sh", "-c", "echo one; sleep 0.4; echo two"], first_line_within=0.3)) == [
        "one",
        "two",
    ]
    assert time.monotonic() - started < 10


def test_a_container_is_read_from_inspect() -> None:
    container = parse_container(
        {
            "Id": "abc",
            "Name": "/demo-webui-0-1",
            "RestartCount": 2,
            "Config": {"Image": "webui:1", "Labels": {"com.docker.compose.service": "webui-0"}},
            "State": {
                "Status": "running",
                "Pid": 77,
                "ExitCode": 0,
                "OOMKilled": False,
                "Health": {"Status": "healthy"},
            },
            "NetworkSettings": {"Networks": {"demo_default": {"IPAddress": "10.0.0.2"}}},
        }
    )
    assert (container.name, container.service, container.state, container.health) == (
        "demo-webui-0-1",
        "webui-0",
        "running",
        "healthy",
    )
    assert (container.pid, container.restarts, container.networks) == (77, 2, {"demo_default": "10.0.0.2"})


@pytest.mark.parametrize("pid", [77, 0])
def test_a_container_that_does_not_run_has_no_process_to_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int
) -> None:
    """0 would be the caller's own process group."""
    state = {"Status": "running" if pid else "restarting", "Pid": pid, "ExitCode": 137, "OOMKilled": False}
    facts = [{"Id": "abc", "Name": "/x", "RestartCount": 0, "Config": {"Image": "x", "Labels": {}}, "State": state}]
    stand_in(tmp_path, f"echo '{json.dumps(facts)}'", monkeypatch)
    if pid:
        assert Engine().host_pid("x") == pid
    else:
        with pytest.raises(Unhealthy, match="not running"):
            Engine().host_pid("x")
