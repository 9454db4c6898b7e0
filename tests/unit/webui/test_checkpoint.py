from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from webui import checkpoint
from webui.checkpoint import Identity, prune, read, readable, request_hash, write
from webui.engine.base import Snapshot
from webui.request import MemorySettings, VideoRequest

IDENTITY = Identity("fingerprint", "request")


def snapshot(step: int = 3, seed: int = 2**62) -> Snapshot:
    latents = np.random.default_rng(step).standard_normal((1, 4, 16, 8, 8))
    tensors = {"latents": latents.astype(np.float16), "random": np.arange(256, dtype=np.uint8)}
    return Snapshot(step, seed, {**tensors, "scheduler.last": latents.astype(np.float32)[:, :, ::2]})


def best(folder: Path, identity: Identity = IDENTITY) -> int | None:
    return next((found.step for found in readable(folder.parent, folder.name, identity, 100)), None)


def put(folder: Path, fence: int, step: int) -> Path:
    assert write(folder, fence, snapshot(step), IDENTITY)
    return folder / f"{fence}-{step}.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = put(tmp_path, 7, 3)
    found, expected = read(path, IDENTITY, 100), snapshot()
    assert (found.step, found.seed) == (3, 2**62)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert (found.tensors[name] == tensor).all()
    assert names(tmp_path) == ["7-3.safetensors"]


def test_the_most_advanced_wins_and_of_equals_the_newest_attempt(tmp_path: Path) -> None:
    for fence, step in [(5, 9), (7, 4), (6, 10), (7, 10)]:
        put(tmp_path, fence, step)
    found = [found.step for found in readable(tmp_path.parent, tmp_path.name, IDENTITY, 100)]
    assert found == [10, 10, 9, 4]
    (tmp_path / "6-10.safetensors").write_bytes(b"")
    assert [found.step for found in readable(tmp_path.parent, tmp_path.name, IDENTITY, 100)] == [10, 9, 4]


def test_another_model_or_another_request_is_no_start(tmp_path: Path) -> None:
    put(tmp_path, 7, 3)
    assert best(tmp_path, replace(IDENTITY, fingerprint="other")) is None
    assert best(tmp_path, replace(IDENTITY, request="other")) is None
    assert best(tmp_path) == 3


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def link(path: Path) -> None:
    moved = path.rename(path.parent / "elsewhere")
    path.symlink_to(moved)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    os.open(path, os.O_RDWR)  # somebody may write into it later


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "only a length": lambda path: path.write_bytes(b"\xff" * 8),
    "deep header": lambda path: path.write_bytes((20_000).to_bytes(8, "little") + b"[" * 20_000),
    "text": lambda path: path.write_text("not a checkpoint"),
    "list": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "first byte": lambda path: flip(path, 0),
    "one bit of data": lambda path: flip(path, -1000),
    "cut in the header": lambda path: cut(path, 0.01),
    "cut in the middle": lambda path: cut(path, 0.5),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "huge": lambda path: os.truncate(path, checkpoint.SIZE_LIMIT + 1),
    "symbolic link": link,
    "pipe": fifo,
    "folder": folder,
    "dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_told_and_the_next_best_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, 7, 4)
    DAMAGES[damage](put(tmp_path, 7, 9))
    with caplog.at_level(logging.WARNING):
        assert best(tmp_path) == 4
    assert "7-9.safetensors ignored" in caplog.text
    (tmp_path / "7-4.safetensors").unlink()
    assert best(tmp_path) is None


def test_no_bit_of_the_header_can_change_unnoticed(tmp_path: Path) -> None:
    path = put(tmp_path, 7, 9)
    content = path.read_bytes()
    for at in range(8 + int.from_bytes(content[:8], "little")):
        flip(path, at)
        assert best(tmp_path) is None, f"byte {at}: {content[max(0, at - 20) : at + 20]!r}"
        path.write_bytes(content)
    assert best(tmp_path) == 9


def test_a_step_outside_the_request_is_no_start(tmp_path: Path) -> None:
    put(tmp_path, 7, 9)
    assert list(readable(tmp_path.parent, tmp_path.name, IDENTITY, 8)) == []
    assert len(list(readable(tmp_path.parent, tmp_path.name, IDENTITY, 9))) == 1


def test_foreign_files_are_left_alone_and_a_missing_folder_is_an_empty_one(tmp_path: Path) -> None:
    foreign = ["notes.txt", ".7-4.safetensors", "7-4.safetensors.bak", "x-4.safetensors", "7--4.safetensors"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"x")
    assert best(tmp_path) is None
    prune(tmp_path, 9, 99)
    assert names(tmp_path) == sorted(foreign)
    assert best(tmp_path / "none") is None
    assert best(tmp_path / "notes.txt") is None
    (tmp_path / "linked").symlink_to(tmp_path)
    assert best(tmp_path / "linked") is None
    (tmp_path / "real").mkdir()
    put(tmp_path / "real", 7, 3)
    assert [found.step for found in readable(tmp_path, "real", IDENTITY, 100)] == [3]
    assert list(readable(tmp_path, "linked/real", IDENTITY, 100)) == []


def test_the_older_ones_go_and_a_newer_attempts_never_do(tmp_path: Path) -> None:
    for fence, step in [(5, 2), (5, 30), (6, 10), (6, 20), (7, 15), (7, 40)]:
        put(tmp_path, fence, step)
    prune(tmp_path, 6, 20)
    assert names(tmp_path) == [f"{one}.safetensors" for one in ("5-30", "6-20", "7-15", "7-40")]


def test_what_a_killed_writer_left_goes_and_a_newer_ones_unfinished_file_stays(tmp_path: Path) -> None:
    for name in (".5-9.safetensors.12.tmp", ".6-9.safetensors.12.tmp", ".7-9.safetensors.12.tmp"):
        (tmp_path / name).write_bytes(b"half")
    put(tmp_path, 6, 10)
    prune(tmp_path, 6, 10)
    assert names(tmp_path) == [".6-9.safetensors.12.tmp", ".7-9.safetensors.12.tmp", "6-10.safetensors"]


def test_it_is_on_disk_before_it_gets_its_name_and_the_name_is_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name[:4]}")
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    put(tmp_path, 7, 3)
    assert done == ["fsync .7-3", "rename", f"fsync {tmp_path.name[:4]}"]


def test_nothing_is_left_when_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    assert not write(tmp_path, 7, snapshot(), IDENTITY, lambda: False)
    assert names(tmp_path) == []


def test_a_committed_job_gets_no_checkpoint_of_a_zombie(tmp_path: Path) -> None:
    made = tmp_path / "checkpoint"
    made.mkdir()
    (tmp_path / "COMMIT").touch()
    assert not write(made, 7, snapshot(), IDENTITY)
    assert names(made) == []


def test_a_disk_that_refuses_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 7, snapshot(), IDENTITY)
    assert names(tmp_path) == []


def test_the_request_hash_covers_what_makes_the_latents() -> None:
    request, plain = VideoRequest("a cat", frames=16), MemorySettings()
    changed: list[dict[str, Any]] = [{"prompt": "x"}, {"negative_prompt": "x"}, {"width": 64}, {"height": 64}]
    changed += [{"frames": 8}, {"steps": 5}, {"cfg_scale": 1.0}, {"seed": 1}, {"context_batch_size": 8}]
    hashes = {request_hash(replace(request, **change), plain) for change in changed}
    assert len(hashes | {request_hash(request, plain)}) == len(changed) + 1
    assert request_hash(request, MemorySettings(8)) == request_hash(replace(request, context_batch_size=8), plain)
    for same in (MemorySettings(vae_tiling=True), MemorySettings(cpu_offload=True), MemorySettings(16)):
        assert request_hash(request, same) == request_hash(request, plain)
    played = replace(request, fps=30, format=["gif", "frames"], loop_number=3)
    assert request_hash(played, plain) == request_hash(request, plain)
