"""Pydantic's errors in an operator's words: where, what stands there, what to do. No pattern or type name gets out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from ipaddress import IPv4Network
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from generator import model
from generator.errors import Problem
from generator.marks import FileKind, Mark, Path, show, show_path

DICT_KEY = "[key]"
"""Pydantic's last step of a location when a mapping's key is meant, not its value."""

PATTERN_HINTS = {
    model.DNS_LABEL: "not a usable name; use at most 40 lower case letters, digits and dashes, no dash at the ends",
    model.FILE_NAME: "not a plain file name; use letters, digits, dots, dashes and underscores, and no folder",
    model.GPU_UUID: "not a GPU UUID; run nvidia-smi -L on {host}",
    model.ABSOLUTE_PATH: "not an absolute path; start it with / and use letters, digits and . _ - only",
    model.REGISTRY: "not a registry; write it like registry.example.net:5000/team, without https:// and a final slash",
    model.TAG: "not an image tag; use at most 128 letters, digits, dots, dashes and underscores",
    model.HOST_NAME: "not a host name or address; use letters, digits, dots and dashes",
    model.SERVER_NAME: "not a host name; use letters, digits, dots and dashes, or _ for any name",
    model.MOUNT_OPTIONS: "not a list of mount options; write them like nfsvers=4.2,hard, without spaces",
    model.SHA256: "not a SHA-256 checksum; paste the 64 characters that sha256sum prints",
    model.ALLOCATOR: "not an allocator setting; write it like expandable_segments:True, without spaces",
    model.USER_NAME: "not a user's name; use at most 64 letters, digits, dots, dashes and underscores",
    model.GPU_MODEL: "not a GPU's model; write it as `nvidia-smi -L` does, like A10G",
    model.DAY: 'not a day; write it in quotes, like "2026-01-15"',
    model.INTERFACE: "not a network interface; `ip -4 address` on the gateway hosts lists them",
    model.IMAGE: "not an image; write it like registry.example.net/a1111:1.10.1",
    model.ACME_DIRECTORY: "not an ACME directory; write its address, like https://acme.example.net/directory",
    model.EMAIL: "not an e-mail address; write one like admin@example.net, or leave it out",
    model.HOST_PORT: "not a server with its port; write it like mail.example.net:587",
    model.LOGIN: "not a login; use at most 200 plain characters without spaces",
    model.FOREIGN_URL: "not an address; write it like http://{{address}}:1786{{index}}, without a path",
    model.SOURCE: "not a usable source; use at most 500 plain characters without spaces",
}
_YAML_BOOLS = frozenset({"true", "false", "yes", "no", "on", "off"})


def explain(
    errors: Iterable[ErrorDetails], marks: Mapping[Path, Mark], file: str, told: set[str], kind: FileKind
) -> list[Problem]:
    """`told` holds the paths that have a problem already; nothing is said about those a second time."""
    problems = []
    for error in errors:
        path = tuple(step for step in error["loc"] if step != DICT_KEY)
        if show_path(path) not in told and not _follows_from_another(error):
            problems.append(_problem(error, path, marks, file, kind))
    return problems


def nearest_line(path: Path, marks: Mapping[Path, Mark]) -> int:
    """The line of a value or, where it is not in the file, of what it would stand in."""
    while path and path not in marks:
        path = path[:-1]
    return marks[path].line if path in marks else 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.65)
    return f'; did you mean "{close[0]}"?' if close else ""


def _follows_from_another(error: ErrorDetails) -> bool:
    """A list whose items are all wrong is also reported as too short; that says nothing new."""
    return error["type"] == "too_short" and bool(error["input"])


def _problem(error: ErrorDetails, path: Path, marks: Mapping[Path, Mark], file: str, kind: FileKind) -> Problem:
    written = error["input"]
    raw = marks[path].raw if path in marks else ""
    hint = _hint(error, path, raw, kind)
    value = "" if error["type"] == "missing" else _value(written, raw)
    if error["loc"][-1] == DICT_KEY or error["type"] == "extra_forbidden":
        value = ""  # the key itself is meant, and it is the last step of the path
    return Problem(hint, file, nearest_line(path, marks), show_path(path), value)


def _value(written: object, raw: str) -> str:
    if isinstance(written, dict):
        return "a mapping"
    if isinstance(written, list):
        return "a list"
    return show(raw, quote=isinstance(written, str)) if raw or written == "" else "nothing"


def _hint(error: ErrorDetails, path: Path, raw: str, file: FileKind) -> str:
    kind, written, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return f"missing; add it ({file.example} shows how)"
    if kind == "extra_forbidden":
        return _unknown_key(path, file.root)
    if kind == "string_pattern_mismatch":
        host = str(path[1]) if path[0] == "hosts" and len(path) > 1 else "the host"
        hints = {**PATTERN_HINTS, **file.patterns}
        return hints.get(context["pattern"], _fallback(file)).format(host=host)
    if kind == "enum":
        return _choice(context["expected"], written, raw)
    if written is None:
        return "is empty; give it a value or remove the key"
    if kind == "string_type":
        return _not_text(written, raw)
    if kind == "value_error":
        return _network(written) if path[-1] == "subnet" else "not an IPv4 address; write it like 192.168.1.10"
    return _type_or_bound(kind, written, context) or _fallback(file)


def _fallback(file: FileKind) -> str:
    return f"not a valid value here; {file.example} shows what is"


def _type_or_bound(kind: str, written: object, context: Mapping[str, Any]) -> str:
    quoted = isinstance(written, str) and re.fullmatch(r"\d+(\.\d+)?", written)
    bare = ", without quotes" if quoted else ""
    match kind:
        case "int_type":
            return f"must be a whole number{bare}"
        case "float_type":
            return f"must be a number{bare}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:,}".replace(",", "")
        case "model_type" | "dict_type":
            return "must hold keys and values, each on an indented line of its own"
        case "tuple_type":
            return "must be a list: [one, two], or one `- item` a line"
        case "too_short":
            return "must not be empty; add at least one entry"
        case "too_long":
            return f"has too many entries; at most {context['max_length']} are allowed"
    return ""


def _not_text(written: object, raw: str) -> str:
    if isinstance(written, dict | list):
        return "must be a single value"
    if raw.lower() in _YAML_BOOLS:
        read_as = str(written).lower()
        return f'a bare {raw} is read as {read_as}, not as text; write "{raw}" in quotes if it is meant'
    return f'is read as a number, not as text; write "{raw}" in quotes'


def _choice(expected: str, written: object, raw: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    hint = f"not one of {', '.join(choices)}"
    if isinstance(written, bool) and "none" in choices:
        return f'{hint}; write "none" to switch it off'
    return hint + did_you_mean(raw if isinstance(written, str) else "", choices)


def _network(written: object) -> str:
    example = "192.168.1.0/24"
    try:
        return f"has host bits set; did you mean {IPv4Network(str(written), strict=False)}?"
    except ValueError:
        return f"not an IPv4 network; write it like {example}"


def _unknown_key(path: Path, root: type[BaseModel]) -> str:
    key = str(path[-1])
    allowed = _keys_at(path[:-1], root)
    suggestion = did_you_mean(key, allowed)
    elsewhere = _sections_with(root).get(key, ())
    if not suggestion and elsewhere:
        suggestion = f"; it belongs in {' or '.join(elsewhere)}"
    return f"unknown key{suggestion} (allowed here: {', '.join(allowed)})"


def _keys_at(path: Path, root: type[BaseModel]) -> list[str]:
    found: Any = root
    for step in path:
        found = _inner(found.model_fields[step].annotation if _is_part(found) else found)
    return list(found.model_fields) if _is_part(found) else []


def _inner(annotation: Any) -> Any:
    """The section inside `X | None`; a list or mapping of sections becomes its section at the next step."""
    if get_origin(annotation) in (tuple, dict):
        return _Container(annotation)
    if isinstance(annotation, _Container):
        return next(arg for arg in get_args(annotation.of) if _is_part(arg))
    return next((arg for arg in get_args(annotation) if _is_part(arg)), annotation)


class _Container:
    def __init__(self, of: Any) -> None:
        self.of = of


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def _sections_with(root: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Key → the top-level sections that have it."""
    found: dict[str, tuple[str, ...]] = {}
    for section, info in root.model_fields.items():
        if _is_part(annotation := info.annotation) and annotation is not None:
            for key in annotation.model_fields:
                found[key] = (*found.get(key, ()), section)
    return found
