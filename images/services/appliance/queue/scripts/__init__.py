"""The queue's Lua scripts: each file of NAMES, with those of SHARED in front, is one atomic move."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from appliance import keys

# A full memory stops new jobs, never the end of accepted ones: what the others write is little, and tick frees some.
FLAGS = dict.fromkeys(("claim", "beat", "commit", "fail", "cancel", "tick", "worker", "repair"), "allow-oom") | {
    "stats": "no-writes"  # also while Redis takes no writes
}
SHARED = ("shared.lua", "attempts.lua", "passing.lua")  # each uses those before it
NAMES = (
    "submit",
    "claim",
    "beat",
    "commit",
    "fail",
    "cancel",
    "tick",
    "stats",
    "worker",
    "requeue_dead",
    "repair",
)


@dataclass(frozen=True)
class Script:
    name: str
    source: str
    sha1: str


def load_scripts(settings: Mapping[str, int]) -> dict[str, Script]:
    """`settings` become the scripts' table C: written into their text, they cost nothing at every call."""
    folder = files(__name__)
    shared = "".join(
        (
            _table("K", keys.SCRIPT_KEYS),
            _table("C", settings),
            *((folder / part).read_text(encoding="utf-8") for part in SHARED),
        )
    )
    return {name: _script(name, shared + (folder / f"{name}.lua").read_text(encoding="utf-8")) for name in NAMES}


def _table(name: str, values: Mapping[str, str] | Mapping[str, int]) -> str:
    # A JSON text or number is a Lua one too, as long as it is as plain as key names are.
    fields = ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    return f"local {name} = {{{fields}}}\n"


def _script(name: str, source: str) -> Script:
    if name in FLAGS:
        source = f"#!lua flags={FLAGS[name]}\n{source}"
    # SHA-1 is what EVALSHA wants; nothing here depends on its strength.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
