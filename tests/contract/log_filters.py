"""What our processors of Filebeat and filters of Logstash do to an event, as their documentation has it. An option that
is not known here is an error, so that nothing is passed over."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.contract.logstash_grammar import Branch, Condition, PipelineError, Plugin, Regexp, Section, Selector

Event = dict[str, Any]
SPRINTF = re.compile(r"%\{([^}]+)\}")


class Dropped(Exception):  # noqa: N818 - reads as what happened
    pass


# --- Filebeat ---------------------------------------------------------------------------------------------------------


def shipped(
    config: Mapping[str, Any], lines: Iterable[str], fingerprint: str = "f", offset: int = 0
) -> Iterator[Event]:
    """Docker's json-file lines of one file, from `offset` on → what goes to Logstash."""
    (source,) = config["filebeat.inputs"]
    kinds = [next(iter(parser)) for parser in source["parsers"]]
    assert kinds == ["container", "ndjson"], "as these two are worked through below"
    target = source["parsers"][1]["ndjson"]["target"]
    for line in lines:
        event = _of_docker(json.loads(line), target)
        event["log"] = {"offset": offset, "file": {"path": "/var/lib/docker/x", "fingerprint": fingerprint}}
        event |= {"agent": {}, "ecs": {}, "host": {"name": "container"}, "input": {"type": "filestream"}}
        offset += len(line.encode()) + 1
        try:
            for processor in config["processors"]:
                ((kind, options),) = processor.items()
                PROCESSORS[kind](event, options)
        except Dropped:
            continue
        yield event


def _of_docker(wrapped: Mapping[str, Any], target: str) -> Event:
    event: Event = {"@timestamp": wrapped["time"], "stream": wrapped["stream"]}
    if "attrs" in wrapped:
        event["docker"] = {"attrs": wrapped["attrs"]}
    text = wrapped["log"].removesuffix("\n")
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        return {**event, target: decoded} if decoded else event
    return {**event, "message": text} if text else event


def _holds(event: Event, condition: Mapping[str, Any]) -> bool:
    ((kind, inner),) = condition.items()
    if kind == "not":
        return not _holds(event, inner)
    ((field, value),) = inner.items()
    held = _found(event, field)
    if kind == "equals":
        return bool(held == value)
    if kind == "regexp":
        return isinstance(held, str) and re.search(value, held) is not None
    raise PipelineError(f"condition {kind}")


def _found(event: Any, path: str) -> Any:
    """`a.b.c`: at each level the whole rest is looked for first, then its first word."""
    if not isinstance(event, dict):
        return None
    if path in event:
        return event[path]
    first, _, rest = path.partition(".")
    return _found(event.get(first), rest) if rest else None


def _removed(event: Any, path: str) -> None:
    if not isinstance(event, dict):
        return
    if path in event:
        del event[path]
    else:
        first, _, rest = path.partition(".")
        _removed(event.get(first), rest)


def _drop_event(event: Event, options: Mapping[str, Any]) -> None:
    if _holds(event, _exactly(options, {"when"})["when"]):
        raise Dropped


def _rename(event: Event, options: Mapping[str, Any]) -> None:
    for pair in _exactly(options, {"fields", "ignore_missing", "fail_on_error"})["fields"]:
        value = _found(event, pair["from"])
        if value is not None:
            _removed(event, pair["from"])
            _put(event, pair["to"].split("."), value)


def _drop_fields(event: Event, options: Mapping[str, Any]) -> None:
    for name in _exactly(options, {"fields", "ignore_missing"})["fields"]:
        _removed(event, name)


def _add_fields(event: Event, options: Mapping[str, Any]) -> None:
    assert _exactly(options, {"target", "fields"})["target"] == "", "else they would be under `fields`"
    event |= options["fields"]


def _dissect(event: Event, options: Mapping[str, Any]) -> None:
    _exactly(options, {"when", "field", "tokenizer", "target_prefix"})
    assert options["target_prefix"] == ""
    if _holds(event, options["when"]):
        names = re.findall(r"%\{(\??)(\w+)\}", options["tokenizer"])
        pattern = re.sub(r"%\{\??(\w+)\}", r"(?P<\1>.*?)", options["tokenizer"]) + "$"
        found = re.match(pattern, _found(event, options["field"]))
        assert found
        event |= {name: found[name] for skipped, name in names if not skipped}


PROCESSORS: dict[str, Callable[[Event, Mapping[str, Any]], None]] = {
    "drop_event": _drop_event,
    "rename": _rename,
    "drop_fields": _drop_fields,
    "add_fields": _add_fields,
    "dissect": _dissect,
}


def _exactly(options: Mapping[str, Any], known: set[str]) -> Mapping[str, Any]:
    if unknown := options.keys() - known:
        raise PipelineError(f"unknown option {sorted(unknown)}")
    return options


def _put(event: Event, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        inner = event.get(name)
        if not isinstance(inner, dict):
            inner = event[name] = {}
        event = inner
    event[path[-1]] = value


# --- Logstash ---------------------------------------------------------------------------------------------------------


def filtered(sections: Sequence[Section], event: Event) -> Event | None:
    """None: dropped."""
    made = {**copy.deepcopy(event), "@version": "1"}
    try:
        for section in sections:
            if section.kind == "filter":
                _run(section.statements, made)
    except Dropped:
        return None
    return made


def _run(statements: Sequence[Any], event: Event) -> None:
    for statement in statements:
        if isinstance(statement, Plugin):
            FILTERS[statement.name](event, statement.options)
            continue
        assert isinstance(statement, Branch)
        for condition, inner in statement.arms:
            if condition is None or _true(condition, event):
                _run(inner, event)
                break


def _true(condition: Condition, event: Event) -> bool:
    kind, parts = condition.kind, condition.parts
    if kind == "all":
        return all(_true(part, event) for part in parts)
    if kind == "any":
        return any(_true(part, event) for part in parts)
    if kind == "not":
        return not _true(parts[0], event)
    left, *right = [_value(part, event) for part in parts]
    if kind == "value":
        return left is not None and left is not False
    if kind == "in":
        return left is not None and left in right[0]
    if kind in ("==", "!="):
        return (left == right[0]) == (kind == "==")
    if kind == "=~":
        pattern = parts[1].text.replace("\\z", "\\Z")
        return isinstance(left, str) and re.search(pattern, left, re.MULTILINE) is not None
    raise PipelineError(f"condition {kind}")


def _value(part: Any, event: Event) -> Any:
    if isinstance(part, Selector):
        return _at(event, part.path)
    return part if not isinstance(part, Regexp) else part.text


def _at(event: Any, path: Sequence[str]) -> Any:
    for name in path:
        event = event.get(name) if isinstance(event, dict) else None
    return event


def _path(reference: str) -> list[str]:
    return reference[1:-1].split("][") if reference.startswith("[") else [reference]


def _text(template: str, event: Event) -> str:
    def fill(found: re.Match[str]) -> str:
        value = _at(event, _path(found[1]))
        if value is None:
            return found[0]
        return value if isinstance(value, str) else json.dumps(value)

    return SPRINTF.sub(fill, template)


def _take(event: Event, path: Sequence[str]) -> Any:
    holder = _at(event, path[:-1])
    return holder.pop(path[-1], None) if isinstance(holder, dict) else None


def _mutate(event: Event, options: Mapping[str, Any]) -> None:
    """In the order that the plugin has, whatever that of the options is."""
    _exactly(options, {"rename", "replace", "convert", "lowercase", "add_field", "remove_field"})
    for old, new in options.get("rename", {}).items():
        value = _take(event, _path(old))
        if value is not None:
            _put(event, _path(new), value)
    for name, value in options.get("replace", {}).items():
        _put(event, _path(name), _text(value, event))
    for name, kind in options.get("convert", {}).items():
        assert kind == "integer"
        _put(event, _path(name), int(_at(event, _path(name))))
    for name in options.get("lowercase", ()):
        value = _at(event, _path(name))
        if isinstance(value, str):
            _put(event, _path(name), value.lower())
    for name, value in options.get("add_field", {}).items():
        held, added = _at(event, _path(name)), _text(value, event)
        _put(event, _path(name), added if held is None else [*(held if isinstance(held, list) else [held]), added])
    for name in options.get("remove_field", ()):
        _take(event, _path(name))


def _date(event: Event, options: Mapping[str, Any]) -> None:
    field, kind = _exactly(options, {"match"})["match"]
    assert kind == "ISO8601"
    value = _at(event, _path(field))
    try:
        event["@timestamp"] = datetime.fromisoformat(value.replace("Z", "+00:00")).isoformat()
    except (ValueError, AttributeError):
        event["tags"] = ["_dateparsefailure"]


def _drop(event: Event, options: Mapping[str, Any]) -> None:
    _exactly(options, set())
    raise Dropped


FILTERS: dict[str, Callable[[Event, Mapping[str, Any]], None]] = {"mutate": _mutate, "date": _date, "drop": _drop}
