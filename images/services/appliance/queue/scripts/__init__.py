"""The queue's Lua scripts: each file of NAMES, with those of SHARED in front, is one atomic move."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from appliance import keys
from appliance.queue.counts import BOUNDS

# A full memory stops new jobs, never the end of accepted ones: what the others write is little, and tick frees some.
FLAGS = dict.fromkeys(
    ("claim", "beat", "commit", "commit_and_claim", "fail", "cancel", "tick", "worker", "repair"), "allow-oom"
)
FLAGS |= dict.fromkeys(("stats", "lines", "past"), "no-writes")  # also while Redis takes no writes
SHARED = (  # each uses those before it
    "shared.lua",
    "counting.lua",
    "adding.lua",
    "attempts.lua",
    "passing.lua",
    "claiming.lua",
    "committing.lua",
)
# Functions of the usual scripts' unusual turns.
SELDOM = ("enter_ready", "reclaim", "reap_expired", "expire_waiting", "could_run")
NAMES = (
    "submit",
    "claim",
    "beat",
    "commit",
    "commit_and_claim",
    "fail",
    "cancel",
    "tick",
    "stats",
    "worker",
    "requeue_dead",
    "repair",
    "past",
    "lines",
)


@dataclass(frozen=True)
class Script:
    name: str
    source: str
    sha1: str


def load_scripts(settings: Mapping[str, int]) -> dict[str, Script]:
    """`settings` become the scripts' C.*, the keys their K.*: written into the text, they cost nothing at a call."""
    folder = files(__name__)
    values = {f"K.{name}": json.dumps(key) for name, key in keys.SCRIPT_KEYS.items()}
    values |= {f"C.{name}": json.dumps(value) for name, value in settings.items()}
    values["C.bounds"] = "{" + ", ".join(f"{bound:g}" for bound in BOUNDS) + "}"

    def read(part: str) -> str:
        text = re.sub(r"^ *--.*\n", "", (folder / part).read_text(encoding="utf-8"), flags=re.MULTILINE)
        return re.sub(r"\b[KC]\.\w+", lambda found: values[found[0]], text)

    shared = "".join(map(read, SHARED))
    return {name: _script(name, _with_needed(shared, read(f"{name}.lua"))) for name in NAMES}


def _with_needed(shared: str, own: str) -> str:
    """Each call defines all functions anew, which costs as much as its work: only those that it may use are there.

    Those of SELDOM are there as a shell that defines the function, and all that only it uses, when it is called.
    """
    parts = re.split(r"^(?=local )", shared, flags=re.MULTILINE)
    definitions = {found[1]: part for part in parts if (found := re.match(r"local (?:function )?(\w+)", part))}
    # The functions share some values; a constant may be made anew.
    values = [definitions[name] for name in _needed(own, definitions) if _is_value(name, definitions[name])]
    outside = _needed(own + "".join(values), definitions | dict.fromkeys(SELDOM, ""))
    inside = {name: part for name, part in definitions.items() if name not in outside}
    texts = [_shell(name, definitions[name], inside) if name in SELDOM else definitions[name] for name in outside]
    return "".join(texts) + own


def _needed(text: str, definitions: Mapping[str, str]) -> list[str]:
    """The names, in their order, of what `text` uses, and of what that uses."""
    names: list[str] = []
    for name, definition in reversed(list(definitions.items())):
        # Neither a key's name ("{q}:lease") nor a field's is a use.
        if re.search(rf"(?<![\w.:'\"]){name}\b", text):
            text = definition + text
            names.insert(0, name)
    return names


def _is_value(name: str, definition: str) -> bool:
    is_constant = name.isupper() and "_" in name  # `A` is none
    return not definition.startswith("local function ") and not is_constant


def _shell(name: str, definition: str, others: Mapping[str, str]) -> str:
    inside = "".join(others[other] for other in _needed(definition, others))
    return f"local function {name}(...)\n{inside}{definition}return {name}(...)\nend\n"


def _script(name: str, source: str) -> Script:
    if name in FLAGS:
        source = f"#!lua flags={FLAGS[name]}\n{source}"
    # SHA-1 is what EVALSHA wants; nothing here depends on its strength.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
