from __future__ import annotations

from pathlib import Path

import pytest

from webui import demo_models


def test_what_is_there_is_left_alone_and_what_is_missing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(str(folder.parent.name))
        (folder / "weights").chmod(0o600)

    monkeypatch.setattr(demo_models, "_maker", lambda kind: make)
    first = list(demo_models.make_models(tmp_path))
    assert [line.rpartition(": ")[2] for line in first] == ["made", "made"]
    assert (tmp_path / "checkpoint/tiny/weights").stat().st_mode & 0o777 == 0o644

    (tmp_path / "checkpoint/tiny/weights").write_text("kept")
    second = list(demo_models.make_models(tmp_path))
    assert [line.rpartition(": ")[2] for line in second] == ["is there already"] * 2
    assert (tmp_path / "checkpoint/tiny/weights").read_text() == "kept"


def test_a_failure_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_models, "_maker", lambda kind: fail)
    with pytest.raises(OSError, match="No space"):
        list(demo_models.make_models(tmp_path))
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_the_slower_of_two_keeps_what_the_faster_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_late(folder: Path) -> None:
        folder.mkdir()
        winner = folder.parent / "tiny"
        winner.mkdir()
        (winner / "weights").write_text("winner")

    monkeypatch.setattr(demo_models, "_maker", lambda kind: make_late)
    assert all(line.endswith("is there already") for line in demo_models.make_models(tmp_path))
    assert (tmp_path / "checkpoint/tiny/weights").read_text() == "winner"
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["tiny"]
