"""YAML text to plain data that remembers where each value stood.

Works on parser events with limits of its own, because PyYAML's composer recurses in C without a depth check and
expands aliases without bound. Only JSON's types come out: no tags, no dates, no merge keys. A plain scalar whose
meaning differs between YAML 1.1 and 1.2 (`010`, `1:30`, `2026-01-02`) is refused instead of guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import yaml
from pydantic import BaseModel

from generator.errors import Problem, UserError

MAX_DEPTH = 32
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; is a bracket not closed?"
MAX_NODES = 500_000
MAX_INT_DIGITS = 40
SHOWN = 60
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path: TypeAlias = tuple[str | int, ...]

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {
    word: value
    for value, words in ((True, "true yes on"), (False, "false no off"))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)\Z")
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAB_INDENT = re.compile(r"[ ]*\t\s*[^\s#]")
_NUMBER_START = frozenset("+-.0123456789")
_READ_AS = {"int": "a number", "float": "a number", "timestamp": "a date"}
_SYNTAX_HINTS = (
    ("mapping values are not allowed", "a second colon or a wrong indentation; put text that holds a colon in quotes"),
    ("could not find expected ':'", "this line, or the one before it, lacks its colon: write `key: value`"),
    ("did not find expected key", "the indentation does not match the lines above, or a quote ends too early"),
    ("expected <block end>", "the indentation does not match the lines above, or a quote ends too early"),
    ("did not find expected '-' indicator", "list items must all start with `- ` in the same column"),
    ("did not find expected ',' or", "a bracket or brace is not closed"),
    ("expected ',' or", "a bracket or brace is not closed"),
    ("unexpected end of stream", "a quote, bracket or brace is not closed"),
    ("cannot start any token", "text that starts with this character must be put in quotes"),
    ("tab", "use spaces instead of tabs for indentation"),
    ("escape", "in double quotes a backslash starts an escape; use single quotes"),
    ("block sequence entries are not allowed", "a list must start on a line of its own"),
    ("directive", "remove the line that starts with %"),
    ("expected the node content", "a value is missing, or text that starts with this character must be put in quotes"),
    ("did not find expected node content", "a value is missing, or a bracket is closed that was not opened"),
    ("expected alphabetic or numeric", "text that starts with & or * must be put in quotes"),
)


class Mark(NamedTuple):
    """Where a value stood (a mapping's value counts as standing at its key) and how it was written.

    `raw` is empty for mappings and lists.
    """

    line: int
    raw: str


@dataclass(frozen=True)
class FileKind:
    """What messages about one kind of file say."""

    name: str
    start: str
    """How one comes by a first one."""
    example: str
    """What shows every key."""
    keys: str
    """Some keys of its top, as an example."""
    root: type[BaseModel]
    patterns: Mapping[str, str] = field(default_factory=dict)
    """What the patterns that only this kind has mean in words."""


class Document(NamedTuple):
    data: dict[str, Any]
    marks: dict[Path, Mark]
    problems: list[Problem]


@dataclass(slots=True)
class _Node:
    line: int
    raw: str
    value: Any
    """A scalar, `{key: (line, _Node)}` or `[_Node]`."""
    size: int = 1
    height: int = 1


def parse(text: str, file: str, kind: FileKind) -> Document:
    """Raises UserError where nothing can be read on; what can be skipped is in `problems`."""
    composer = _Composer(file, kind.name)
    try:
        root = composer.document(yaml.parse(text, Loader=LOADER))
    except yaml.YAMLError as error:
        raise UserError(_syntax_problems(error, text, file)) from None
    if root is None or root.value is None:
        raise UserError(Problem(f"the file is empty; {kind.start}", file))
    if not isinstance(root.value, dict):
        hint = f"must hold keys and values at the top ({kind.keys}), not a list or a single value"
        raise UserError(Problem(hint, file, root.line, value=root.raw and show(root.raw, quote=False)))
    marks: dict[Path, Mark] = {}
    data = _flatten(root, (), root.line, marks)
    return Document(data, marks, composer.problems)


@dataclass
class _Composer:
    file: str
    kind: str
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)
    open_anchors: set[str] = field(default_factory=set)
    nodes: int = 0

    def document(self, events: Iterator[Any]) -> _Node | None:
        self.events = events
        root: _Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self._stop(event, "", "a second document starts here; keep one and remove the `---`")
                root = self._node(next(events), ())
        return root

    def _node(self, event: Any, path: Path) -> _Node:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._stop(event, "", f"more than {MAX_NODES:,} values; is this really a {self.kind}?")
        if len(path) > MAX_DEPTH:
            raise self._stop(event, "", _TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._report(event, path, tag, "tags are not allowed; remove it, and put text in quotes")
        if event.anchor is None:
            return self._content(event, path)
        self.open_anchors.add(event.anchor)
        node = self._content(event, path)
        self.open_anchors.discard(event.anchor)
        self.anchors[event.anchor] = node
        return node

    def _content(self, event: Any, path: Path) -> _Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        return self._mapping(event, path) if isinstance(event, yaml.MappingStartEvent) else self._sequence(event, path)

    def _alias(self, event: Any, path: Path) -> _Node:
        name = str(event.anchor)
        if name in self.open_anchors:
            raise self._stop(event, f"*{name}", "refers to itself; write the values out")
        if name not in self.anchors:
            raise self._stop(event, f"*{name}", f"there is no &{name} above; text that starts with * needs quotes")
        node = self.anchors[name]
        self.nodes += node.size
        if self.nodes > MAX_NODES:
            raise self._stop(event, f"*{name}", f"expands to more than {MAX_NODES:,} values; write them out")
        if len(path) + node.height > MAX_DEPTH:
            raise self._stop(event, f"*{name}", f"nests deeper than {MAX_DEPTH} levels; write the values out")
        return node

    def _scalar(self, event: Any, path: Path) -> _Node:
        raw = str(event.value)
        if not raw.isascii() and _SURROGATE.search(raw):  # only from PyYAML's own parser; libyaml refuses it
            raw = raw.encode("utf-8", "replace").decode()
            self._report(event, path, raw, "holds half of a character; write the character itself")
        if not event.implicit[0]:  # quoted, a block, or tagged
            return _Node(event.start_mark.line + 1, raw, raw)
        value, trouble = _resolve(raw)
        if trouble:
            self._report(event, path, raw, trouble)
        return _Node(event.start_mark.line + 1, raw, value)

    def _sequence(self, event: Any, path: Path) -> _Node:
        items: list[_Node] = []
        node = _Node(event.start_mark.line + 1, "", items)
        while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(item, (*path, len(items))))
            _grow(node, items[-1])
        return node

    def _mapping(self, event: Any, path: Path) -> _Node:
        entries: dict[str, tuple[int, _Node]] = {}
        node = _Node(event.start_mark.line + 1, "", entries)
        while not isinstance(key_event := next(self.events), yaml.MappingEndEvent):
            key = self._key(key_event, path)
            value = self._node(next(self.events), (*path, "?" if key is None else key))
            if key is None:
                continue
            line = key_event.start_mark.line + 1
            if key in entries:
                hint = f"given twice, first on line {entries[key][0]}; remove one"
                self.problems.append(Problem(hint, self.file, line, show_path((*path, key))))
                continue
            entries[key] = (line, value)
            _grow(node, value)
        return node

    def _key(self, event: Any, path: Path) -> str | None:
        """The key's text; None for what cannot be a key, which is reported here."""
        key = self._node(event, (*path, "?"))
        if isinstance(key.value, dict | list):
            self._report(event, path, key.raw, "cannot be a key; keys are plain words. Text in { } needs quotes")
            return None
        if key.raw == "<<":
            self._report(event, path, "<<", "merge keys are not supported; write the values out")
            return None
        if key.value is None:
            self._report(event, path, "", "a key is missing before the colon")
            return None
        if isinstance(key.value, bool):
            hint = f'as a key is read as {str(key.value).lower()}, not as text; write "{key.raw}" in quotes'
            self._report(event, (*path, key.raw), key.raw, hint)
        return key.raw

    def _report(self, event: Any, path: Path, raw: str, hint: str) -> None:
        line = event.start_mark.line + 1
        self.problems.append(Problem(hint, self.file, line, show_path(path), raw and show(raw, quote=False)))

    def _stop(self, event: Any, value: str, hint: str) -> UserError:
        problem = Problem(hint, self.file, event.start_mark.line + 1, value=value and show(value, quote=False))
        return UserError([*self.problems, problem])


def _grow(node: _Node, child: _Node) -> None:
    node.size += child.size
    node.height = max(node.height, child.height + 1)


def _flatten(node: _Node, path: Path, line: int, marks: dict[Path, Mark]) -> Any:
    marks[path] = Mark(line, node.raw)
    value = node.value
    if isinstance(value, dict):
        return {key: _flatten(child, (*path, key), at, marks) for key, (at, child) in value.items()}
    if isinstance(value, list):
        return [_flatten(child, (*path, index), child.line, marks) for index, child in enumerate(value)]
    return value


def _resolve(raw: str) -> tuple[Any, str]:
    """A plain scalar's value, and what is wrong with it."""
    if raw in _NULLS:
        return None, ""
    if raw in _BOOLS:
        return _BOOLS[raw], ""
    if raw[0] not in _NUMBER_START:
        return raw, ""
    if _INT.match(raw) and len(raw) <= MAX_INT_DIGITS:
        return int(raw), ""
    if _FLOAT.match(raw) and math.isfinite(float(raw)):
        return float(raw), ""
    read_as = "a number" if _EXPONENT.match(raw) else _implicit_type(raw)
    if not read_as:
        return raw, ""
    return raw, f"some programs read this as {read_as}: write it as a plain decimal number, or as text in quotes"


def _implicit_type(raw: str) -> str:
    """What YAML 1.1 would take a plain scalar for, beyond what is accepted here."""
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(raw[0], ()):
        if pattern.match(raw):
            return _READ_AS.get(tag.rpartition(":")[2], "")
    return ""


def _syntax_problems(error: yaml.YAMLError, text: str, file: str) -> list[Problem]:
    """Tabs first: they are the usual cause and the parser's own words hide them."""
    lines = text.splitlines()
    tabs = [number for number, line in enumerate(lines, 1) if _TAB_INDENT.match(line)]
    hint = "starts with a tab; YAML allows only spaces for indentation"
    problems = [Problem(hint, file, number, value=show(lines[number - 1].strip())) for number in tabs[:20]]
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = min(mark.line + 1, max(len(lines), 1)) if mark else None
    if problems and (line is None or min(tabs) <= line):
        return problems
    words = f"{getattr(error, 'problem', '') or error} {getattr(error, 'context', '') or ''}"
    if "maximum nesting depth" in words:  # libyaml's own limit, which its look-ahead may meet before we meet ours
        return [Problem(_TOO_DEEP, file, line)]
    hint = next((hint for part, hint in _SYNTAX_HINTS if part in words), words.strip())
    shown = show(lines[line - 1].strip()) if line and lines else ""
    context = getattr(error, "context_mark", None)
    if context and line and context.line + 1 < line:
        hint += f" (what is being read here starts on line {context.line + 1})"
    return [Problem(f"not valid YAML: {hint}", file, line, value=shown), *problems]


def show(value: object, *, quote: bool = True) -> str:
    """A value for a message: one line, no control characters, at most 60 characters."""
    text = str(value)
    text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    if not quote and text.isprintable():
        return text
    escaped = json.dumps(text, ensure_ascii=False)
    return escaped if escaped.isprintable() else json.dumps(text)


def show_path(path: Path) -> str:
    """`hosts.gpu-02.gpus[0].uuid`"""
    parts = (f"[{step}]" if isinstance(step, int) else f".{_step(step)}" for step in path)
    return "".join(parts).removeprefix(".")


def _step(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else show(key)
