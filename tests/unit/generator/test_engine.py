from __future__ import annotations

import os
from pathlib import Path

import pytest

from generator.docker import Versions
from generator.errors import ToolError, UserError
from generator.ops import apt, engine
from generator.ops.engine import APT_PREFERENCES, APT_SOURCES, RunCommand, WriteFile, lacking, plan_install
from generator.progress import Mode, Progress

BOOKWORM = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}
TRIXIE = {"ID": "debian", "VERSION_ID": "13"}
JAMMY = {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "22.04"}

DEB822 = """\
# See sources.list(5)
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://mirror.example/debian
Suites: trixie
Components: main
"""
ONE_LINE = """\
# deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb [arch=amd64 signed-by=/etc/key.gpg] http://mirror.example/debian/ bookworm main non-free-firmware # ours
deb-src http://mirror.example/debian/ bookworm main
deb http://mirror.example/debian-security bookworm-security main
"""
UBUNTU = "deb http://archive.example/ubuntu jammy main restricted universe multiverse\n"


def commands(steps: list[engine.Step]) -> list[str]:
    return [step.shell() for step in steps if isinstance(step, RunCommand)]


def written(steps: list[engine.Step]) -> dict[Path, str]:
    return {step.path: step.content for step in steps if isinstance(step, WriteFile)}


def test_debian_12_takes_the_engine_and_nothing_else_from_the_next_release() -> None:
    steps = plan_install(BOOKWORM, apt.parse_deb822(DEB822))
    assert written(steps)[APT_SOURCES] == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    preferences = written(steps)[APT_PREFERENCES]
    assert "Package: *\nPin: release n=trixie\nPin-Priority: 100\n" in preferences
    assert "Package: *\nPin: release n=trixie-security\nPin-Priority: 100\n" in preferences
    assert "docker-buildx containerd\nPin: release n=trixie\nPin-Priority: 990\n" in preferences
    assert commands(steps) == [
        "apt-get update -o DPkg::Lock::Timeout=300",
        "apt-get install --yes --no-remove --no-install-recommends -o DPkg::Lock::Timeout=300 "
        "docker.io docker-cli docker-compose docker-buildx containerd runc iptables",
    ]


def test_the_old_format_keeps_its_key() -> None:
    content = written(plan_install(BOOKWORM, apt.parse_one_line(ONE_LINE)))[APT_SOURCES]
    assert "Signed-By: /etc/key.gpg" in content
    assert content.count("Signed-By") == 1


def test_a_suite_apt_already_has_is_not_added_again() -> None:
    sources = [
        *apt.parse_deb822(DEB822),
        apt.Source("http://mirror.example/debian", ("trixie",), ("main",)),
        apt.Source("http://mirror.example/debian-security", ("trixie-security",), ("main",)),
    ]
    assert set(written(plan_install(BOOKWORM, sources))) == {APT_PREFERENCES}


def test_newer_systems_use_their_own_packages() -> None:
    for release in (TRIXIE, {"ID": "debian"}):
        steps = plan_install(release, [])
        assert not written(steps)
        assert commands(steps)[1].endswith("docker.io docker-cli docker-compose docker-buildx")
    steps = plan_install(JAMMY, apt.parse_one_line(UBUNTU))
    assert commands(steps)[1].endswith("docker.io docker-compose-v2 docker-buildx")


@pytest.mark.parametrize(
    ("release", "sources", "hint"),
    [
        ({"ID": "fedora", "PRETTY_NAME": "Fedora 43"}, "", "Fedora 43: engines are installed on Debian 12"),
        ({"ID": "ubuntu", "VERSION_ID": "20.04"}, UBUNTU, "Ubuntu 22.04 and newer"),
        ({"ID": "debian", "VERSION_ID": "11"}, "", "Debian 12 and newer"),
        ({}, "", "this system"),
        (JAMMY, UBUNTU.replace("universe ", ""), "add-apt-repository universe"),
        (BOOKWORM, "", "name no mirror"),
    ],
)
def test_other_systems_are_told_what_to_do(release: dict[str, str], sources: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        plan_install(release, apt.parse_one_line(sources))


def test_the_vendors_engine_is_never_replaced() -> None:
    steps = plan_install(BOOKWORM, apt.parse_deb822(DEB822), {"compose"}, frozenset({"docker-ce"}))
    assert not written(steps)
    assert commands(steps)[1].endswith(
        "docker-ce docker-ce-cli containerd.io docker-compose-plugin docker-buildx-plugin"
    )


def test_nothing_missing_nothing_to_do() -> None:
    assert plan_install({"ID": "fedora"}, [], set()) == []


def test_what_is_too_old_or_missing() -> None:
    assert lacking(Versions((26, 1, 5), (2, 26, 1), (0, 13, 1))) == set()
    assert lacking(Versions((25, 0), (2, 20), (0, 10))) == set()
    assert lacking(Versions((20, 10, 24), None, (0, 9, 9))) == {"engine", "compose", "buildx"}
    assert lacking(Versions((26, 1, 5), (2, 9, 0), (0, 13, 1))) == {"compose"}


class Client:
    """Stands where the engine stands, with fixed answers."""

    def __init__(self, why_not: str | None, versions: Versions) -> None:
        self._why_not, self._versions = why_not, versions

    def why_not(self, timeout: float = 10.0) -> str | None:
        return self._why_not

    def versions(self) -> Versions:
        return self._versions


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Debian 12 on which nothing may be run."""

    def forbidden(*_args: object) -> None:
        raise AssertionError("must not act")

    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "os_release", lambda: BOOKWORM)
    monkeypatch.setattr(engine.apt, "read_sources", lambda **_: apt.parse_deb822(DEB822))
    monkeypatch.setattr(engine, "apply", forbidden)
    monkeypatch.setattr(engine, "start", forbidden)
    return monkeypatch


OLD = Versions((20, 10, 24), None, None)


def test_without_leave_the_commands_are_printed(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(engine, "Engine", lambda: Client(None, OLD))
    with pytest.raises(UserError) as caught:
        engine.ensure_engine(install=False, progress=Progress(Mode.QUIET))
    assert "engine 20.10.24, needs 25" in str(caught.value)
    assert "cat > /etc/apt/preferences.d/animatediff-ha-engine <<'EOF'" in str(caught.value)
    assert "docker-buildx containerd runc iptables" in str(caught.value)


def test_without_root_nothing_is_done(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(engine, "Engine", lambda: Client(None, OLD))
    machine.setattr(engine.os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="needs root"):
        engine.ensure_engine(install=True, progress=Progress(Mode.QUIET))


@pytest.mark.parametrize(
    ("why_not", "host", "hint"),
    [
        ("permission denied while trying to connect to the docker API", "", "join the `docker` group"),
        ("Cannot connect to the Docker daemon", "ssh://gpu-01", "DOCKER_HOST names another machine's engine"),
    ],
)
def test_what_an_installation_would_not_cure(machine: pytest.MonkeyPatch, why_not: str, host: str, hint: str) -> None:
    machine.setenv("DOCKER_HOST", host)
    machine.setattr(engine, "Engine", lambda: Client(why_not, Versions(None, None, None)))
    with pytest.raises(UserError, match=hint):
        engine.ensure_engine(install=True, progress=Progress(Mode.QUIET))


def test_a_stopped_engine_is_started_and_not_installed(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = Client("Cannot connect to the Docker daemon", Versions(None, None, None))

    def start(*_args: object) -> None:
        client._versions = Versions((26, 1, 5), (2, 26, 1), (0, 13, 1))

    done: list[list[engine.Step]] = []
    machine.setattr(engine, "Engine", lambda: client)
    machine.setattr(engine, "engine_is_installed", lambda: True)
    machine.setattr(engine, "LOCK_FILE", tmp_path / "lock")
    machine.setattr(engine.os, "geteuid", lambda: 0)
    machine.setattr(engine, "apply", lambda steps, _progress: done.append(steps))
    machine.setattr(engine, "start", start)
    assert engine.ensure_engine(install=False, progress=Progress(Mode.QUIET)) is client
    assert done == [[]]


@pytest.mark.parametrize(
    ("client", "daemon", "whole"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_half_an_installation_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: bool, daemon: bool, whole: bool
) -> None:
    """Broken off between its packages: starting what is there would never do."""
    monkeypatch.setattr(engine.shutil, "which", lambda _: "/usr/bin/docker" if client else None)
    monkeypatch.setattr(engine, "Path", lambda *_: tmp_path if daemon else tmp_path / "none")
    assert engine.engine_is_installed() is whole


def test_our_own_sources_do_not_count(tmp_path: Path) -> None:
    """Written in a first run that broke off, without a stanza that is wanted now: it is written anew, whole."""
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    ours = folder / APT_SOURCES.name
    (folder / "debian.sources").write_text(DEB822)
    ours.write_text(DEB822.replace("bookworm", "trixie").split("\n\n")[0])
    content = written(plan_install(BOOKWORM, apt.read_sources(tmp_path, without=ours)))[APT_SOURCES]
    assert {"Suites: trixie", "Suites: trixie-security"} <= set(content.splitlines())


def test_a_good_engine_is_left_alone(machine: pytest.MonkeyPatch) -> None:
    good = Client(None, Versions((26, 1, 5), (2, 26, 1), (0, 13, 1)))
    machine.setattr(engine, "Engine", lambda: good)
    assert engine.ensure_engine(install=True, progress=Progress(Mode.QUIET)) is good


def test_an_engine_that_does_not_come_up_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = tmp_path / "dockerd"
    daemon.write_text("#!/bin/sh\necho 'failed to start: no iptables'; exec sleep 30\n")
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(engine, "LOG_FILE", tmp_path / "log")
    real = engine.Path
    monkeypatch.setattr(
        engine, "Path", lambda *parts: real(tmp_path, "none") if "systemd" in parts[0] else real(*parts)
    )
    started: list[engine.subprocess.Popen[bytes]] = []
    popen = engine.subprocess.Popen
    monkeypatch.setattr(engine.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    never = Client("Cannot connect to the Docker daemon", OLD)
    try:
        with pytest.raises(ToolError, match="no iptables"):
            engine.start(never, Progress(Mode.QUIET), seconds=0.5)  # type: ignore[arg-type]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_apply_writes_and_runs_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "file"
    steps = [WriteFile(target, "text\n"), RunCommand(("cp", str(target), str(tmp_path / "copy")))]
    engine.apply(steps, Progress(Mode.PLAIN))
    assert (tmp_path / "copy").read_text() == "text\n"
    announced, done = capsys.readouterr().err.split(f"  cp {target} {tmp_path / 'copy'}\n")
    assert f"cat > {target}" in announced
    assert done.startswith("cp ")


def test_cloud_images_name_their_mirror_in_a_file(tmp_path: Path) -> None:
    listing = tmp_path / "debian.list"
    listing.write_text("# mirrors\nhttps://mirror.example/debian/\thint\n")
    assert apt.resolve_uri(f"mirror+file://{listing}") == "https://mirror.example/debian"
    assert apt.resolve_uri("mirror+file:///does/not/exist") == ""
    assert apt.resolve_uri("http://mirror.example/debian/") == "http://mirror.example/debian"


def test_both_formats_are_read_from_disk_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(UBUNTU)
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "a.list").write_text(ONE_LINE)
    (folder / "b.sources").write_text(DEB822)
    (folder / "c.sources.disabled").write_text(DEB822)
    assert [source.suites[0] for source in apt.read_sources(tmp_path)] == [
        "jammy",
        "bookworm",
        "bookworm-security",
        "bookworm",
        "bookworm-security",
    ]


def test_a_key_inside_the_source_is_kept_whole() -> None:
    text = (
        "Types: deb\nURIs: http://m\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    (source,) = apt.parse_deb822(text)
    assert apt.parse_deb822(source.deb822()) == [source]
    assert "\n mDMEY\n" in source.signed_by


OWN_NAME = Path("/proc/self/comm").read_text().strip()


@pytest.mark.parametrize(
    ("content", "name", "kept"),
    [
        (str(os.getpid()), OWN_NAME, True),
        (f"{os.getpid()}\n", OWN_NAME, True),
        (str(os.getpid()), "dockerd", False),
        ("999999999", "dockerd", False),
        ("", "dockerd", False),
        ("nonsense", "dockerd", False),
    ],
    ids=["runs", "runs, with a line end", "another has its number", "nobody has its number", "empty", "nonsense"],
)
def test_the_pid_file_of_a_killed_daemon_is_forgotten(tmp_path: Path, content: str, name: str, kept: bool) -> None:
    pid_file = tmp_path / "docker.pid"
    engine.forget_dead(pid_file, name)
    pid_file.write_text(content)
    engine.forget_dead(pid_file, name)
    assert pid_file.exists() is kept
