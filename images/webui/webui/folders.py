"""Folders on the jobs volume, which is shared: made durable, and never reached through a link."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from webui.engine.base import EngineError
from webui.video import sync


def make_folder(root: Path, relative: str) -> Path:
    """Makes the folder durable, but never the root: a missing mount must not be papered over."""
    folder = root
    for folder in _parts(root, relative):
        try:
            folder.mkdir()
            sync(folder.parent)
        except FileExistsError:
            _refuse_link(folder)
    return folder


def refuse_links(root: Path, relative: str) -> None:
    for folder in _parts(root, relative):
        _refuse_link(folder)


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise EngineError("UNKNOWN", f"{folder} is a symbolic link")


def _parts(root: Path, relative: str) -> Iterator[Path]:
    folder = root
    for part in Path(relative).parts:
        folder = folder / part
        yield folder
