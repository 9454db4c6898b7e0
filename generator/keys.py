"""People's API keys, as a list of `name:role:sha256  # made <day>` lines: the file that the api reads, and the store's.

Pure. The key itself is shown once and kept nowhere; a plain hash is enough, for it carries 256 random bits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from generator.errors import Problem, UserError

OWN_NAME = "operator"
"""The generator's own key, which `secrets` makes and `secrets rotate api_key` replaces."""
ALERTS_NAME = "alertmanager"
"""Whom the gateways take Alertmanager for."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(
    rf"(?P<name>{NAME.pattern}):(?P<role>user|operator):(?P<digest>[0-9a-f]{{64}})(?: +# made (?P<made>[0-9-]{{10}}))?"
)


class KeyRole(str, Enum):
    USER = "user"
    OPERATOR = "operator"


@dataclass(frozen=True)
class ApiKey:
    """`made` is a day, as 2026-11-24; empty where it is not known."""

    name: str
    role: KeyRole
    digest: str
    made: str = ""

    @property
    def line(self) -> str:
        note = f"  # made {self.made}" if self.made else ""
        return f"{self.name}:{self.role.value}:{self.digest}{note}\n"


def digest_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def parse(text: str, file: str = "") -> tuple[ApiKey, ...]:
    """Raises `UserError` with every line that is none: a key that was lost silently locks somebody out."""
    keys, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line.strip())
        if match:
            keys.append(ApiKey(match["name"], KeyRole(match["role"]), match["digest"], match["made"] or ""))
        elif line.strip() and not line.lstrip().startswith("#"):
            problems.append(Problem("not `name:user|operator:sha256`; correct or delete the line", file, number))
    if problems:
        raise UserError(problems)
    return tuple(keys)


def text_of(keys: Sequence[ApiKey]) -> str:
    return "".join(key.line for key in sorted(keys, key=lambda key: key.name))


def with_added(keys: Sequence[ApiKey], new: ApiKey) -> tuple[ApiKey, ...]:
    _refuse_own(new.name)
    if not NAME.fullmatch(new.name):
        raise UserError(f'"{new.name}": a name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or a digit')
    if any(key.name == new.name for key in keys):
        raise UserError(f'there is a key of "{new.name}"; `keys revoke {new.name}` first, or choose another name')
    return (*keys, new)


def without(keys: Sequence[ApiKey], name: str) -> tuple[ApiKey, ...]:
    _refuse_own(name)
    if all(key.name != name for key in keys):
        known = ", ".join(key.name for key in keys) or "there are none yet"
        raise UserError(f'there is no key of "{name}"; keys: {known}')
    return tuple(key for key in keys if key.name != name)


def _refuse_own(name: str) -> None:
    if name == ALERTS_NAME:
        raise UserError(
            f'"{ALERTS_NAME}" is the key of the cluster\'s Alertmanagers; `secrets rotate alerts_key` replaces it'
        )
    if name == OWN_NAME:
        raise UserError(f'"{OWN_NAME}" is the generator\'s own key; `secrets rotate api_key` replaces it')
