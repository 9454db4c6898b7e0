from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from generator.checks import check
from generator.errors import UserError
from generator.load import load
from generator.ops.init import TEMPLATE, init


def test_init_writes_the_example(tmp_path: Path) -> None:
    target = init(tmp_path / "cluster.yaml")
    assert target.read_bytes() == TEMPLATE.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert check(load(target)) == []
    assert list(tmp_path.iterdir()) == [target]


def test_init_overwrites_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "cluster.yaml"
    target.write_text("mine")
    with pytest.raises(UserError, match="exists already; name another file, or replace it with --force"):
        init(target)
    assert target.read_text() == "mine"
    init(target, force=True)
    assert target.read_bytes() == TEMPLATE.read_bytes()
    assert list(tmp_path.iterdir()) == [target]


def test_init_does_not_write_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").symlink_to("elsewhere")
    with pytest.raises(UserError, match="exists already"):
        init(tmp_path / "cluster.yaml")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "cluster.yaml"
    sync = os.fsync

    def somebody_else_writes(descriptor: int) -> None:
        target.write_text("theirs")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", somebody_else_writes)
    with pytest.raises(UserError, match="exists already"):
        init(target)
    assert target.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_write_leaves_nothing_behind_and_the_old_file_whole(tmp_path: Path) -> None:
    """A limit on file sizes stops the write half-way, as a full disk does."""
    target = tmp_path / "cluster.yaml"
    target.write_text("mine")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); nothing was changed"):
            init(target, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_or_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a folder; name the file to write"):
        init(tmp_path, force=True)
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        init(tmp_path / "missing" / "cluster.yaml")
