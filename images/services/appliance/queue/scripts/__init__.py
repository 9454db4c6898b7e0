"""The queue's Lua scripts: each file, with shared.lua in front, is one atomic move."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

# A full memory stops new jobs, never the end of accepted ones: what the others write is little, and tick frees some.
FLAGS = dict.fromkeys(("claim", "beat", "commit", "fail", "cancel", "tick", "worker"), "allow-oom") | {
    "stats": "no-writes"  # also while Redis takes no writes
}
NAMES = ("submit", "claim", "beat", "commit", "fail", "cancel", "tick", "stats", "worker")


@dataclass(frozen=True)
class Script:
    name: str
    source: str
    sha1: str


def load_scripts() -> dict[str, Script]:
    folder = files(__name__)
    shared = (folder / "shared.lua").read_text(encoding="utf-8")
    return {name: _script(name, shared + (folder / f"{name}.lua").read_text(encoding="utf-8")) for name in NAMES}


def _script(name: str, source: str) -> Script:
    if name in FLAGS:
        source = f"#!lua flags={FLAGS[name]}\n{source}"
    # SHA-1 is what EVALSHA wants; nothing here depends on its strength.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
