"""Checks of JSON values, and how they are put together: each says what is wrong, and with which part. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Problems = list[tuple[str, str]]
UNKNOWN_TOLD = 20
# None, what is wrong with the value, or what is wrong with each part of it, named from the value on: `[1].image`.
Check = Callable[[Any], "str | Problems | None"]


def whole(low: int, high: int, multiple: int = 1) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return f"must be a whole number from {low} to {high}"
        return f"must be a multiple of {multiple}" if value % multiple else None

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return f"must be a number from {low:g} to {high:g}"
        return None

    return check


def text(limit: int) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and len(value) <= limit else f"must be text of at most {limit} characters"

    return check


def name(limit: int) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, str) or not 0 < len(value) <= limit:
            return f"must be text of 1 to {limit} characters"
        return "must not hold path separators" if "/" in value or "\\" in value or value.startswith(".") else None

    return check


def name_or_null(limit: int) -> Check:
    def check(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > limit:
            return f"must be null or text of at most {limit} characters"
        return "must not hold path separators" if "/" in value or "\\" in value else None

    return check


def one_of(allowed: tuple[str, ...]) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and value in allowed else f"must be one of {', '.join(allowed)}"

    return check


def or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def true_or_false(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def list_of(check: Check, low: int, high: int) -> Check:
    def check_all(value: Any) -> str | Problems | None:
        if not isinstance(value, list) or not low <= len(value) <= high:
            return f"must be a list of {low} to {high}"
        return [problem for at, item in enumerate(value) for problem in problems_of(f"[{at}]", item, check)]

    return check_all


def object_of(fields: Mapping[str, Check], needed: tuple[str, ...] = ()) -> Check:
    def check(value: Any) -> str | Problems | None:
        if not isinstance(value, dict):
            return "must be a JSON object"
        unknown = sorted(value.keys() - fields.keys(), key=str)[:UNKNOWN_TOLD]
        problems = [(f".{field}", "is not a known field") for field in unknown]
        problems += [(f".{field}", "is missing") for field in needed if field not in value]
        for field in fields.keys() & value.keys():
            problems += problems_of(f".{field}", value[field], fields[field])
        return problems

    return check


def problems_of(field: str, value: object, check: Check) -> Problems:
    found = check(value)
    if isinstance(found, str):
        return [(field, found)]
    return [(field + part, problem) for part, problem in found or ()]
