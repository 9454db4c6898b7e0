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
    """A real file system: the first render fits, a larger one does not."""
    out, file = tmp_path / "out", tmp_path / "cluster.yaml"
    out.mkdir()
    file.write_text(DEMO)
    assert generator("render", str(file), "--out", str(tmp_path / "elsewhere")).returncode == 0
    pages = sum(1 + path.stat().st_size // 4096 for path in (tmp_path / "elsewhere").rglob("*"))
    size = f"size={4 * pages + 64}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(out)], check=True)
    try:
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


def test_a_host_that_is_taken_out_is_told_how_to_stay_out(tmp_path: Path) -> None:
    """Its unit would bring the containers back at the next boot, and its folder has keys in it."""
    for name in ("demo", "other"):
        text = DEMO.replace("\n  demo:\n", f"\n  {name}:\n")
        (tmp_path / "cluster.yaml").write_text(text)
        told = generator("render", cwd=tmp_path)
        assert told.returncode == 0
    assert "\n  other:\n" in text
    unit = "animatediff-ha-animatediff-demo-demo.service"
    assert (
        "host demo is no longer in cluster.yaml, but what runs on it goes on, also after a reboot: end it there with "
        f"`docker compose --project-name animatediff-demo down; systemctl disable {unit}; "
        f"rm -f /etc/systemd/system/{unit}; rm -rf /opt/animatediff-ha/animatediff-demo/demo`"
    ) in " ".join(told.stderr.split())


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
    assert (rotated.returncode, "`python -m generator up`" in rotated.stdout) == (0, True)
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


@pytest.mark.parametrize(
    "words", [[], ["images"], ["demo"], ["render"], ["secrets"], ["doctor"], ["up"], ["models"], ["models", "pull"]]
)
def test_help_teaches(words: list[str]) -> None:
    result = generator(*words, "--help")
    assert (result.returncode, "Usage:" in result.stdout) == (0, True)


def test_what_is_rendered_can_be_read_by_the_containers_whatever_the_umask(tmp_path: Path) -> None:
    file, out = tmp_path / "cluster.yaml", tmp_path / "out"
    file.write_text(DEMO)

    def modes() -> set[tuple[bool, int]]:
        config = out / "demo/config"
        return {(path.is_dir(), path.stat().st_mode & 0o777) for path in (config, *config.rglob("*"))}

    umask = os.umask(0o077)
    try:
        assert generator("render", str(file), "--out", str(out)).returncode == 0
        assert modes() == {(True, 0o755), (False, 0o644)}
        (out / "demo/config/nginx/nginx.conf").chmod(0o600)
        assert generator("render", str(file), "--out", str(out)).returncode == 0
        assert modes() == {(True, 0o755), (False, 0o644)}, "a closed file is opened again"
    finally:
        os.umask(umask)


def test_a_path_with_brackets_is_no_markup_and_stays_on_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "[" / f"x] {'long' * 40}"
    folder.mkdir(parents=True)
    (folder / "cluster.yaml").write_text(DEMO)
    result = generator("check", str(folder / "cluster.yaml"))
    assert (result.returncode, result.stdout) == (0, f"{folder}/cluster.yaml: 1 hosts, 3 workers: no problem\n")


@pytest.mark.parametrize("words", [["diff", "--json"], ["diff"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "generator", *words, str(ROOT / "config/cluster.demo.yaml"), "--out", "nothing"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert (result.returncode in (0, 1, 2), result.stderr) == (True, b"")


@pytest.mark.parametrize(
    "words", [["demo", "--dir", "other", "down"], ["secrets", "--file", "other", "rotate", "api_key"]]
)
def test_an_option_before_the_command_is_not_lost(tmp_path: Path, words: list[str]) -> None:
    """It would be ignored: the default demo removed instead of the named one, the wrong cluster's secret replaced."""
    result = generator(*words, cwd=tmp_path)
    assert (result.returncode, "options go behind the command" in result.stderr) == (1, True)


def test_demo_keeps_off_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("precious")
    for words in (["demo", "down", "--dir", "."], ["demo", "--no-install", "--dir", "."]):
        result = generator(*words, cwd=tmp_path)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("cluster.yaml", "precious")]


@pytest.mark.parametrize("folder", ["file", "file/demo"])
def test_demo_in_the_place_of_a_file_is_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    result = generator("demo", "--no-install", "--dir", folder, cwd=tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own takes root")
def test_an_address_that_may_be_bound_need_not_be_local() -> None:
    """Gateways with keepalived commonly have this setting; taken for local, one host would run the others' folders."""
    script = """
import pathlib, subprocess
pathlib.Path("/proc/sys/net/ipv4/ip_nonlocal_bind").write_text("1")
for words in ("link set lo up", "link add d0 type veth", "address add 192.168.1.10/24 dev d0", "link set d0 up"):
    subprocess.run(["ip", *words.split()], check=True)
from generator.ops.cluster import is_local
print([is_local(address) for address in ("192.168.1.10", "192.168.1.11", "8.8.8.8", "127.0.0.2")])
"""
    command = ["unshare", "--net", sys.executable, "-c", script]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.stdout == "[True, False, False, True]\n", told.stderr


def test_keys_are_made_listed_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(DEMO)
    early = generator("keys", "add", "ada", cwd=tmp_path)
    assert (early.returncode, "python -m generator secrets" in early.stderr) == (1, True)
    for words in (["render"], ["secrets"]):
        assert generator(*words, cwd=tmp_path).returncode == 0
    made = generator("keys", "add", "ada", "--role", "operator", "--json", cwd=tmp_path)
    key = json.loads(made.stdout)
    assert (made.returncode, key["name"], key["role"], len(key["key"])) == (0, "ada", "operator", 43)
    plain = generator("keys", "add", "bob", cwd=tmp_path)
    assert len(plain.stdout.strip()) == 43, "nothing but the key: it may go into a file"
    twice = generator("keys", "add", "ada", cwd=tmp_path)
    assert (twice.returncode, twice.stdout, "there is a key" in twice.stderr) == (1, "", True)
    listed = json.loads(generator("keys", "list", "--json", cwd=tmp_path).stdout)
    assert [(one["name"], one["role"]) for one in listed] == [("ada", "operator"), ("bob", "user")]
    mounted = tmp_path / "rendered/demo/secrets/api_keys"
    assert [line.split(":")[0] for line in mounted.read_text().splitlines()] == ["operator", "ada", "bob"]
    assert generator("keys", "revoke", "ada", cwd=tmp_path).returncode == 0
    assert [line.split(":")[0] for line in mounted.read_text().splitlines()] == ["operator", "bob"]
    gone = generator("keys", "revoke", "ada", cwd=tmp_path)
    assert (gone.returncode, "keys: bob" in gone.stderr) == (1, True)
