"""`models pull` against a real server that breaks off, lies, stalls and changes its mind; and against its own death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator.errors import Unhealthy, UserError
from generator.models_lock import load_lock
from generator.ops.download import Download
from generator.ops.model_store import Store
from generator.ops.models import Pulled, pull, raise_failures
from generator.ops.source import Limits
from generator.progress import Mode, Progress
from tests.integration.file_server import FileServer, lock_text, names_in, tensors, wait_until

ROOT = Path(__file__).parents[2]
QUICK = Limits(connect_seconds=2, stall_seconds=0.3, tries=4, first_pause_seconds=0.01)
MODEL = tensors()
PATH = "/m.safetensors"
PLACE = "lora/m.safetensors"


@pytest.fixture
def server() -> Iterator[FileServer]:
    running = FileServer()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Folder:
    """A models folder with a lock of one model, unless others are given."""

    def __init__(self, root: Path, server: FileServer, text: str | None = None) -> None:
        self.store = Store(root / "models")
        self.store.folder.mkdir()
        self.lock = root / "models.lock.yaml"
        url = server.put(PATH, MODEL)
        self.lock.write_text(lock_text(("lora", "m", MODEL, url)) if text is None else text)

    def pull(self, *names: str, mirrors: tuple[str, ...] = ()) -> list[Pulled]:
        lock = load_lock(self.lock)
        return pull(self.store, lock, Progress(Mode.QUIET), names=names, mirrors=mirrors, limits=QUICK)

    def why_not(self) -> str:
        """Why the one model's source did not give it. Nothing was put in place."""
        (result,) = self.pull()
        assert result.state == "failed"
        assert not (self.store.folder / PLACE).exists()
        with pytest.raises(Unhealthy, match=r"lora/m\.safetensors"):
            raise_failures([result])
        return next(iter(result.failures.values()))

    def is_right(self) -> bool:
        return names_in(self.store.folder) == {PLACE} and (self.store.folder / PLACE).read_bytes() == MODEL

    def cli(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environ}
        options = ["--lock", str(self.lock), "--dir", str(self.store.folder)]
        command = [sys.executable, "-m", "generator", "models", *words, *options]
        return subprocess.Popen(
            command, cwd=self.lock.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def folder(tmp_path: Path, server: FileServer) -> Folder:
    return Folder(tmp_path, server)


def test_what_is_missing_is_fetched_and_what_is_there_is_not(folder: Folder, server: FileServer) -> None:
    umask = os.umask(0o077)
    try:
        (result,) = folder.pull()
    finally:
        os.umask(umask)
    assert (result.state, result.url, folder.is_right()) == ("fetched", server.url + PATH, True)
    modes = [(folder.store.folder / place).stat().st_mode & 0o777 for place in ("lora", PLACE)]
    assert modes == [0o755, 0o644], "the containers' user reads them whatever the umask"
    assert [one.state for one in folder.pull()] == ["present"]
    assert len(server.asked) == 1


def test_a_file_that_differs_is_fetched_anew(folder: Folder) -> None:
    for wrong in (MODEL[:-1] + b"?", MODEL[:1000]):
        (folder.store.folder / "lora").mkdir(exist_ok=True)
        (folder.store.folder / PLACE).write_bytes(wrong)
        assert [one.state for one in folder.pull()] == ["fetched"]
        assert folder.is_right()


def test_a_connection_that_breaks_is_resumed_where_it_stopped(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("break", 100_000), ("break", 50_000), ("break", 100_000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert folder.is_right()
    assert [one.if_range for one in server.asked] == [None, *[server.etags[PATH]] * 3]
    starts = [int((one.range or "bytes=0-")[6:-1]) for one in server.asked]
    assert starts == sorted(starts)
    assert sum(one.sent for one in server.asked) < len(MODEL) + 3 * 65_536, "hardly a byte comes twice"


def test_a_large_file_may_break_more_often_than_tries(tmp_path: Path, server: FileServer) -> None:
    """Each attempt that gains a mebibyte is a step forward, not a failure."""
    model = tensors(8 << 20)
    url = server.put("/big", model)
    server.plan["/big"] = [("break", (1 << 20) + 70_000)] * 6
    folder = Folder(tmp_path, server, lock_text(("lora", "m", model, url)))
    assert [one.state for one in folder.pull()] == ["fetched"]


def test_a_server_that_never_gets_further_is_given_up(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("break", 0)] * 50
    assert "tried 4 times" in folder.why_not()
    assert len(server.asked) == 4


def test_starting_over_and_over_is_given_up(tmp_path: Path, server: FileServer) -> None:
    """It takes no ranges, and each time breaks at the same place, beyond what counts as progress."""
    model = tensors(8 << 20)
    url = server.put("/big", model)
    server.plan["/big"] = [("restart", 2 << 20)] * 50
    folder = Folder(tmp_path, server, lock_text(("lora", "m", model, url)))
    assert "tried 4 times" in folder.why_not()
    assert len(server.asked) == 4


def test_a_weak_version_is_no_version(folder: Folder, server: FileServer) -> None:
    """RFC 9110, 13.1.5: it may stand for different bytes, so the checksum alone decides."""
    server.etags[PATH] = 'W/"weak"'
    server.plan[PATH] = [("break", 100_000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert [(one.range is None, one.if_range) for one in server.asked] == [(True, None), (False, None)]


def test_another_version_after_a_break_starts_anew(folder: Folder, server: FileServer) -> None:
    """The part is of an older version; the server says so (If-Range), and what it has now is what is locked."""
    old = tensors(seed=1)
    server.put(PATH, old)
    server.plan[PATH] = [("break", 100_000), ("then", lambda: server.put(PATH, MODEL))]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert folder.is_right()
    assert [one.range is None for one in server.asked] == [True, False]


def test_the_rest_of_another_file_is_noticed_and_all_is_fetched_again(folder: Folder, server: FileServer) -> None:
    """A server that takes no notice of If-Range: the two halves make no whole."""
    server.plan[PATH] = [("break", 100_000), ("rest", tensors(seed=2))]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert folder.is_right()
    assert [one.range is None for one in server.asked] == [True, False, True]


def test_a_version_that_no_header_can_hold_is_none(folder: Folder, server: FileServer) -> None:
    server.etags[PATH] = '"\xfc"'
    server.plan[PATH] = [("break", 100_000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert [(one.range is None, one.if_range) for one in server.asked] == [(True, None), (False, None)]


def test_a_part_is_of_no_version_once_another_server_has_added_to_it(folder: Folder, server: FileServer) -> None:
    """`add` would trust it, which has no checksum to go by."""
    server.put(f"/mirror/{PLACE}", MODEL)
    server.plan[f"/mirror/{PLACE}"] = [("break", 150_000), *[("break", 0)] * 9]
    server.plan[PATH] = [("break", 70_000), *[("break", 0)] * 9]
    (result,) = folder.pull(mirrors=(f"{server.url}/mirror",))
    assert result.state == "failed"
    assert (folder.store.folder / "lora/.m.safetensors.part").stat().st_size == 220_000
    assert not (folder.store.folder / "lora/.m.safetensors.part.json").exists()


def test_what_an_earlier_pull_has_left_goes_when_the_file_is_there(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("break", 100_000), *[("break", 0)] * 9]
    folder.pull()
    (folder.store.folder / PLACE).write_bytes(MODEL)  # brought by hand meanwhile
    assert [one.state for one in folder.pull()] == ["present"]
    assert folder.is_right()


@pytest.mark.parametrize("name", [".m.safetensors.part", ".m.safetensors.part.json"])
def test_a_link_in_the_place_of_a_part_is_not_written_through(folder: Folder, tmp_path: Path, name: str) -> None:
    """This runs as root, in a folder that others may share."""
    (tmp_path / "shadow").write_text("root:*")
    (folder.store.folder / "lora").mkdir()
    (folder.store.folder / "lora" / name).symlink_to(tmp_path / "shadow")
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert (tmp_path / "shadow").read_text() == "root:*"
    assert not (folder.store.folder / PLACE).is_symlink()


def test_a_defect_is_not_taken_for_the_end_of_the_list(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Download, "fetch", lambda *_: [][1])
    with pytest.raises(IndexError):
        folder.pull()


@pytest.mark.parametrize("proxy", ["socks4://127.0.0.1:9", "nonsense://x", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(UserError, match="proxy"):
        folder.pull()


def test_another_content_of_the_right_size_is_refused(folder: Folder, server: FileServer) -> None:
    server.put(PATH, tensors(seed=3))
    assert "its sha256 is" in folder.why_not()
    assert names_in(folder.store.folder) == set(), "nothing of it is kept"
    assert len(server.asked) == 1, "asking again would not change it"


@pytest.mark.parametrize("size", [100, 299_999, 300_001])
def test_another_size_is_refused_before_a_byte_of_it_is_kept(folder: Folder, server: FileServer, size: int) -> None:
    server.put(PATH, tensors(size, seed=3))
    assert "instead of" in folder.why_not()
    assert names_in(folder.store.folder) == set()


def test_more_bytes_than_there_should_be_are_not_taken(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("long", 1 << 20)]
    assert "sends more than" in folder.why_not()


def test_fewer_bytes_than_were_announced_are_resumed(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("short", 1000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert [one.range for one in server.asked] == [None, f"bytes={len(MODEL) - 1000}-"]


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_silence_and_drops_end_an_attempt_not_the_download(folder: Folder, server: FileServer, kind: str) -> None:
    server.plan[PATH] = [(kind, 100_000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert (folder.store.folder / PLACE).read_bytes() == MODEL
    assert len(server.asked) in (2, 3)


def test_a_server_that_answers_nothing_is_given_up(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("then", lambda: server.closing.wait(3))] * 9
    assert "did not answer in time; tried 4 times" in folder.why_not()


def test_passing_troubles_are_waited_out_as_asked(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("status", 503, {"Retry-After": "1"}), ("status", 429, {}), ("status", 502, {})]
    (result,) = folder.pull()
    assert (result.state, result.seconds >= 1.0) == ("fetched", True)


@pytest.mark.parametrize(("status", "said"), [(404, "not there"), (410, "not there"), (403, "login"), (418, "418")])
def test_a_lasting_no_is_not_asked_twice(folder: Folder, server: FileServer, status: int, said: str) -> None:
    server.plan[PATH] = [("status", status, {})] * 9
    assert said in folder.why_not()
    assert len(server.asked) == 1


def test_a_server_without_ranges_sends_all_again(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("break", 100_000), ("whole",)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert folder.is_right()


def test_more_than_there_is_was_asked_for(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("break", 100_000), ("status", 416, {})]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert folder.is_right()


def test_redirects_are_followed_with_the_range_and_not_for_ever(folder: Folder, server: FileServer) -> None:
    aim = server.put("/elsewhere/m", MODEL)
    server.plan[PATH] = [("to", aim), ("to", "/elsewhere/m")]
    server.plan["/elsewhere/m"] = [("break", 100_000)]
    assert [one.state for one in folder.pull()] == ["fetched"]
    assert server.asked[-1].range is not None
    (folder.store.folder / PLACE).unlink()
    server.plan[PATH] = [("to", PATH)] * 50
    assert "redirects more than 10 times" in folder.why_not()


@pytest.mark.parametrize("where", ["ftp://127.0.0.1/m", "file:///etc/passwd", "http://"])
def test_a_redirect_out_of_http_is_not_followed(folder: Folder, server: FileServer, where: str) -> None:
    server.plan[PATH] = [("to", where)] * 9
    assert folder.why_not()


PICKLED = {
    "zip": (b"PK\x03\x04" + bytes(500), "pickle"),
    "protocol 2": (b"\x80\x02}q\x00" + bytes(500), "pickle"),
    "page": (b"<!doctype html><title>Log in</title>" + bytes(500), "web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n" + bytes(500), "Git LFS"),
    "holes": (tensors(100) + b"more", "bytes of data"),
    "text": (b"something else entirely" * 20, "not a safetensors"),
}


@pytest.mark.parametrize("case", PICKLED)
def test_only_safetensors_get_in_even_with_the_right_checksum(tmp_path: Path, server: FileServer, case: str) -> None:
    content, said = PICKLED[case]
    url = server.put("/wrong", content)
    folder = Folder(tmp_path, server, lock_text(("lora", "m", content, url)))
    assert said in folder.why_not()
    assert names_in(folder.store.folder) == set()


def test_mirrors_come_first_and_the_source_helps_out(folder: Folder, server: FileServer) -> None:
    server.put(f"/mirror/{PLACE}", MODEL)
    (result,) = folder.pull(mirrors=(f"{server.url}/empty", f"{server.url}/mirror/"))
    assert result.url == f"{server.url}/mirror/{PLACE}"
    assert result.failures == {f"{server.url}/empty/{PLACE}": "HTTP 404: not there"}
    (folder.store.folder / PLACE).unlink()
    (result,) = folder.pull(mirrors=(f"{server.url}/empty", "http://127.0.0.1:9/nobody"))
    assert (result.state, result.url) == ("fetched", server.url + PATH)


def test_a_part_from_one_address_is_finished_at_another(folder: Folder, server: FileServer) -> None:
    server.put(f"/mirror/{PLACE}", MODEL)
    server.plan[f"/mirror/{PLACE}"] = [("break", 200_000), *[("break", 0)] * 9]
    (result,) = folder.pull(mirrors=(f"{server.url}/mirror",))
    assert (result.url, folder.is_right()) == (server.url + PATH, True)
    last = server.asked[-1]
    assert (last.range is not None, last.if_range) == (True, None), "another server's version says nothing here"


def test_one_that_fails_does_not_hold_up_the_others(tmp_path: Path, server: FileServer) -> None:
    contents = {f"m{number}": tensors(50_000, number) for number in range(5)}
    urls = {name: server.put(f"/{name}", content) for name, content in contents.items()}
    del server.files["/m1"]
    server.slow_seconds = 0.05
    folder = Folder(tmp_path, server, lock_text(*(("lora", n, c, urls[n]) for n, c in contents.items())))
    results = folder.pull()
    assert [one.state for one in results] == ["fetched", "failed", "fetched", "fetched", "fetched"]
    assert [one.place for one in results] == [f"lora/m{number}.safetensors" for number in range(5)]
    assert server.most_at_once == 2, "two at a time, no more"
    assert [one.state for one in folder.pull("m3", "lora/m4")] == ["present", "present"]
    with pytest.raises(UserError, match='"m9" is not in'):
        folder.pull("m9")


def test_a_model_without_any_source_is_told_with_its_line(tmp_path: Path, server: FileServer) -> None:
    folder = Folder(tmp_path, server, lock_text(("lora", "m", MODEL, ""), ("vae", "v", MODEL, "")))
    with pytest.raises(UserError, match=r"(?s)lock\.yaml:3: models\[0\]\.name.*:7: models\[1\]\.name"):
        folder.pull()
    server.put(f"/mirror/{PLACE}", MODEL)
    assert folder.pull("m", mirrors=(f"{server.url}/mirror",))[0].state == "fetched"


def test_two_pulls_at_once_are_refused(folder: Folder) -> None:
    with folder.store.locked(), pytest.raises(UserError, match=f"process {os.getpid()}"):
        folder.pull()
    assert folder.pull()[0].state == "fetched"


# --- the whole command -----------------------------------------------------------------------------------------------


def test_a_killed_pull_goes_on_where_it_was(folder: Folder, server: FileServer) -> None:
    server.slow_seconds = 0.1
    process = folder.cli("pull")
    part = folder.store.folder / "lora/.m.safetensors.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 100_000)
    process.kill()
    process.communicate()
    here = part.stat().st_size
    assert 100_000 < here < len(MODEL)
    server.slow_seconds = 0
    again = folder.cli("pull", "--json")
    out, err = again.communicate(timeout=30)
    assert again.returncode == 0, err
    assert json.loads(out)["models"][0]["state"] == "fetched"
    assert server.asked[-1].range == f"bytes={here}-"
    assert server.asked[-1].if_range == server.etags[PATH]
    assert folder.is_right()


def test_ctrl_c_does_not_wait_for_a_silent_server(folder: Folder, server: FileServer) -> None:
    server.plan[PATH] = [("stall", 100_000)]
    process = folder.cli("pull")
    part = folder.store.folder / "lora/.m.safetensors.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 100_000)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=5)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert part.stat().st_size == 100_000, "what has come is kept"


def test_progress_and_failures_of_the_command(folder: Folder, server: FileServer) -> None:
    process = folder.cli("pull")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, "1 fetched" in out, f"{PLACE}: 300 kB from 127.0.0.1" in err) == (0, True, True), err
    (folder.store.folder / PLACE).unlink()
    del server.files[PATH]
    process = folder.cli("pull", "--json")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert json.loads(out)["models"][0]["failures"] == {server.url + PATH: "HTTP 404: not there"}
    assert "HTTP 404" in err
    assert "Traceback" not in err


def test_a_proxy_named_in_the_environment_is_used(folder: Folder, server: FileServer) -> None:
    url = "http://models.invalid/m.safetensors"
    server.files[url] = MODEL
    server.etags[url] = '"x"'
    folder.lock.write_text(lock_text(("lora", "m", MODEL, url)))
    process = folder.cli("pull", http_proxy=server.url)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert [one.path for one in server.asked] == [url]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_full_disk_is_told_and_what_came_is_kept(folder: Folder, server: FileServer, when: str) -> None:
    disk = folder.store.folder
    size = "17m" if when == "before" else "20m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        model = tensors(2 << 20)
        folder.lock.write_text(lock_text(("lora", "m", model, server.put("/big", model))))

        def fill() -> None:
            with (disk / ".filler").open("wb") as file:
                file.write(bytes((20 << 20) - (1 << 20)))

        server.plan["/big"] = [("then", fill if when == "in the middle" else lambda: None)]
        with pytest.raises(UserError, match="more space" if when == "before" else "No space left on device"):
            folder.pull()
        assert bool(server.asked) is (when == "in the middle")
        assert not (disk / PLACE).exists()
        if when == "in the middle":
            (disk / ".filler").unlink()
            assert [one.state for one in folder.pull()] == ["fetched"]
            assert server.asked[-1].range is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_told(folder: Folder) -> None:
    (folder.store.folder / "lora").write_text("a file in the way")
    with pytest.raises(UserError, match="File exists"):
        folder.pull()
