from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, cast

import pytest

from generator.docker import Engine, Image
from generator.errors import ToolError, UserError
from generator.ops import apt, base_image
from generator.ops.base_image import ensure_base, image_sources
from generator.progress import Mode, Progress

MACHINE = [
    apt.Source("http://mirror.example/debian/", ("bookworm", "bookworm-updates"), ("main",)),
    apt.Source("http://mirror.example/debian-security", ("bookworm-security",), ("main",)),
]
UBUNTU = [
    apt.Source("http://archive.example/ubuntu", ("noble",), ("main", "universe")),
    apt.Source("http://security.example/ubuntu", ("noble-security",), ("main",)),
]


def test_the_mirror_is_the_machines_own() -> None:
    main, security = image_sources("trixie", MACHINE, None)
    assert (main.uri, main.suites) == ("http://mirror.example/debian", ("trixie", "trixie-updates"))
    assert (security.uri, security.suites) == ("http://mirror.example/debian-security", ("trixie-security",))


def test_a_mirror_given_by_name_wins() -> None:
    main, security = image_sources("trixie", UBUNTU, "http://other.example/debian/")
    assert (main.uri, security.uri) == ("http://other.example/debian", "http://other.example/debian-security")


def test_an_ubuntu_machine_has_to_be_told() -> None:
    with pytest.raises(UserError, match="--mirror URL or APT_MIRROR"):
        image_sources("trixie", UBUNTU, None)


@pytest.mark.parametrize("place", ["main", "security", "mirror"])
@pytest.mark.parametrize("login", ["ci:s3cret", "token", "a:b@c", "ci:"])
def test_a_mirror_s_login_gets_into_no_image(place: str, login: str) -> None:
    def uri(name: str, path: str) -> str:
        return f"https://{login}@mirror.example/{path}" if place == name else f"https://mirror.example/{path}"

    machine = [
        apt.Source(uri("main", "debian"), ("bookworm",), ("main",)),
        apt.Source(uri("security", "debian-security"), ("bookworm-security",), ("main",)),
    ]
    with pytest.raises(UserError, match=r"the Debian mirror at mirror\.example is written with a login") as told:
        image_sources("trixie", machine, uri("mirror", "debian") if place == "mirror" else None)
    assert login not in str(told.value)
    assert "--mirror URL" in str(told.value)


def test_commands() -> None:
    root = Path("/r")
    argv = base_image.debootstrap_argv("no-such-suite", root, "http://m")
    assert argv[0] == "debootstrap"
    # An old debootstrap falls back to the script all Debian suites share.
    assert argv[-4:] == ["no-such-suite", "/r", "http://m", "/usr/share/debootstrap/scripts/sid"]
    assert base_image.tar_argv(root) == [
        *["tar", "--create", "--numeric-owner", "--one-file-system"],
        *["--exclude=./dev", "--exclude=./proc", "--exclude=./sys", "--directory", "/r", "."],
    ]


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def test_slim_takes_out_what_no_container_reads(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    gone = ("var/lib/apt/lists/mirror_Packages", "usr/share/doc/bash/README", "usr/share/man/man1/ls.1", "etc/hostname")
    kept = ("usr/share/doc/bash/copyright", "etc/passwd", "var/lib/dpkg/status")
    make(root, *gone, *kept)
    make(outside, "precious")
    (root / "usr/share/doc/linked").symlink_to(outside)
    (root / "usr/share/doc/bash-too").symlink_to("bash")
    base_image.slim(root)
    assert [name for name in gone if (root / name).exists()] == []
    assert [name for name in kept if not (root / name).exists()] == []
    assert (outside / "precious").exists()


def test_files_inside(tmp_path: Path) -> None:
    make(tmp_path, "etc/apt/sources.list")
    base_image.write_files(tmp_path, base_image.files_to_write(image_sources("trixie", MACHINE, None)))
    assert not (tmp_path / "etc/apt/sources.list").exists()
    written = apt.read_sources(tmp_path / "etc/apt")
    assert written == list(image_sources("trixie", MACHINE, None))
    assert "copyright" in (tmp_path / "etc/dpkg/dpkg.cfg.d/90slim").read_text()


class Registry:
    """Stands where the engine stands."""

    def __init__(self, *, answers: bool, images: tuple[str, ...] = ()) -> None:
        self.answers = answers
        self.images = dict.fromkeys(images, "there before")
        self.bytes_read = b""

    def image(self, ref: str) -> Image | None:
        return Image(self.images[ref], {}, 1, "amd64") if ref in self.images else None

    def pull(self, ref: str, *, first_line_within: float, timeout: float) -> list[str]:
        assert first_line_within <= 10
        if not self.answers:
            raise ToolError(["docker", "pull", ref], 1, "no such host")
        self.images[ref] = "pulled"
        return ["Pulling from library/debian"]

    def tag(self, ref: str, new: str) -> None:
        self.images[new] = self.images[ref]

    def import_image(self, tar: IO[bytes], *, changes: list[str]) -> str:
        self.bytes_read = tar.read()
        self.images["imported"] = "imported"
        return "imported"

    def remove_image(self, ref: str) -> None:
        del self.images[ref]


@pytest.fixture
def bootstrapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Mirrors that a bootstrap was asked for."""
    mirrors: list[str] = []
    monkeypatch.delenv("APT_MIRROR", raising=False)
    monkeypatch.setattr(apt, "read_sources", lambda: MACHINE)
    monkeypatch.setattr(base_image, "_bootstrap", lambda *args: mirrors.append(args[3][0].uri))
    return mirrors


def ensure(registry: Registry, **options: object) -> str:
    return ensure_base(cast(Engine, registry), "trixie", progress=Progress(Mode.QUIET), **options)  # type: ignore[arg-type]


def test_what_is_there_is_used(bootstrapped: list[str]) -> None:
    registry = Registry(answers=True, images=("animatediff-ha/base-raw:trixie",))
    assert ensure(registry) == "animatediff-ha/base-raw:trixie"
    assert registry.images == {"animatediff-ha/base-raw:trixie": "there before"}
    ensure(registry, refresh=True)
    assert registry.images["animatediff-ha/base-raw:trixie"] == "pulled"
    assert bootstrapped == []


def test_without_a_registry_it_is_bootstrapped(bootstrapped: list[str]) -> None:
    ensure(Registry(answers=False))
    assert bootstrapped == ["http://mirror.example/debian"]


@pytest.mark.parametrize("by_option", [True, False])
def test_a_named_mirror_is_used_even_if_a_registry_answers(
    bootstrapped: list[str], monkeypatch: pytest.MonkeyPatch, by_option: bool
) -> None:
    if not by_option:
        monkeypatch.setenv("APT_MIRROR", "http://other.example/debian")
    ensure(Registry(answers=True), mirror="http://other.example/debian" if by_option else None)
    assert bootstrapped == ["http://other.example/debian"]


def test_a_tar_that_fails_leaves_no_image(tmp_path: Path) -> None:
    registry = Registry(answers=False)
    with pytest.raises(ToolError, match="tar"):
        base_image._import(cast(Engine, registry), tmp_path / "missing", "animatediff-ha/base-raw:trixie")
    assert registry.images == {}
    make(tmp_path, "etc/passwd")
    base_image._import(cast(Engine, registry), tmp_path, "animatediff-ha/base-raw:trixie")
    assert b"./etc/passwd" in registry.bytes_read
    assert registry.images["animatediff-ha/base-raw:trixie"] == "imported"


def _interrupted(dead: Path) -> None:
    with base_image._work_folder() as folder:
        assert not dead.exists()
        (folder / "root").mkdir()
        assert stat.S_IMODE((folder / "root").stat().st_mode) == 0o755
        raise KeyboardInterrupt


def test_the_work_folder_goes_away_and_so_does_a_dead_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    dead, alive = tmp_path / "animatediff-ha-base-4194399-x", tmp_path / f"animatediff-ha-base-{os.getppid()}-x"
    dead.mkdir()
    alive.mkdir()
    before = os.umask(0o077)
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(dead)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [alive]


def test_without_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_image.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(apt, "read_sources", lambda: MACHINE)
    monkeypatch.delenv("APT_MIRROR", raising=False)
    with pytest.raises(UserError, match="needs root"):
        ensure(Registry(answers=False))
