"""Reads the project's own `compose/` and `config/` folders: the one input of rendering besides cluster.yaml."""

from __future__ import annotations

from pathlib import Path

from generator.errors import UserError
from generator.render import Sources

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: templates, configuration and image contexts live beside this package."""


def read_sources(root: Path = ROOT) -> Sources:
    if not (root / "compose").is_dir():
        raise UserError(f"{root} holds no compose/ folder: run the generator from a checkout of the project")
    return Sources(compose=_texts(root / "compose", "*.j2"), config=_texts(root / "config", "*/**/*"))


def _texts(folder: Path, pattern: str) -> dict[str, str]:
    """Sorted, so that the result does not depend on the order in which a file system lists."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")  # an editor's swap file
    }
