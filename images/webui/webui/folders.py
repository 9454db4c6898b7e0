"""Folders on the jobs volume, which is shared: made durable, and never reached through a link."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from webui.durable import sync
from webui.engine.base import EngineError


def make_folder(root: Path, relative: str) -> Path:
    """Makes the folder durable, but never the root: a missing mount must not be papered over."""
    for _ in range(2):
        # A day's folder, empty until now, may be removed with the last old job in it.
        with contextlib.suppress(FileNotFoundError):
            return _make(root, relative)
    return _make(root, relative)


def _make(root: Path, relative: str) -> Path:
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
