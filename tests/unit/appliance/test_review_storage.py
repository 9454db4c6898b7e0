"""What has to be on disk before the next step, and what has to stay there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from appliance import storage
from appliance.errors import StorageError
from appliance.job import attempt_folder, job_folder, new_job_id


def test_new_folders_are_made_durable_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes into them finds them made, and cannot know that their names are not on disk yet."""
    synced: list[Path] = []
    monkeypatch.setattr(storage, "_sync_folder", synced.append)
    job_id = new_job_id()
    storage.make_attempt_folder(tmp_path, job_id, 7)
    folder = tmp_path / attempt_folder(job_id, 7)
    assert folder.is_dir()
    parents = [tmp_path / path for path in reversed(folder.relative_to(tmp_path).parents)]
    assert synced == parents
    synced.clear()
    storage.make_attempt_folder(tmp_path, job_id, 7)
    assert synced == []


def test_the_root_is_never_made(tmp_path: Path) -> None:
    """A volume that has just been unmounted must not be papered over by a folder on the host's disk."""
    with pytest.raises(StorageError):
        storage.make_attempt_folder(tmp_path / "unmounted", new_job_id(), 7)
    assert not (tmp_path / "unmounted").exists()


def test_a_day_that_is_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another agent removes the last old job of a day, and the empty day with it, just as a new job begins in it."""
    job_id = new_job_id()
    day = (tmp_path / job_folder(job_id)).parent
    real, vanished = Path.mkdir, []

    def mkdir(self: Path) -> None:
        if self.parent == day and not vanished:
            vanished.append(day)
            day.rmdir()
        real(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    storage.make_attempt_folder(tmp_path, job_id, 7)
    assert vanished
    assert (tmp_path / attempt_folder(job_id, 7)).is_dir()


def test_a_winner_is_not_removed(tmp_path: Path) -> None:
    job_id = new_job_id()
    for fence in (7, 8):
        storage.make_attempt_folder(tmp_path, job_id, fence)
    storage.write_commit(tmp_path, storage.new_commit(job_id, 7, "a/0", ()))
    for fence in (7, 8):
        storage.remove_attempt(tmp_path, job_id, fence)
    assert [path.name for path in (tmp_path / job_folder(job_id) / "attempts").iterdir()] == ["7"]


def test_nothing_is_removed_while_the_winner_is_unknown(tmp_path: Path) -> None:
    job_id = new_job_id()
    storage.make_attempt_folder(tmp_path, job_id, 7)
    (tmp_path / job_folder(job_id) / "COMMIT").write_text("")
    with pytest.raises(StorageError):
        storage.remove_attempt(tmp_path, job_id, 7)
    assert (tmp_path / attempt_folder(job_id, 7)).is_dir()


def test_a_full_disk_leaves_no_half_written_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    job_id = new_job_id()
    storage.make_attempt_folder(tmp_path, job_id, 7)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space"):
        storage.write_commit(tmp_path, storage.new_commit(job_id, 7, "a/0", ()))
    assert [path.name for path in (tmp_path / job_folder(job_id)).iterdir()] == ["attempts"]


def test_what_is_said_of_a_job_has_no_path_in_it(tmp_path: Path) -> None:
    """Its user reads it: the folder's name, longer than any may be, stands for every other fault."""
    root = tmp_path / ("long" * 100)
    job_id = new_job_id()
    commit = storage.new_commit(job_id, 1, "a/0", (storage.ResultFile("video.mp4", "video/mp4", 1, "0" * 64),))
    for fail in (
        lambda: storage.read_commit(root, job_id),
        lambda: storage.write_commit(root, commit),
        lambda: storage.verify_files(root, job_id, 1, commit.files),
        lambda: storage.verify_files(tmp_path, job_id, 1, commit.files),
        lambda: storage.make_attempt_folder(root, job_id, 1),
        lambda: storage.write_result(root, job_id, 1, "video.mp4", "video/mp4", b"x"),
    ):
        with pytest.raises(StorageError) as caught:
            fail()
        assert str(tmp_path) not in str(caught.value)
        assert len(str(caught.value)) > 10
