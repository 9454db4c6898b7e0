from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from generator.cli import app
from generator.docker import Engine
from generator.errors import Unhealthy, UserError
from generator.ops import demo
from generator.progress import Mode, Progress

RESULT = demo.Result(
    "http://127.0.0.1:8080", "k" * 43, "job", f"/{'long/' * 40}x.mp4", "0", demo.Recovery("a", 6, "b", 1.2)
)


def test_what_is_to_be_copied_stands_on_one_line() -> None:
    lines = demo.summary(RESULT, Path("my demo"), keep=True).splitlines()
    assert any(line.endswith(RESULT.video) for line in lines)
    assert any(
        line.endswith(f"curl -H 'Authorization: Bearer {RESULT.key}' {RESULT.url}/api/v1/cluster") for line in lines
    )

    assert any("untrained placeholder model" in line for line in lines), "nobody takes its pictures for AnimateDiff's"
    assert any("demo down --dir 'my demo'" in line for line in lines)


def test_only_what_the_demo_made_is_removed(tmp_path: Path) -> None:
    """Interrupted before it had rendered anything: nothing runs, so nothing has to be stopped."""
    mine = demo.Demo(tmp_path / "demo")
    with mine.locked():
        mine.cluster_file.write_text("name: half-writ")
        mine.videos.mkdir()
        (mine.folder / "notes.txt").write_text("a person's own")
        with pytest.raises(UserError, match="another demo is at work"):
            demo.remove(mine, Engine(), Progress(Mode.QUIET))
    demo.remove(mine, Engine(), Progress(Mode.QUIET))
    assert [path.name for path in mine.folder.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_a_demo(tmp_path: Path) -> None:
    mine = demo.Demo(tmp_path / "demo")
    with mine.locked():
        pass
    demo.remove(mine, Engine(), Progress(Mode.QUIET))
    assert not mine.folder.exists()


def test_there_is_no_port_above_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no free port"):
        demo.free_port(1 << 16)


@pytest.mark.parametrize("keep", [True, False])
def test_without_keep_nothing_is_left_of_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    stopped: list[demo.Demo] = []

    def fail(*_: object) -> None:
        raise Unhealthy("the job missed its deadline")

    monkeypatch.setattr("generator.cli.ensure_engine", lambda **_: Engine())
    monkeypatch.setattr(demo, "run", fail)
    monkeypatch.setattr(demo, "stop", lambda one, *_: stopped.append(one))
    words = ["demo", "--dir", str(tmp_path), *([] if keep else ["--no-keep"])]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, Unhealthy)
    assert [one.folder for one in stopped] == ([] if keep else [tmp_path])
