"""Reads fields of a JSON object as A1111 does (a whole number may be a text), and remembers every complaint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sdapi.errors import Problem

WHOLE = re.compile(r"[+-]?\d{1,19}")
PROMPT_LIMIT = 4000
NESTING_LIMIT = 64  # whatever is told again is written as JSON by a recursion of its own


class Reader:
    """Null and a missing field both give the default. What is wrong gives the default too, and a problem."""

    def __init__(self, body: Mapping[str, Any], problems: list[Problem], *where: str | int) -> None:
        self._body = body
        self._where = where
        self.problems = problems

    def refuse(self, name: str, message: str, kind: str = "value_error") -> None:
        self.problems.append(Problem((*self._where, name), message, kind))

    def raw(self, name: str, default: Any = None) -> Any:
        value = self._body.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int, low: int, high: int, multiple: int = 1) -> int:
        value = _whole(self.raw(name, default))
        if value is None:
            self.refuse(name, "value is not a valid integer", "type_error.integer")
        elif not low <= value <= high:
            self.refuse(name, f"ensure this value is from {low} to {high}", "value_error.number")
        elif value % multiple:
            self.refuse(name, f"ensure this value is a multiple of {multiple}", "value_error.number")
        else:
            return value
        return default

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = _number(self.raw(name, default))
        if value is None:
            self.refuse(name, "value is not a valid float", "type_error.float")
        elif not low <= value <= high:
            self.refuse(name, f"ensure this value is from {low:g} to {high:g}", "value_error.number")
        else:
            return value
        return default

    def text(self, name: str, default: str = "", limit: int = PROMPT_LIMIT) -> str:
        value = self.raw(name, default)
        if not isinstance(value, str):
            self.refuse(name, "str type expected", "type_error.str")
        elif len(value) > limit:
            self.refuse(name, f"ensure this value has at most {limit} characters", "value_error.any_str.max_length")
        else:
            return value
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name, default)
        words = {"true": True, "false": False, 1: True, 0: False}
        known = words.get(value.lower() if isinstance(value, str) else value) if isinstance(value, str | int) else None
        if known is None:
            self.refuse(name, "value could not be parsed to a boolean", "type_error.bool")
            return default
        return known

    def object(self, name: str) -> Mapping[str, Any]:
        value = self.raw(name, {})
        if isinstance(value, Mapping):
            return value
        self.refuse(name, "value is not a valid dict", "type_error.dict")
        return {}

    def list(self, name: str) -> list[Any]:
        value = self.raw(name, [])
        if isinstance(value, list):
            return value
        self.refuse(name, "value is not a valid list", "type_error.list")
        return []


def require_tellable(value: object) -> None:
    """Raises ValueError: half a surrogate pair is JSON, but not text, and 1e999 no number that could be told again."""
    inside = [value]
    while inside:
        item = inside.pop()
        if isinstance(item, dict):
            inside += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            inside += item
        elif isinstance(item, str) and not item.isascii():
            item.encode()
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("a number that is none")


def is_nested_too_deeply(value: object) -> bool:
    inside = [value]
    for _ in range(NESTING_LIMIT):
        containers = [item for item in inside if isinstance(item, dict | list)]
        if not containers:
            return False
        inside = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, str) and WHOLE.fullmatch(value.strip()) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
