from __future__ import annotations

import time
from pathlib import Path

import pytest

from webui import volumes
from webui.volumes import MARKER, Volumes


def roots(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("models", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MARKER).touch()
    return tmp_path / "models", tmp_path / "jobs"


@pytest.mark.parametrize("missing", ["models", "jobs"])
def test_each_marker_is_needed(tmp_path: Path, missing: str) -> None:
    watched = Volumes(*roots(tmp_path))
    assert watched.look() is None
    (tmp_path / missing / MARKER).unlink()
    assert f"{missing}/{MARKER} is missing" in (watched.look() or "")


def test_before_the_first_look_nothing_is_taken_for_granted(tmp_path: Path) -> None:
    assert Volumes(*roots(tmp_path)).problem() == "storage was not looked at yet"


def test_storage_that_hangs_is_a_problem_and_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Volumes):
        hang = False

        def look(self) -> str | None:
            while self.hang:
                time.sleep(0.01)
            return super().look()

    monkeypatch.setattr(volumes, "STALE_SECONDS", 0.2)
    watched = Hanging(*roots(tmp_path), interval=0.02)
    watched.watch()
    wait_until(lambda: watched.problem() is None)
    watched.hang = True
    wait_until(lambda: "has not answered" in (watched.problem() or ""))
    watched.hang = False
    wait_until(lambda: watched.problem() is None)


def test_an_input_output_error_is_told_and_not_the_end(tmp_path: Path) -> None:
    class Failing(Volumes):
        fail = True

        def look(self) -> str | None:
            if self.fail:
                raise OSError(5, "Input/output error")
            return super().look()

    watched = Failing(*roots(tmp_path), interval=0.01)
    watched.watch()
    wait_until(lambda: "Input/output error" in (watched.problem() or ""))
    watched.fail = False
    wait_until(lambda: watched.problem() is None)


def wait_until(happened: object) -> None:
    assert callable(happened)
    deadline = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
