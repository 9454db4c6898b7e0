"""What an index with our template takes, and what a search over it finds; anything that it does not know it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

SCALARS = {"keyword", "text"}
NUMBERS = {"byte", "short", "long", "double"}


class Refused(Exception):  # noqa: N818 - reads as what happened
    def __init__(self, kind: str, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.status = kind, reason, status

    def as_dict(self) -> dict[str, str]:
        return {"type": self.kind, "reason": self.reason}


def accepted(mappings: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """Raises where the original would: with `ignore_malformed` it takes wrong numbers, but no object for a word."""
    if not isinstance(document.get("@timestamp"), str):
        raise Refused("document_parsing_exception", "data stream timestamp field [@timestamp] is missing")
    moment(document["@timestamp"])
    for path, kind in mapped(mappings["properties"]):
        for value in values_of(document, path):
            if kind in SCALARS and isinstance(value, Mapping):
                raise Refused("document_parsing_exception", f"failed to parse field [{path}] of type [{kind}]")
            if kind == "flattened" and not isinstance(value, Mapping):
                raise Refused("document_parsing_exception", f"failed to parse field [{path}] of type [{kind}]")


def mapped(properties: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, one in properties.items():
        if "properties" in one:
            yield from mapped(one["properties"], f"{before}{name}.")
        else:
            yield f"{before}{name}", one["type"]


def values_of(document: Any, path: str) -> list[Any]:
    """`a.b` is found in {"a": {"b": …}} and in {"a.b": …} alike."""
    if not isinstance(document, Mapping):
        return []
    found = [document[path]] if document.get(path) is not None else []
    for name, inner in document.items():
        if path.startswith(f"{name}."):
            found += values_of(inner, path[len(name) + 1 :])
    return found


def search(body: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {"size", "timeout", "track_total_hits", "query", "sort", "_source", "search_after"}
    if unknown := body.keys() - known:
        raise Refused("parsing_exception", f"unknown key for [{sorted(unknown)[0]}]")
    fields = [next(iter(one)) for one in body["sort"]]
    if any(list(one.values()) != ["asc"] for one in body["sort"]):
        raise Refused("parsing_exception", "only asc is known here")
    found = [(sort_values(one, fields), one) for one in documents if matches(body["query"], one)]
    found.sort(key=lambda pair: order(pair[0]))
    if "search_after" in body:
        if len(body["search_after"]) != len(fields):
            raise Refused("search_phase_execution_exception", "search_after has another number of values than sort")
        found = [pair for pair in found if order(pair[0]) > order(body["search_after"])]
    page = found[: body["size"]]
    return {"hits": [{"_source": picked(one, body["_source"]), "sort": values} for values, one in page]}


def sort_values(document: Mapping[str, Any], fields: Sequence[str]) -> list[Any]:
    found = [next(iter(values_of(document, name)), None) for name in fields]
    return [
        round(moment(value) * 1000) if name == "@timestamp" else value
        for name, value in zip(fields, found, strict=True)
    ]


def order(values: Sequence[Any]) -> list[tuple[bool, Any]]:
    """What is missing comes last."""
    return [(value is None, 0 if value is None else value) for value in values]


def picked(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """As _source filtering does: objects keep their shape."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name in names:
            found[name] = value
        elif isinstance(value, Mapping):
            inner = picked(value, [one[len(name) + 1 :] for one in names if one.startswith(f"{name}.")])
            found |= {name: inner} if inner else {}
    return found


def matches(query: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    ((kind, inner),) = query.items()
    if kind == "bool":
        if unknown := inner.keys() - {"filter", "should", "minimum_should_match"}:
            raise Refused("parsing_exception", f"[bool] query does not support {sorted(unknown)}")
        filters = [matches(one, document) for one in inner.get("filter", ())]
        some = [matches(one, document) for one in inner.get("should", ())]
        return all(filters) and sum(some) >= inner.get("minimum_should_match", 0)
    ((field, value),) = inner.items()
    held = values_of(document, field)
    if kind == "term":
        return any(str(one) == str(value) for one in held)
    if kind == "terms":
        return any(str(one) in map(str, value) for one in held)
    if kind == "match_phrase":
        return any(words(value) in words(str(one)) for one in held)
    if kind == "range":
        return any(within(one, value) for one in held)
    raise Refused("parsing_exception", f"unknown query [{kind}]")


def within(held: Any, bounds: Mapping[str, Any]) -> bool:
    if "format" not in bounds:
        return bool(bounds.get("gte", held) <= held <= bounds.get("lte", held))
    if bounds["format"] != "epoch_millis":
        raise Refused("parsing_exception", f"format {bounds['format']} is not known here")
    return bool(bounds["gte"] <= moment(held) * 1000 <= bounds["lte"])


def words(text: str) -> str:
    """As the standard analyzer splits, more or less: a phrase is a run of words."""
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError as error:
        raise Refused("document_parsing_exception", f"failed to parse date field [{text}]") from error
