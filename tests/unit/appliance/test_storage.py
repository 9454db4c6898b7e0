from __future__ import annotations

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


def test_only_the_winners_files_stay(root: Path) -> None:
    storage.remove_losers(root, storage.write_commit(root, commit_of(2)))
    assert [path.name for path in (root / job_folder(JOB) / "attempts").iterdir()] == ["2"]


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
