"""What both example files render to, byte by byte. A change is looked at in the diff and taken with --update-golden."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator import tree
from generator.checks import check
from generator.load import load
from generator.plan import plan
from generator.render import render
from generator.sources import ROOT, read_sources

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["example", "demo"])
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    loaded = load(ROOT / "config" / f"cluster.{name}.yaml")
    assert check(loaded) == []
    rendered = {
        f"{host}/{path}": content
        for host, files in render(plan(loaded.cluster), read_sources())
        for path, content in files.items()
    }
    expected = HERE / name
    if request.config.getoption("--update-golden"):
        _replace(expected, rendered)
    committed = {
        path.relative_to(expected).as_posix(): path.read_bytes() for path in expected.rglob("*") if path.is_file()
    }
    assert committed.keys() == rendered.keys()
    for path, content in rendered.items():
        change = tree.Change(tree.Kind.CHANGED, path, committed[path], content)
        assert committed[path] == content, "\n".join(change.lines())


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
