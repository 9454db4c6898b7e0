from __future__ import annotations

from pathlib import Path

import pytest

from webui import folders
from webui.engine.base import EngineError
from webui.folders import make_folder

DAY, JOB = "2026/11/22", "2026/11/22/job/attempts/1"


def test_a_folder_is_made_with_all_above_it_and_may_be_there(tmp_path: Path) -> None:
    assert make_folder(tmp_path, JOB) == make_folder(tmp_path, JOB) == tmp_path / JOB
    assert (tmp_path / JOB).is_dir()


def test_the_root_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "not mounted", JOB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_day_that_is_tidied_away_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """At midnight after a quiet day, say: a whole generation would be lost with it."""
    real, removed = folders.sync, []

    def remove_day(path: Path) -> None:
        real(path)
        if path == tmp_path / "2026/11" and len(removed) < times:
            (tmp_path / DAY).rmdir()
            removed.append(path)

    monkeypatch.setattr(folders, "sync", remove_day)
    assert make_folder(tmp_path, JOB).is_dir()
    assert len(removed) == times


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "2026").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="symbolic link"):
        make_folder(tmp_path, JOB)
    assert list((tmp_path / "elsewhere").iterdir()) == []
