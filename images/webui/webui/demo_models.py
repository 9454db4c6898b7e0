"""Puts the demo's tiny models in place once; what makes them is imported only if something is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

NAME = "tiny"


def make_models(root: Path) -> Iterator[str]:
    """Makes what is missing under `root` and tells about each; safe to run again, also at the same time."""
    for kind in ("checkpoint", "motion_module"):
        target = root / kind / NAME
        made = not target.is_dir() and _make(target, _maker(kind))
        yield f"{target}: {'made' if made else 'is there already'}"


def _maker(kind: str) -> Callable[[Path], None]:
    from webui.tiny_models import make_checkpoint, make_motion_module

    return make_checkpoint if kind == "checkpoint" else make_motion_module


def _make(target: Path, make: Callable[[Path], None]) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        make(temporary)
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files for their owner alone
        os.sync()  # a power cut must not leave the final name on empty files
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody else was faster
                raise
            return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
