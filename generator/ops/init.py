"""`init`: write a commented cluster.yaml to start from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from generator.errors import Problem, UserError

TEMPLATE = Path(__file__).resolve().parents[2] / "config" / "cluster.example.yaml"
"""The example is the template, the documentation and the schema's test in one."""


def init(target: Path, *, force: bool = False) -> Path:
    """The whole file appears or none of it; an existing file is replaced only by `force`."""
    if target.is_dir():
        raise UserError(Problem("this is a folder; name the file to write, like cluster.yaml in it", str(target)))
    try:
        write_whole(target, TEMPLATE.read_bytes(), force=force)
    except FileExistsError:
        hint = "exists already; name another file, or replace it with --force"
        raise UserError(Problem(hint, str(target))) from None
    except OSError as error:
        hint = f"cannot be written ({error.strerror}); nothing was changed, check the folder, its owner and free space"
        raise UserError(Problem(hint, str(target))) from None
    return target


def write_whole(target: Path, content: bytes, *, force: bool) -> None:
    """All of `content` or nothing of it. FileExistsError without `force`; OSError when the folder or disk refuses."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        Path(name).chmod(0o644)  # no secrets in it, and mkstemp's 0600 would lock colleagues out
        if force:
            Path(name).replace(target)
        else:
            os.link(name, target)  # unlike a rename it refuses to overwrite a file that appeared meanwhile
    finally:
        Path(name).unlink(missing_ok=True)
