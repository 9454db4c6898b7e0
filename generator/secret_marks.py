"""How docker compose learns that a secret has another content: a label of each service that mounts it, with a value
from the `.env` beside compose.yaml. Docker mounts a file by its inode, so only a new container sees one that a rename
has replaced; compose makes one when a label differs, whoever calls it and whatever was cut off before.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping

LABEL = "appliance.secrets"
FILE = ".env"
READ_WHILE_RUNNING = frozenset({"api_keys"})
"""Files that a running container is to see new: they are written in place, and nobody has to be made anew for them."""
_OURS = re.compile(r"SECRET_[A-Z0-9_]+=[0-9a-f]{16}")


def label(names: Iterable[str]) -> str:
    """For a service that mounts these; empty where it needs none. Without `.env` compose takes it for unchanged."""
    return " ".join(f"${{{_variable(name)}:-}}" for name in names if name not in READ_WHILE_RUNNING)


def with_marks(text: str, values: Mapping[str, bytes], key: bytes) -> str:
    """The `.env` of a host with these secret files; a person's own lines in `text` stay. What lies in a folder of its
    own is mounted with it, and seen. `key` is secret: a plain digest would tell a short password to whoever guesses."""
    own = [line for line in text.splitlines() if not _OURS.fullmatch(line)]
    marked = sorted(name for name in values if "/" not in name and name not in READ_WHILE_RUNNING)
    lines = [f"{_variable(name)}={_mark(key, values[name])}" for name in marked]
    return "".join(f"{line}\n" for line in own + lines)


def _mark(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, "sha256").hexdigest()[:16]


def _variable(name: str) -> str:
    return "SECRET_" + re.sub("[^A-Z0-9]", "_", name.upper())
