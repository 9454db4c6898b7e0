from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from generator import tree
from generator.cli import app
from generator.errors import UserError
from generator.load import load
from generator.plan import plan
from generator.render import render
from generator.sources import ROOT, read_sources
from generator.tree import Kind

ONE = {"a": {"compose.yaml": b"1", "config/nginx/nginx.conf": b"x"}}


def write(out: Path, trees: dict[str, dict[str, bytes]]) -> list[tuple[str, str]]:
    return [(change.kind.value, change.path) for change in tree.write(out, trees.items())]


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def test_write_then_nothing_to_do(tmp_path: Path) -> None:
    assert write(tmp_path, ONE) == [("added", "a/compose.yaml"), ("added", "a/config/nginx/nginx.conf")]
    assert content(tmp_path) == {"a/compose.yaml": b"1", "a/config/nginx/nginx.conf": b"x"}
    assert write(tmp_path, ONE) == []
    assert len(list((tmp_path / tree.HISTORY).iterdir())) == 1


def test_diff_reads_only(tmp_path: Path) -> None:
    write(tmp_path, ONE)
    changes = tree.diff(tmp_path, {"a": {"compose.yaml": b"2\n"}}.items())
    assert [(change.kind, change.path) for change in changes] == [
        (Kind.CHANGED, "a/compose.yaml"),
        (Kind.REMOVED, "a/config/nginx/nginx.conf"),
    ]
    assert list(changes[0].lines())[2:] == ["@@ -1 +1 @@", "-1", "+2"]
    assert content(tmp_path)["a/compose.yaml"] == b"1"


def test_stale_files_and_hosts_are_pruned_and_the_persons_own_are_kept(tmp_path: Path) -> None:
    write(tmp_path, {**ONE, "b": {"compose.yaml": b"1"}})
    for kept in ("a/compose.override.yaml", "a/secrets/token", "a/notes.txt", "b/secrets/token", "c/compose.yaml"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).write_bytes(b"mine")
    assert write(tmp_path, {"a": {"compose.yaml": b"1"}}) == [
        ("removed", "a/config/nginx/nginx.conf"),
        ("removed", "b/compose.yaml"),
    ]
    assert content(tmp_path) == {
        "a/compose.yaml": b"1",
        **dict.fromkeys(("a/compose.override.yaml", "a/secrets/token", "a/notes.txt"), b"mine"),
        **dict.fromkeys(("b/secrets/token", "c/compose.yaml"), b"mine"),
    }
    assert not (tmp_path / "a/config").exists()


def test_hosts_that_are_gone_are_named(tmp_path: Path) -> None:
    write(tmp_path, {**ONE, "b": {"compose.yaml": b"1"}})
    changes = tree.write(tmp_path, {"a": {"compose.yaml": b"2"}}.items())
    assert tree.hosts_gone(changes) == ["b"]


def test_the_last_five_renders_are_kept(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path, {"a": {"compose.yaml": str(number).encode()}})
    kept = sorted((tmp_path / tree.HISTORY).iterdir())
    assert [(path.name, (path / "a/compose.yaml").read_bytes()) for path in kept] == [
        (f"{n + 1:06d}", str(n).encode()) for n in (3, 4, 5, 6, 7)
    ]


def test_an_error_while_rendering_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, ONE)

    def broken() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield "a", {"compose.yaml": b"new"}
        raise RuntimeError("template")

    with pytest.raises(RuntimeError):
        tree.write(tmp_path, broken())
    assert content(tmp_path) == {"a/compose.yaml": b"1", "a/config/nginx/nginx.conf": b"x"}
    assert not list(tmp_path.rglob(f"*{tree._TEMPORARY}"))


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two files does not fit, first while staging, then while writing beside its place."""
    write(tmp_path, ONE)
    real = tree._write_synced
    for fails_at in (2, 3, 4):
        count = 0

        def full(path: Path, data: bytes) -> None:
            nonlocal count
            count += 1
            if count == fails_at:  # noqa: B023
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data[: len(data) // 2])
                raise OSError(28, "No space left on device", str(path))
            real(path, data)

        monkeypatch.setattr(tree, "_write_synced", full)
        with pytest.raises(UserError, match="No space left"):
            write(tmp_path, {"a": {"compose.yaml": b"longer", "new/file": b"new content"}})
        assert content(tmp_path) == {"a/compose.yaml": b"1", "a/config/nginx/nginx.conf": b"x"}
        assert not list(tmp_path.rglob(f"*{tree._TEMPORARY}"))
        assert not (tmp_path / "a/new").exists()


@pytest.mark.parametrize("moment", ["_write_beside", "_remember", "_put_in_place"])
def test_killed_half_way_the_next_render_puts_it_right(tmp_path: Path, moment: str) -> None:
    """A real kill -9 just before each step; every file left is whole, and rendering again converges."""
    write(tmp_path, ONE)
    script = f"""
import os, signal
from pathlib import Path
from generator import tree
tree.{moment} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
tree.write(Path({str(tmp_path)!r}), {{"a": {{"compose.yaml": b"2", "other": b"y"}}}}.items())
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL
    whole = {"a/compose.yaml": b"1", "a/config/nginx/nginx.conf": b"x"}
    assert {k: v for k, v in content(tmp_path).items() if not k.endswith(tree._TEMPORARY)} == whole
    write(tmp_path, {"a": {"compose.yaml": b"3"}})
    assert content(tmp_path) == {"a/compose.yaml": b"3"}


def test_two_renders_at_once(tmp_path: Path) -> None:
    with tree._locked(tmp_path), pytest.raises(UserError, match="another render"):
        write(tmp_path, ONE)


def test_obstacles_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="in the way"):
        write(tmp_path, ONE)
    if os.geteuid() == 0:
        with pytest.raises(UserError, match=r"/proc/.*"):
            write(Path("/proc/rendered"), ONE)


def test_only_one_command_works_on_a_cluster_and_the_others_are_told_who(tmp_path: Path) -> None:
    with tree.alone(tmp_path, "upgrade"):
        told = rf"`upgrade` \(process {os.getpid()}\) is at work on this cluster; wait for it to end"
        with pytest.raises(UserError, match=told), tree.alone(tmp_path, "up"):
            pytest.fail("both are at work")
        write(tmp_path, ONE)  # which is what an upgrade does meanwhile
    with tree.alone(tmp_path, "up"):
        pass


def test_who_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from generator import tree
with tree.alone(Path({str(tmp_path)!r}), "upgrade"):
    print("there", flush=True)
    time.sleep(60)
"""
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=rf"process {other.pid}\)"), tree.alone(tmp_path, "up"):
            pytest.fail("both are at work")
        other.kill()
    with tree.alone(tmp_path, "up"):
        pass


def test_alone_over_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been rendered"), tree.alone(tmp_path / "out", "up"):
        pytest.fail("there is nothing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["render"], ["up"], ["down"], ["restore", "a.tar"], ["upgrade", "--image", "9.9"]])
def test_commands_that_change_what_runs_work_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Even two that would do the same: each would go on from what the other has not yet done."""
    file, out = ROOT / "config/cluster.demo.yaml", tmp_path / "out"
    named = ["--file"] if words[0] in ("upgrade", "restore") else []
    tree.write(out, render(plan(load(file).cluster), read_sources()))
    for name in ("tree.write", "ops.cluster.up", "ops.boot.remove", "ops.backup.restore", "cli_upgrade._prepare"):
        monkeypatch.setattr(f"generator.{name}", lambda *_, **__: pytest.fail("both are at work"))
    with tree.alone(out, words[0]):
        result = CliRunner().invoke(app, [*words, "--out", str(out), *named, str(file)])
    assert isinstance(result.exception, UserError), result.output
    assert "is at work on this cluster" in str(result.exception)


def test_to_work_alone_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`down` may be what a full disk is waiting for. Then the other command only lacks a name."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("generator.tree.os.write", full)
        with tree.alone(tmp_path, "down"):
            disk.undo()
            with pytest.raises(UserError, match="another command is at work"), tree.alone(tmp_path, "up"):
                pass


ALONE_OR_NOT = """
import os, sys
from pathlib import Path
from generator import tree
from generator.errors import UserError
os.setuid(65534)
try:
    with tree.alone(Path(sys.argv[1]), "down"):
        print("alone")
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
@pytest.mark.parametrize("was_at_work", [False, True])
def test_another_user_may_work_alone(was_at_work: bool) -> None:
    """Who renders is often not who ends it; and one that may only read is kept off all the same."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        out = Path(name)
        out.chmod(0o755)

        def other() -> str:
            argv = [sys.executable, "-c", ALONE_OR_NOT, name]
            return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout

        if was_at_work:
            with tree.alone(out, "up"):
                assert "`up`" in other()
        assert other() == "alone\n"
