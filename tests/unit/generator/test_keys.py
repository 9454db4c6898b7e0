from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from generator import keys
from generator.errors import ToolError, UserError
from generator.keys import ApiKey, KeyRole
from generator.ops import cluster
from generator.plan import plan
from generator.progress import Mode, Progress
from generator.secrets import Store, for_host, lay_out
from tests.unit.generator.clusters import one_host, three_hosts
from tests.unit.generator.test_secrets import UID, store

DIGEST = "0" * 64
ADA = ApiKey("ada", KeyRole.USER, DIGEST, "2026-11-24")


def test_a_list_is_read_as_it_was_written() -> None:
    listed = (ADA, ApiKey("root", KeyRole.OPERATOR, "f" * 64))
    assert keys.text_of(listed) == f"ada:user:{DIGEST}  # made 2026-11-24\nroot:operator:{'f' * 64}\n"
    assert keys.parse(keys.text_of(listed)) == listed
    assert keys.parse("\n# nobody yet\n") == ()


def test_a_line_that_is_none_is_told_with_its_number() -> None:
    with pytest.raises(UserError, match=r"api_keys:2: .*\napi_keys:3: "):
        keys.parse(f"{ADA.line}ada:admin:{DIGEST}\nada:user:12\n", "api_keys")


@pytest.mark.parametrize("name", ["", "a b", "../ada", ".ada", "a:b", "a\n", "ä", "a" * 65, "operator"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UserError):
        keys.with_added((), ApiKey(name, KeyRole.USER, DIGEST))


def test_nobody_gets_two_and_nobody_loses_one_he_has_not() -> None:
    with pytest.raises(UserError, match="keys revoke ada"):
        keys.with_added((ADA,), ADA)
    with pytest.raises(UserError, match=r"no key of .bob.; keys: ada"):
        keys.without((ADA,), "bob")
    with pytest.raises(UserError, match="rotate api_key"):
        keys.without((ADA,), "operator")
    assert keys.without((ADA,), "ada") == ()


def test_only_the_hash_is_kept_and_hosts_with_an_api_get_it(tmp_path: Path) -> None:
    made = store(tmp_path)
    key = made.add_api_key("ada", KeyRole.USER)
    assert not any(key.encode() in path.read_bytes() for path in made.folder.iterdir())
    the_plan, values = plan(three_hosts()), made.read()
    own, ada = for_host(the_plan.by_name["gpu-01"], values)["api_keys"].decode().splitlines()
    assert own.startswith("operator:operator:")
    assert ada.startswith(f"ada:user:{hashlib.sha256(key.encode()).hexdigest()}  # made ")
    assert "api_keys" not in for_host(the_plan.by_name["gpu-03"], values)
    made.revoke_api_key("ada")
    assert for_host(the_plan.by_name["gpu-01"], made.read())["api_keys"].decode().splitlines() == [own]


def test_two_that_add_together_lose_nothing(tmp_path: Path) -> None:
    made = store(tmp_path)
    adders = [threading.Thread(target=made.add_api_key, args=(f"user-{n}", KeyRole.USER)) for n in range(12)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert len(made.api_keys()) == 12


def test_a_list_that_cannot_be_read_is_not_written_over(tmp_path: Path) -> None:
    made = store(tmp_path)
    (made.folder / "api_keys").write_text("torn")
    for change in (lambda: made.add_api_key("bob", KeyRole.USER), lambda: made.revoke_api_key("bob"), made.read):
        with pytest.raises(UserError, match="api_keys:1"):
            change()
    assert (made.folder / "api_keys").read_text() == "torn"


def test_without_secrets_it_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python -m generator secrets"):
        Store(tmp_path / "secrets").add_api_key("ada", KeyRole.USER)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[cluster.Place, Path]:
    """A host whose ssh is a shell: its rendered folder here, and the file that its api has mounted there."""
    monkeypatch.setattr(cluster, "REMOTE_FOLDER", str(tmp_path / "there"))
    monkeypatch.setattr(cluster, "UID", UID)
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nexec sh -c "$2"\n')
    ssh.chmod(0o755)
    the_plan = plan(three_hosts())
    for host in the_plan.hosts:
        (tmp_path / "out" / host.name).mkdir(parents=True)
        (tmp_path / "out" / host.name / "compose.yaml").touch()
    lay_out(the_plan, tmp_path / "out", store(tmp_path).read(), uid=UID)
    (place,) = cluster.places(the_plan, tmp_path / "out", only="gpu-02", ssh=str(ssh))
    shutil.copytree(place.folder, place.remote_folder)
    return place, Path(place.remote_folder) / "secrets" / "api_keys"


def test_a_running_container_there_keeps_the_file_that_it_has_mounted(remote: tuple[cluster.Place, Path]) -> None:
    place, there = remote
    mounted = os.open(there, os.O_RDONLY)
    (place.folder / "secrets" / "api_keys").write_text(ADA.line)
    assert cluster.renew([place], Progress(Mode.QUIET)) == []
    assert (os.read(mounted, 1000), there.stat().st_mode & 0o777) == (ADA.line.encode(), 0o600)
    assert sorted(path.name for path in there.parent.iterdir() if "api_keys" in path.name) == ["api_keys"]
    # `up` copies the whole folder, which renames files: this one must not be among them.
    pipeline = place.copy()
    assert pipeline is not None
    subprocess.run(["bash", "-o", "pipefail", "-c", pipeline], check=True)
    assert os.fstat(mounted).st_nlink == 1
    os.close(mounted)


def test_what_arrived_in_part_changes_nothing(remote: tuple[cluster.Place, Path], tmp_path: Path) -> None:
    place, there = remote
    before = there.read_bytes()
    (tmp_path / "ssh").write_text('#!/bin/sh\nhead -c 10 | sh -c "$2"\n')
    (place.folder / "secrets" / "api_keys").write_text(ADA.line)
    with pytest.raises(ToolError):
        place.renew()
    assert there.read_bytes() == before
    (failed,) = cluster.renew([place], Progress(Mode.QUIET))
    assert failed.startswith("gpu-02: ")


def test_this_machine_s_own_folder_is_where_the_containers_look(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "compose.yaml").touch()
    assert cluster.renew(cluster.places(plan(one_host()), tmp_path), Progress(Mode.QUIET)) == []


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_deleted_here_does_not_stay_in_force_there(remote: tuple[cluster.Place, Path]) -> None:
    place, mounted = remote
    there, tls = Path(place.remote_folder), mounted.parent / "tls"
    for name in ("compose.override.yaml", "secrets/old.key", "secrets/tls/old key", "config/gone/a\nb.conf"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("old")
    (place.folder / "own [1]").mkdir()
    for name in ("-x", "it's\nours", "own [1]/kept"):
        (place.folder / name).write_text("new")
    inodes = mounted.stat().st_ino, tls.stat().st_ino, (there / "config").stat().st_ino
    cluster.bring(place)
    assert files_in(there) == files_in(place.folder)
    assert (mounted.stat().st_ino, tls.stat().st_ino, (there / "config").stat().st_ino) == inodes
    (place.folder / "secrets/api_keys").unlink()
    cluster.bring(place)
    assert not mounted.exists(), "it is not in the archive, and here no more"


def test_what_an_override_has_a_container_write_there_stays(remote: tuple[cluster.Place, Path]) -> None:
    place, _ = remote
    """Also in a folder that somebody made here, for its owner to be right there."""
    (place.folder / "outputs").mkdir()
    kept = [Path(place.remote_folder) / name for name in ("outputs/config/video.mp4", "mydb/base.1", "notes.txt")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cluster.bring(place)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("broken", ["tar", "base64"])
def test_nothing_is_removed_there_after_half_a_copy(
    remote: tuple[cluster.Place, Path], tmp_path: Path, broken: str
) -> None:
    place, mounted = remote
    old = Path(place.remote_folder) / "compose.override.yaml"
    old.touch()
    cut = f'#!/bin/sh\ncase "$2" in *"{broken} "*) head -c 99 | sh -c "$2"; exit 255;; *) sh -c "$2";; esac\n'
    (tmp_path / "ssh").write_text(cut)
    with pytest.raises(ToolError):
        cluster.bring(place)
    assert old.exists()
    assert mounted.exists()
