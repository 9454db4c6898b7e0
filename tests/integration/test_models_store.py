"""`models verify | list | add | prune`: the command line on real folders, and TLS as the environment says."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from generator.__main__ import main
from generator.certificates import make_authority, make_server
from generator.console import console
from generator.docker import Engine
from generator.lock_edit import with_entry
from generator.model import ModelKind
from generator.models_lock import load_lock
from generator.ops.model_add import Addition, add
from generator.ops.model_store import Store
from generator.progress import Mode, Progress
from tests.integration.file_server import FileServer, lock_text, names_in, tensors

ROOT = Path(__file__).parents[2]
GOOD, OTHER = tensors(1000, 1), tensors(1000, 2)
CLUSTER = (ROOT / "config/cluster.demo.yaml").read_text()


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def models(root: Path, *words: str, **environ: str) -> Result:
    """`python -m generator models WORDS` in `root`, in this process: a new one takes a second to start."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["generator", "models", *words])
        patch.setattr(console, "width", 200)
        patch.chdir(root)
        code = main()
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


def put(root: Path, place: str, content: bytes) -> None:
    (root / "models" / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "models" / place).write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of two models that is as its lock says."""
    put(tmp_path, "checkpoint/a.safetensors", GOOD)
    put(tmp_path, "lora/b.safetensors", OTHER)
    (tmp_path / "models.lock.yaml").write_text(lock_text(("checkpoint", "a", GOOD, ""), ("lora", "b", OTHER, "")))
    return tmp_path


def states(result: Result) -> dict[str, str]:
    return {one["place"]: one["state"] for one in json.loads(result.stdout)["models"]}


def test_what_is_as_locked_is_well(root: Path) -> None:
    (root / "models/.animatediff-ha").touch()
    result = models(root, "verify", "--dir", "models")
    assert (result.returncode, "checkpoint/a.safetensors" in result.stdout) == (0, True), result.stdout + result.stderr
    listed = models(root, "list", "--dir", "models", "--json")
    assert (listed.returncode, set(states(listed).values())) == (0, {"present"})


def test_every_kind_of_drift_is_told_at_once(root: Path) -> None:
    put(root, "checkpoint/a.safetensors", GOOD[:-1] + bytes([GOOD[-1] ^ 1]))
    (root / "models/lora/b.safetensors").unlink()
    put(root, "lora/.b.safetensors.part", OTHER[:500])
    put(root, "lora/.gone.safetensors.part", OTHER[:500])
    put(root, "vae/old.ckpt", b"x")
    put(root, "vae/folder/config.json", b"{}")
    put(root, "notes.txt", b"x")
    text = (root / "models.lock.yaml").read_text() + lock_text(("vae", "short", GOOD, "")).partition("models:\n")[2]
    (root / "models.lock.yaml").write_text(text)
    put(root, "vae/short.safetensors", GOOD[:100])
    result = models(root, "verify", "--dir", "models", "--json")
    assert result.returncode == 2
    assert states(result) == {
        "checkpoint/a.safetensors": "wrong content",
        "lora/b.safetensors": "partial",
        "vae/short.safetensors": "wrong size",
        "lora/.gone.safetensors.part": "extra",
        "vae/old.ckpt": "extra",
        "vae/folder": "extra",
        "notes.txt": "extra",
    }
    shown = models(root, "list", "--dir", "models")
    assert (shown.returncode, "a pickle: workers refuse it" in shown.stdout) == (0, True)


def test_extra_files_may_be_allowed(root: Path) -> None:
    put(root, "lora/mine.safetensors", GOOD)
    assert models(root, "verify", "--dir", "models").returncode == 2
    assert models(root, "verify", "--dir", "models", "--allow-extra").returncode == 0


def test_cluster_and_lock_are_held_together(root: Path) -> None:
    available = (
        "\n    - {name: a.safetensors, kind: checkpoint, sha256: '" + "0" * 64 + "'}\n    - {name: c, kind: lora}"
    )
    (root / "cluster.yaml").write_text(
        CLUSTER.replace("\n    - {name: tiny, kind: checkpoint", available + "\n    - {name: tiny, kind: checkpoint", 1)
    )
    result = models(root, "verify", "--dir", "models")
    assert result.returncode == 2
    assert "cluster.yaml:" in result.stdout
    assert "models.available[0].sha256" in result.stdout
    assert "models.available[1].name: c: not in models.lock.yaml" in result.stdout
    assert "tiny" not in result.stdout, "what the image builds needs no lock"


def test_prune_asks_first(root: Path) -> None:
    put(root, "lora/mine.safetensors", GOOD)
    put(root, "lora/.gone.safetensors.part", GOOD)
    put(root, "lora/.b.safetensors.part", GOOD)
    put(root, "vae/folder/config.json", b"{}")
    (root / "cluster.yaml").write_text(CLUSTER)
    assert "add --yes" in models(root, "prune", "--dir", "models").stdout
    assert len(names_in(root / "models")) == 6
    assert models(root, "prune", "--dir", "models", "--yes").returncode == 0
    kept = {"checkpoint/a.safetensors", "lora/b.safetensors", "lora/.b.safetensors.part"}
    assert names_in(root / "models") == kept, "a pull that goes on later is no rubbish"


@pytest.mark.parametrize("named", [[], ["--file", "clutser.yaml"]])
def test_prune_must_know_what_the_cluster_uses(root: Path, named: list[str]) -> None:
    """A model in a folder is in no lock: whoever misspells the cluster's file would lose it."""
    put(root, "checkpoint/mine/model_index.json", b"{}")
    result = models(root, "prune", "--dir", "models", "--yes", *named)
    assert (result.returncode, "cluster.yaml" in result.stderr.replace("clutser", "cluster")) == (1, True)
    assert "checkpoint/mine/model_index.json" in names_in(root / "models")
    if named:
        assert models(root, "verify", "--dir", "models", "--allow-extra", *named).returncode == 1


def test_prune_leaves_what_the_cluster_uses_and_what_is_no_models(root: Path) -> None:
    """The demo's models are built by the image, and a wrong --dir must not cost a home folder."""
    (root / "cluster.yaml").write_text(
        CLUSTER.replace("  available:", "  available:\n    - {name: mine.safetensors, kind: lora}", 1)
    )
    stays = {"checkpoint/tiny/model.json", "motion_module/tiny.safetensors", "lora/mine.safetensors",
             "letters/love.txt", "notes.txt", "lost+found/x"}  # fmt: skip
    for place in stays:
        put(root, place, GOOD)
    put(root, "lora/old.safetensors", GOOD)
    assert models(root, "prune", "--dir", "models", "--yes").returncode == 0
    assert names_in(root / "models") == {"checkpoint/a.safetensors", "lora/b.safetensors"} | stays
    verified = models(root, "verify", "--dir", "models", "--json")
    assert set(states(verified)) == {"checkpoint/a.safetensors", "lora/b.safetensors", "letters", "notes.txt"}
    assert "not in models.lock.yaml" in json.loads(verified.stdout)["cluster"][0]


def test_prune_knows_what_was_added_a_moment_ago(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a command that it had to wait for."""
    (root / "cluster.yaml").write_text(CLUSTER)
    put(root, "vae/new.safetensors", GOOD)
    lock, locked = root / "models.lock.yaml", Store.locked

    @contextmanager
    def late(store: Store) -> Iterator[None]:
        lock.write_text(lock.read_text() + lock_text(("vae", "new", GOOD, "")).partition("models:\n")[2])
        with locked(store):
            yield

    monkeypatch.setattr(Store, "locked", late)
    assert models(root, "prune", "--dir", "models", "--yes").returncode == 0
    assert (root / "models/vae/new.safetensors").exists()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("{driver: nfs, nfs: {server: nas, export: /srv/x}}", "nas:/srv/x/models"),
        ("{driver: cephfs, cephfs: {path: /nowhere/ceph}}", "/nowhere/ceph/models: no such folder"),
    ],
)
def test_the_folder_is_found_from_the_cluster_or_asked_for(root: Path, storage: str, said: str) -> None:
    (root / "cluster.yaml").write_text(CLUSTER.replace("storage:\n  driver: local", f"storage: {storage}"))
    result = models(root, "verify")
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    (root / "ceph/models").mkdir(parents=True)
    (root / "cluster.yaml").write_text(
        CLUSTER.replace("storage:\n  driver: local", f"storage: {{driver: cephfs, cephfs: {{path: {root}/ceph}}}}")
    )
    assert states(models(root, "list", "--json")) == dict.fromkeys(
        ["checkpoint/a.safetensors", "lora/b.safetensors"], "missing"
    )


@pytest.mark.docker
@pytest.mark.skipif(os.geteuid() != 0, reason="a volume's folder is root's")
def test_on_one_host_it_is_the_volume_that_compose_makes(root: Path, engine: Engine) -> None:
    name = f"adha-test-{os.getpid()}"
    (root / "cluster.yaml").write_text(CLUSTER.replace("name: animatediff-demo", f"name: {name}"))
    missing = models(root, "list")
    assert (missing.returncode, "storage-init --create" in missing.stderr) == (1, True), missing.stderr
    engine.run("volume", "create", f"{name}_models")
    try:
        (root / "v.safetensors").write_bytes(GOOD)
        assert models(root, "add", "v.safetensors", "--kind", "vae").returncode == 0
        assert states(models(root, "list", "--json"))["vae/v.safetensors"] == "present"
        there = engine.run("volume", "inspect", "--format", "{{.Mountpoint}}", f"{name}_models").strip()
        assert (Path(there) / "vae/v.safetensors").read_bytes() == GOOD
    finally:
        engine.run("volume", "rm", f"{name}_models")


@pytest.mark.parametrize(
    "mirror", ["models.example.net", "ftp://x/y", "https://me:pw@x/y", "https://x/y.ckpt", "https://"]
)
def test_a_wrong_mirror_is_told_before_anything_is_asked(root: Path, mirror: str) -> None:
    result = models(root, "pull", "--dir", "models", "--mirror", mirror)
    assert (result.returncode, "--mirror: " in result.stderr, "pw" in result.stderr) == (1, True, False), result.stderr


@pytest.mark.parametrize("mirror", ["https://a..b/m", "https://300.1.1.1/m", f"https://{'a' * 64}.example/m"])
def test_a_mirror_that_no_resolver_knows_is_one_that_has_nothing(root: Path, mirror: str) -> None:
    (root / "models/lora/b.safetensors").unlink()
    result = models(root, "pull", "--dir", "models", "--mirror", mirror, "--stall-seconds", "1")
    assert (result.returncode, "bug" in result.stderr, mirror in result.stderr) == (2, False, True), result.stderr


def test_without_a_cluster_the_folder_must_be_named(root: Path) -> None:
    result = models(root, "list")
    assert (result.returncode, "--dir" in result.stderr) == (1, True)
    assert models(root, "list", "--dir", "nothing").returncode == 1


def test_problems_of_the_lock_are_told_at_once_with_their_lines(root: Path) -> None:
    digest = "0" * 64
    (root / "models.lock.yaml").write_text(
        "models:\n"
        f"  - {{name: ../a, kind: checkpoint, size: 100, sha256: '{digest}'}}\n"
        f"  - {{name: b.ckpt, kind: lora, size: 100, sha256: '{digest}'}}\n"
        "  - {name: c, kind: modell, size: 5, sha256: abc, soruce: x}\n"
    )
    result = models(root, "pull", "--dir", "models")
    assert result.returncode == 1
    for said in ("models.lock.yaml:2: models[0].name", "models[2].kind", "models[2].size", "64 characters",
                 'did you mean "source"'):  # fmt: skip
        assert said in result.stderr, result.stderr


# --- add -------------------------------------------------------------------------------------------------------------


def test_a_first_file_makes_folder_lock_and_entry(tmp_path: Path) -> None:
    (tmp_path / "My Model (v2).safetensors").write_bytes(GOOD)
    words = ("--kind", "checkpoint", "--license", "MIT: see there", "--dir", "models")
    result = models(tmp_path, "add", "My Model (v2).safetensors", *words)
    assert result.returncode == 0, result.stderr
    (model,) = load_lock(tmp_path / "models.lock.yaml").lock.models
    assert (model.place, model.size, model.sha256) == (
        "checkpoint/My_Model_v2_.safetensors", len(GOOD), hashlib.sha256(GOOD).hexdigest()
    )  # fmt: skip
    assert model.license == "MIT: see there"
    assert models(tmp_path, "verify", "--dir", "models").returncode == 0


def test_a_file_in_its_place_is_only_entered(root: Path) -> None:
    put(root, "vae/v.safetensors", GOOD)
    before = (root / "models/vae/v.safetensors").stat()
    assert models(root, "add", "models/vae/v.safetensors", "--kind", "vae", "--dir", "models").returncode == 0
    assert (root / "models/vae/v.safetensors").stat().st_ino == before.st_ino
    assert models(root, "verify", "--dir", "models").returncode == 0


def test_an_entry_of_that_name_is_replaced_only_on_demand(root: Path) -> None:
    (root / "b.safetensors").write_bytes(GOOD)
    words = ("add", "b.safetensors", "--kind", "lora", "--dir", "models")
    refused = models(root, *words)
    assert (refused.returncode, "--replace" in refused.stderr) == (1, True)
    assert (root / "models/lora/b.safetensors").read_bytes() == OTHER
    lock = root / "models.lock.yaml"
    lock.write_text(lock.read_text() + "    source: https://x.net/b.safetensors\n")
    replaced = models(root, *words, "--replace")
    assert (replaced.returncode, "x.net/b.safetensors: does it have the new content" in replaced.stderr) == (0, True)
    again = models(root, *words, "--replace")
    assert (again.returncode, "new content" in again.stderr) == (0, False), "it is no other content"
    assert models(root, "verify", "--dir", "models").returncode == 0
    assert (root / "models/lora/b.safetensors").read_bytes() == GOOD


def test_a_file_that_lies_there_unlocked_is_not_overwritten(root: Path) -> None:
    put(root, "lora/c.safetensors", OTHER)
    (root / "c.safetensors").write_bytes(GOOD)
    result = models(root, "add", "c.safetensors", "--kind", "lora", "--dir", "models")
    assert (result.returncode, "another content" in result.stderr) == (1, True)
    assert (root / "models/lora/c.safetensors").read_bytes() == OTHER
    assert len(load_lock(root / "models.lock.yaml").lock.models) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.ckpt", GOOD, "a pickle"),
        ("m.safetensors", b"PK\x03\x04" + bytes(100), "a pickle"),
        ("m.safetensors", GOOD[:-1], "bytes of data"),
        ("nothing.safetensors", None, "No such file"),
    ],
)
def test_what_is_no_model_is_not_added(root: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (root / name).write_bytes(content)
    before = (root / "models.lock.yaml").read_bytes(), names_in(root / "models")
    result = models(root, "add", name, "--kind", "lora", "--dir", "models")
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert ((root / "models.lock.yaml").read_bytes(), names_in(root / "models")) == before


def test_names_with_folders_are_refused(root: Path) -> None:
    (root / "m.safetensors").write_bytes(GOOD)
    result = models(root, "add", "m.safetensors", "--kind", "lora", "--name", "../../evil", "--dir", "models")
    assert (result.returncode, "not usable" in result.stderr) == (1, True)
    assert not (root.parent / "evil.safetensors").exists()


def test_a_lock_that_is_a_link_stays_one(root: Path) -> None:
    (root / "repository").mkdir()
    (root / "models.lock.yaml").rename(root / "repository/lock.yaml")
    (root / "models.lock.yaml").symlink_to("repository/lock.yaml")
    (root / "c.safetensors").write_bytes(GOOD)
    assert models(root, "add", "c.safetensors", "--kind", "vae", "--dir", "models").returncode == 0
    assert (root / "models.lock.yaml").is_symlink()
    assert len(load_lock(root / "repository/lock.yaml").lock.models) == 3


def test_two_that_add_to_one_lock_at_once_both_stand_in_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a folder of its own, so the folders' locks do not keep them apart."""

    def slow(*given: Any) -> str:
        text = with_entry(*given)
        time.sleep(0.3)
        return text

    monkeypatch.setattr("generator.ops.model_add.with_entry", slow)
    (root / "n.safetensors").write_bytes(GOOD)
    additions = [Addition(str(root / "n.safetensors"), ModelKind.VAE, f"n{number}") for number in range(2)]
    stores = [Store(root / f"models{number}") for number in range(2)]
    for store in stores:
        store.folder.mkdir()
    lock = root / "models.lock.yaml"
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda store, one: add(store, lock, one, Progress(Mode.QUIET)), stores, additions))
    assert {one.name for one in load_lock(lock).lock.models} == {"a", "b", "n0", "n1"}


@pytest.mark.parametrize(
    ("origin", "words", "said"),
    [
        ("m.safetensors", ["--lock", "nowhere/models.lock.yaml"], "nowhere"),
        ("m.safetensors", ["--lock", "models"], "models: Is a directory"),
        ("http://[::1/m.safetensors", [], "not an address"),
        ("pipe", [], "not a file"),
        ("models", [], "not a file"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_copied(
    root: Path, origin: str, words: list[str], said: str
) -> None:
    (root / "m.safetensors").write_bytes(GOOD)
    os.mkfifo(root / "pipe")
    before = names_in(root / "models")
    result = models(root, "add", origin, "--kind", "vae", "--name", "m", "--dir", "models", *words)
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert names_in(root / "models") == before


def test_a_copy_that_breaks_off_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("generator.ops.model_add.os.fsync", full)
    (root / "m.safetensors").write_bytes(GOOD)
    put(root, "vae/.m.safetensors.part.json", b'{"url": "https://x/m.safetensors", "validator": "1"}')
    result = models(root, "add", "m.safetensors", "--kind", "vae", "--dir", "models")
    assert (result.returncode, "No space left" in result.stderr) == (1, True), result.stderr
    assert names_in(root / "models") == {"checkpoint/a.safetensors", "lora/b.safetensors"}


# --- over HTTPS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileServer, Path]]:
    """A server with a certificate of its own authority, and that authority's file."""
    folder = tmp_path_factory.mktemp("tls")
    authority_key, authority = make_authority()
    key, chain = make_server(authority_key, authority, ("127.0.0.1",))
    (folder / "key").write_bytes(key)
    (folder / "chain").write_bytes(chain)
    (folder / "ca.crt").write_bytes(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain", folder / "key")
    server = FileServer(context)
    yield server, folder / "ca.crt"
    server.close()


def test_an_address_is_fetched_and_entered(root: Path, secure: tuple[FileServer, Path]) -> None:
    server, authority = secure
    new = tensors(200_000, 5)
    url = server.put("/files/mm_sd15_v3.safetensors", new) + "?download=true"
    server.files["/files/mm_sd15_v3.safetensors?download=true"] = new
    server.etags["/files/mm_sd15_v3.safetensors?download=true"] = '"1"'
    server.plan["/files/mm_sd15_v3.safetensors?download=true"] = [("break", 70_000)]
    words = ("add", url, "--kind", "motion_module", "--dir", "models")
    distrusted = models(root, *words)
    assert (distrusted.returncode, "SSL_CERT_FILE" in distrusted.stderr) == (2, True), distrusted.stderr
    result = models(root, *words, SSL_CERT_FILE=str(authority))
    assert result.returncode == 0, result.stderr
    assert [one.range for one in server.asked] == [None, "bytes=70000-"]
    entry = load_lock(root / "models.lock.yaml").lock.models[-1]
    assert (entry.name, entry.source, entry.size) == ("mm_sd15_v3", url, len(new))
    (root / "models/motion_module/mm_sd15_v3.safetensors").unlink()
    pulled = models(root, "pull", "--dir", "models", SSL_CERT_FILE=str(authority))
    assert pulled.returncode == 0, pulled.stderr
    assert models(root, "verify", "--dir", "models").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_file_that_has_no_room_is_not_begun(root: Path, secure: tuple[FileServer, Path]) -> None:
    server, authority = secure
    url = server.put("/m.safetensors", tensors(2 << 20, 5))
    (root / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=17m", "tmpfs", str(root / "small")], check=True)
    try:
        words = ("add", url, "--kind", "lora", "--dir", "small")
        result = models(root, *words, SSL_CERT_FILE=str(authority))
        assert (result.returncode, "more space" in result.stderr) == (2, True), result.stderr
        assert sum(path.stat().st_size for path in (root / "small").rglob("*.part")) == 0
        subprocess.run(["mount", "-o", "remount,size=40m", str(root / "small")], check=True)
        assert models(root, *words, SSL_CERT_FILE=str(authority)).returncode == 0
    finally:
        subprocess.run(["umount", str(root / "small")], check=True)


def test_the_halves_of_two_versions_make_no_model(root: Path, secure: tuple[FileServer, Path]) -> None:
    """There is no checksum yet, both are of one size, and the server takes no notice of If-Range."""
    server, authority = secure
    old, new = tensors(200_000, 5), tensors(200_000, 6)
    url = server.put("/m.safetensors", old)
    server.plan["/m.safetensors"] = [
        ("break", 70_000),
        ("change", lambda: server.put("/m.safetensors", new)),
    ]
    result = models(root, "add", url, "--kind", "lora", "--dir", "models", SSL_CERT_FILE=str(authority))
    assert result.returncode == 0, result.stderr
    assert (root / "models/lora/m.safetensors").read_bytes() == new
    assert [one.range for one in server.asked] == [None, "bytes=70000-", None]


def test_a_redirect_to_an_address_without_encryption_is_refused(root: Path, secure: tuple[FileServer, Path]) -> None:
    """It has no checksum yet: whoever sits in between could choose what gets locked."""
    server, authority = secure
    server.put("/m.safetensors", GOOD)
    server.plan["/m.safetensors"] = [("to", "http://127.0.0.1:9/m.safetensors")]
    words = ("add", f"{server.url}/m.safetensors", "--kind", "lora", "--dir", "models")
    result = models(root, *words, SSL_CERT_FILE=str(authority))
    assert (result.returncode, "without encryption" in result.stderr) == (2, True), result.stderr


def test_an_authorities_file_that_is_not_there_is_told(root: Path) -> None:
    result = models(root, "add", "https://127.0.0.1:9/x.safetensors", "--kind", "lora", "--dir", "models",
                    SSL_CERT_FILE="/nothing")  # fmt: skip
    assert (result.returncode, "/nothing" in result.stderr) == (1, True), result.stderr
