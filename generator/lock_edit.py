"""Puts an entry into the text of a models.lock.yaml and leaves every other character, comments too, as it was."""

from __future__ import annotations

import json
import re

import yaml

from generator.errors import UserError
from generator.models_lock import LockedModel, parse_lock

HEADER = """\
# models.lock.yaml: which model files the cluster uses, and what they must be byte for byte. Every key, commented:
# config/models.lock.example.yaml. `python -m generator models pull | verify | list | add` work with it.

models:
"""
_PLAIN = re.compile(r"[A-Za-z0-9(/][A-Za-z0-9 ._()/:?=&%~@+,;-]*\Z")


def with_entry(text: str, model: LockedModel, file: str) -> str:
    """`text` with `model` in it: in the place of an entry of the same kind and name, else behind the last.

    UserError with the entry to put in by hand where the file is written in a way that cannot be added to.
    """
    text = text if text.strip() else HEADER
    old = () if _is_begun(text) else parse_lock(text, file).lock.models
    index = next((number for number, one in enumerate(old) if one.place.lower() == model.place.lower()), None)
    try:
        edited = _appended(text, model) if index is None else _replaced(text, index, model)
        new = parse_lock(edited, file).lock.models
    except (_CannotEditError, UserError):
        new = ()
        edited = ""
    wanted = (*old, model) if index is None else (*old[:index], model, *old[index + 1 :])
    if new != wanted:
        entry = "\n".join(_lines(model, 2))
        raise UserError(f"{file}: cannot be added to as it is written; put this in by hand, under models:\n{entry}")
    return edited


class _CannotEditError(Exception):
    pass


def _is_begun(text: str) -> bool:
    """Nothing behind `models:` yet, which is no valid lock."""
    node = _models_node(text)
    return isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null")


def _models_node(text: str) -> yaml.Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        root = None
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "models":
                return value  # type: ignore[no-any-return]
    return None


def _appended(text: str, model: LockedModel) -> str:
    node = _models_node(text)
    if node is None:
        raise _CannotEditError
    newline = "\r\n" if "\r\n" in text else "\n"
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    if items and node.flow_style:  # type: ignore[attr-defined]
        raise _CannotEditError
    start, end = node.start_mark.index, node.end_mark.index
    if not items:
        text, at, column = text[:start] + text[end:], start, 2
    else:
        at, column = _last_index(node), node.start_mark.column
    at = _next_line(text, at)
    if at and not text[:at].endswith("\n"):
        text, at = text[:at] + newline + text[at:], at + len(newline)
    block = "".join(f"{line}{newline}" for line in _lines(model, column))
    return text[:at] + block + text[at:]


def _last_index(node: yaml.Node) -> int:
    """Where a block collection's last word ends: its own end mark lies behind the comments that follow it."""
    while not isinstance(node, yaml.ScalarNode) and not node.flow_style and node.value:  # type: ignore[attr-defined]
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _next_line(text: str, at: int) -> int:
    if at and text[at - 1] == "\n":
        return at
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _replaced(text: str, index: int, model: LockedModel) -> str:
    node = _models_node(text)
    entry = node.value[index] if isinstance(node, yaml.SequenceNode) else None
    if not isinstance(entry, yaml.MappingNode):
        raise _CannotEditError
    values = _values(model)
    edits: list[tuple[int, int, str]] = []
    for key, value in entry.value:
        wanted = values.pop(key.value, None)
        if key.value == "mirrors" or wanted is None or str(value.value) == str(getattr(model, key.value)):
            continue
        edits.append((value.start_mark.index, value.end_mark.index, wanted))
    if values.pop("mirrors", None) or (values and entry.flow_style):
        raise _CannotEditError
    if values:
        at, pad = _next_line(text, _last_index(entry)), " " * entry.start_mark.column
        newline = "\r\n" if "\r\n" in text else "\n"
        glue = "" if text[:at].endswith("\n") else newline
        edits.append((at, at, glue + "".join(f"{pad}{key}: {value}{newline}" for key, value in values.items())))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _lines(model: LockedModel, column: int) -> list[str]:
    lines = [f"{key}: {value}" for key, value in _values(model).items()]
    return [" " * column + ("  " if number else "- ") + line for number, line in enumerate(lines)]


def _values(model: LockedModel) -> dict[str, str]:
    values = {
        "name": _scalar(model.name),
        "kind": model.kind.value,
        "size": str(model.size),
        "sha256": _scalar(model.sha256),
    }
    if model.source:
        values["source"] = _scalar(model.source)
    if model.mirrors:
        values["mirrors"] = json.dumps(list(model.mirrors))
    if model.license:
        values["license"] = _scalar(model.license)
    return values


def _scalar(text: str) -> str:
    """Bare where every YAML reads it as this text, else in quotes."""
    bare = _PLAIN.match(text) and ": " not in text and not text.endswith((":", " "))
    if bare and yaml.safe_load(text) == text and not re.match(r"[\d.+-]", text):
        return text
    # JSON would write what lies beyond 16 bits as two halves, which YAML does not put together.
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)
