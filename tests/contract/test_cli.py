"""The command line as a person or a script meets it: messages, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = (ROOT / "config/cluster.demo.yaml").read_text()


MERE_MORTAL = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""Takes from root the right to pass over permission bits."""


def generator(*words: str, cwd: Path | None = None, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [*prefix, sys.executable, "-m", "generator", *words]
    return subprocess.run(
        command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


BAD_INPUT = {
    "empty file": (b"", "empty"),
    "syntax error": (b"name: [\nhosts: {}\n", "cluster.yaml:"),
    "tabs": (b"name: x\nhosts:\n\tdemo: {}\n", "cluster.yaml:3: "),
    "duplicate keys": (DEMO.encode() + b"\nname: again\n", "name"),
    "wrong types": (DEMO.replace("cpu_workers: 3", "cpu_workers: [three]").encode(), "hosts.demo.cpu_workers"),
    "unknown key": (DEMO.replace("cpu_workers: 3", "cpu_worker: 3").encode(), 'did you mean "cpu_workers"'),
    "10 MB": (b"name: " + b"x" * 10_000_000, "4 MiB"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    content, said = BAD_INPUT[case]
    file, out = tmp_path / "cluster.yaml", tmp_path / "out"
    file.write_bytes(content)
    result = generator("render", str(file), "--out", str(out))
    assert result.returncode == 1, result.stderr
    assert said in result.stderr
    assert "cluster.yaml" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    result = generator("render", str(tmp_path / "nothing.yaml"))
    assert (result.returncode, "nothing.yaml" in result.stderr) == (1, True)


@pytest.mark.parametrize("denied", ["file", "folder"])
def test_no_permission_to_read_or_write(tmp_path: Path, denied: str) -> None:
    file, folder = tmp_path / "cluster.yaml", tmp_path / "folder"
    file.write_text(DEMO)
    folder.mkdir()
    if denied == "file":
        file.chmod(0o000)
    else:
        folder.chmod(0o555)
    result = generator("render", str(file), "--out", str(folder / "out"), prefix=MERE_MORTAL)
    assert result.returncode == 1, result.stderr
    assert "permission" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A real file system of 200 KiB: the first render fits, a larger one does not."""
    out, file = tmp_path / "out", tmp_path / "cluster.yaml"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(out)], check=True)
    try:
        file.write_text(DEMO)
        assert generator("render", str(file), "--out", str(out)).returncode == 0
        before = _content(out)
        file.write_text(DEMO.replace("cpu_workers: 3", "cpu_workers: 64"))
        result = generator("render", str(file), "--out", str(out))
        assert result.returncode == 1, result.stderr
        assert "No space left on device" in result.stderr
        assert _content(out) == before
    finally:
        subprocess.run(["umount", str(out)], check=True)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_init_to_a_rendered_folder(tmp_path: Path) -> None:
    assert generator("init", cwd=tmp_path).returncode == 0
    assert generator("init", cwd=tmp_path).returncode == 1, "a file that exists is not replaced"
    check = generator("check", cwd=tmp_path)
    assert (check.returncode, "3 hosts, 6 workers: no problem" in check.stdout) == (0, True)
    before = generator("diff", "--json", cwd=tmp_path)
    assert before.returncode == 2
    assert {change["kind"] for change in json.loads(before.stdout)} == {"added"}
    assert generator("render", cwd=tmp_path).returncode == 0
    assert generator("diff", cwd=tmp_path).returncode == 0
    (tmp_path / "rendered/gpu-01/compose.yaml").write_text("changed by hand")
    drift = generator("diff", cwd=tmp_path)
    assert (drift.returncode, "-changed by hand" in drift.stdout) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to the containers' user takes root")
def test_secrets_are_made_once_laid_out_and_rotated(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(DEMO)
    assert generator("render", cwd=tmp_path).returncode == 0
    made = generator("secrets", cwd=tmp_path)
    assert (made.returncode, "redis_password" in made.stdout) == (0, True)
    laid_out = tmp_path / "rendered/demo/secrets"
    before = {path.name: path.read_bytes() for path in laid_out.iterdir()}
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in laid_out.iterdir()} == {(10001, 0o600)}
    assert "all secrets exist" in generator("secrets", cwd=tmp_path).stdout
    rotated = generator("secrets", "rotate", "redis_password", cwd=tmp_path)
    assert (rotated.returncode, "--recreate" in rotated.stdout) == (0, True)
    after = {path.name: path.read_bytes() for path in laid_out.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"redis_password", "redis_users.acl"}
    assert generator("secrets", "rotate", "nonsense", cwd=tmp_path).returncode == 1
    assert not any(value.decode() in made.stdout + rotated.stdout for value in (*before.values(), *after.values()))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(DEMO.replace("http_port: 8080", "http_port: 80800").replace("driver: local", "driver: disk"))
    result = generator("check", str(file))
    assert result.returncode == 1
    assert "gateway.http_port" in result.stderr
    assert "storage.driver" in result.stderr


@pytest.mark.parametrize("words", [["nonsense"], ["render", "--nonsense"], ["images", "nonsense"]])
def test_wrong_words_are_the_users_error(words: list[str]) -> None:
    result = generator(*words)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)


@pytest.mark.parametrize("words", [[], ["images"], ["demo"], ["render"], ["secrets"], ["doctor"], ["up"]])
def test_help_teaches(words: list[str]) -> None:
    result = generator(*words, "--help")
    assert (result.returncode, "Usage:" in result.stdout) == (0, True)
