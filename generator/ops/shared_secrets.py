"""What Redis and Sentinel know each other by: another password, or another CA, is for all of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from generator import processes
from generator.errors import ToolError, UserError
from generator.ops.cluster import Place
from generator.ops.replication import ASK_SECONDS, inside, is_replicated

SHARED: Final = {"redis": ("redis_auth.conf", "ca.crt"), "sentinel": ("sentinel_auth.conf", "ca.crt")}
"""Service → the secrets by which it knows its like on the other hosts: with another one it is alone."""


def refuse_one_by_one(places: Sequence[Place]) -> None:
    """Raises UserError where Redis or Sentinel of several hosts run with other shared secrets than are laid out.

    One after the other, the first would be alone with the new ones, and the last that has everything would go at last.
    """
    changed = [place.host.name for place in places if is_replicated(place) and _has_changed(place)]
    if changed:
        raise UserError(
            f"the secrets by which the Redis and Sentinels of the hosts know each other have changed since they were "
            f"started on {', '.join(changed)}, and that is for all of them at once: `python -m generator down`, then "
            "`up`. What waits and runs is kept"
        )


def _has_changed(place: Place) -> bool:
    """Whether a running service of the place has other shared secrets than its folder."""
    for service, names in SHARED.items():
        paths = [path for name in names if (path := place.folder / "secrets" / name).exists()]
        expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        if not expected:
            continue
        try:
            script = f"cd /run/secrets && sha256sum {' '.join(expected)}"
            lines = processes.run(inside(place, script, service), timeout=ASK_SECONDS).splitlines()
        except ToolError:  # it does not run: it will start with what is laid out
            continue
        if any(expected[name] != digest for digest, name in (line.split(maxsplit=1) for line in lines)):
            return True
    return False
