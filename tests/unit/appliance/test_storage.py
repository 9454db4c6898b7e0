from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from appliance import storage
from appliance.__main__ import main
from appliance.errors import StorageError
from appliance.job import attempt_folder, job_folder, new_job_id

JOB = new_job_id()


def described(name: str = "video.mp4", size: int = 3) -> storage.ResultFile:
    return storage.ResultFile(name, "video/mp4", size, "0" * 64)


def commit_of(fence: int) -> storage.Commit:
    return storage.new_commit(JOB, fence, f"w/{fence}", (described(),))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    storage.prepare(tmp_path)
    for fence in (1, 2):
        storage.make_attempt_folder(tmp_path, JOB, fence)
        (tmp_path / attempt_folder(JOB, fence) / "video.mp4").write_bytes(b"abc")
    return tmp_path


def test_the_first_commit_wins_and_the_second_learns_who(root: Path) -> None:
    first, second = commit_of(1), commit_of(2)
    assert storage.write_commit(root, first) == first
    assert storage.write_commit(root, second) == first
    assert storage.write_commit(root, first) == first
    assert storage.read_commit(root, JOB) == first
    assert sorted(path.name for path in (root / job_folder(JOB)).iterdir()) == ["COMMIT", "attempts"]


def test_a_commit_whose_winner_has_tidied_up_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen between its temporary file and the link, while another attempt has won and removed the rest."""
    winner, real = commit_of(2), os.link

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", real)
        storage.remove_losers(root, storage.write_commit(root, winner))
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert storage.write_commit(root, commit_of(1)) == winner


def test_no_more_files_than_a_commit_can_describe_and_be_read_again(root: Path) -> None:
    """A COMMIT above the limit of its readers would make the job's result unreadable for ever."""
    files = tuple(described(f"frame-{number:04}.png") for number in range(128))
    for file in files:
        (root / attempt_folder(JOB, 1) / file.name).write_bytes(b"abc")
    storage.verify_files(root, JOB, 1, files)
    storage.write_commit(root, storage.new_commit(JOB, 1, "w", files))
    found = storage.read_commit(root, JOB)
    assert found is not None
    assert found.files == files
    with pytest.raises(storage.WrongFileError, match="12800 files, more than a COMMIT can describe"):
        storage.verify_files(root, JOB, 1, files * 100)


def test_only_the_winners_files_stay(root: Path) -> None:
    storage.remove_losers(root, storage.write_commit(root, commit_of(2)))
    assert [path.name for path in (root / job_folder(JOB) / "attempts").iterdir()] == ["2"]


def test_checkpoints_and_half_written_commits_go_with_the_losers(root: Path) -> None:
    folder = root / job_folder(JOB)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "1-5.safetensors").write_bytes(b"latents")
    (folder / ".COMMIT.1.77").write_text("of an agent that was killed while it wrote")
    storage.remove_losers(root, storage.write_commit(root, commit_of(2)))
    assert sorted(path.name for path in folder.iterdir()) == ["COMMIT", "attempts"]


def test_a_job_is_removed_with_all_it_has_and_its_empty_days(root: Path) -> None:
    storage.write_commit(root, commit_of(1))
    storage.remove_job(root, JOB)
    assert [path.name for path in root.iterdir()] == [storage.MARKER]
    storage.remove_job(root, JOB)


def test_a_day_with_other_jobs_stays(root: Path) -> None:
    other = root / Path(job_folder(JOB)).parent / "other"
    other.mkdir()
    storage.remove_job(root, JOB)
    assert list(other.parent.iterdir()) == [other]


def test_nothing_is_removed_from_a_volume_that_is_not_mounted(root: Path) -> None:
    (root / storage.MARKER).unlink()
    with pytest.raises(StorageError, match="not mounted"):
        storage.remove_job(root, JOB)
    assert (root / job_folder(JOB)).is_dir()


def test_a_folder_that_cannot_be_removed_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "rmtree", lambda path, ignore_errors: None)  # as with a file held open on NFS
    with pytest.raises(StorageError, match="cannot be removed"):
        storage.remove_job(root, JOB)


@pytest.mark.parametrize("job_id", ["", "..", "../../etc", "2026/11/22/x", JOB.upper(), f"{JOB}/..", "0" * 36])
def test_only_a_jobs_own_id_names_a_folder_to_remove(root: Path, job_id: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(StorageError):
        storage.remove_job(root, job_id)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("place", ["year", "day", "job", "attempts", "checkpoint"])
def test_a_link_never_leads_a_removal_out_of_the_volume(tmp_path: Path, place: str) -> None:
    root, elsewhere = tmp_path / "jobs", tmp_path / "elsewhere"
    storage.prepare(root)
    job = Path(job_folder(JOB))
    link = {"year": Path(job.parts[0]), "day": job.parent, "job": job}.get(place, job / place)
    inside = job.relative_to(link) if job.is_relative_to(link) else Path()
    treasure = elsewhere / inside / "1" / "treasure"
    treasure.parent.mkdir(parents=True)
    treasure.write_text("gold")
    if place in ("year", "day", "job"):
        (elsewhere / inside / "attempts" / "1").mkdir(parents=True)
        (elsewhere / inside / "checkpoint").mkdir()
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    storage.remove_losers(root, commit_of(2))
    storage.remove_attempt(root, JOB, 1)
    storage.remove_checkpoint(root, JOB, 1)
    with contextlib.suppress(StorageError):
        storage.remove_job(root, JOB)
    assert sorted(elsewhere.rglob("*")) == before
    assert treasure.read_text() == "gold"


def test_what_a_newer_attempt_goes_on_from_is_kept(root: Path) -> None:
    folder = root / job_folder(JOB) / "checkpoint"
    folder.mkdir(parents=True)
    newer = ["3-7.safetensors", ".3-8.safetensors.9.tmp", "10-1.safetensors"]
    for name in ("1-9.safetensors", "2-8.safetensors", ".2-9.safetensors.9.tmp", "odd", *newer):
        (folder / name).touch()
    storage.remove_checkpoint(root, JOB, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(newer)
    storage.remove_checkpoint(root, JOB, 10)
    assert not folder.exists(), "not even an empty folder is left"


def test_a_volume_may_be_mounted_through_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("mounts") / "jobs"
    link.symlink_to(root)
    storage.remove_losers(link, storage.write_commit(link, commit_of(2)))
    assert [path.name for path in (root / job_folder(JOB) / "attempts").iterdir()] == ["2"]
    storage.remove_job(link, JOB)
    assert not (root / job_folder(JOB)).exists()


def test_files_are_checked_before_the_commit(root: Path) -> None:
    storage.verify_files(root, JOB, 1, (described(),))
    for files in ((), (described(size=4),), (described(name="other.mp4"),)):
        with pytest.raises(StorageError):
            storage.verify_files(root, JOB, 1, files)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\\b", "a\0b"])
def test_file_names_cannot_leave_the_attempt(name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        storage.ResultFile.parse({"name": name, "media_type": "x", "size_bytes": 1, "sha256": "y"})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"job": 1, "files": [{}]}'])
def test_a_broken_commit_is_an_error_not_an_answer(root: Path, text: str) -> None:
    (root / job_folder(JOB) / "COMMIT").write_text(text)
    with pytest.raises(StorageError, match="COMMIT"):
        storage.read_commit(root, JOB)


def test_storage_init_verifies_then_creates_then_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {
        "APPLIANCE_NODE_NAME": "n",
        "APPLIANCE_JOBS_DIR": str(tmp_path / "jobs"),
        "APPLIANCE_MODELS_DIR": str(tmp_path / "models"),
    }
    assert main(["storage-init"], environment) == 1
    assert "--create" in capsys.readouterr().err
    assert not (tmp_path / "jobs").exists()
    assert main(["storage-init", "--create"], environment) == 0
    assert main(["storage-init"], environment) == 0
    assert storage.has_marker(tmp_path / "models")
    assert (tmp_path / "models" / "motion_module").is_dir()
