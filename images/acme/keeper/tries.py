"""The failed tries, kept on disk: a container that is started again and again must not burn the directory's limits."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def read(path: Path) -> list[float]:
    """Empty where there is none, or a damaged one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(document, list):
        return []
    return [float(moment) for moment in document if isinstance(moment, int | float)]


def write(path: Path, failures: Sequence[float]) -> None:
    replace(path, json.dumps(list(failures)).encode())


def replace(path: Path, content: bytes) -> None:
    """A reader sees the old content or the new one, never half of it; nor does one after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
