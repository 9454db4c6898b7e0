"""The controller's environment: whom to watch, how often, and the gateway's socket."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.controller.policy import POOLS, Target
from appliance.controller.probe import Pace
from appliance.settings import Common, Reader, RedisSettings, read_common, read_redis

_TARGETS = "APPLIANCE_CONTROLLER_TARGETS"
# What the gateway accepts as a peer's name.
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")


@dataclass(frozen=True)
class ControllerSettings:
    common: Common
    redis: RedisSettings
    targets: tuple[Target, ...]
    gateway_socket: Path
    pace: Pace


def read_controller_settings(environment: Mapping[str, str]) -> ControllerSettings:
    """Raises `SettingsError` with every problem at once."""
    reader = Reader(environment)
    common = read_common(reader, "controller")
    settings = ControllerSettings(
        common=common,
        redis=read_redis(reader, common),
        targets=tuple(_targets(reader)),
        gateway_socket=Path(reader.text("APPLIANCE_GATEWAY_SOCKET", "/run/gateway/state.sock")),
        pace=Pace(
            interval_seconds=reader.number("APPLIANCE_PROBE_INTERVAL_SECONDS", 0.25, 0.05, 60),
            connect_seconds=reader.number("APPLIANCE_PROBE_CONNECT_SECONDS", 0.2, 0.02, 60),
            timeout_seconds=reader.number("APPLIANCE_PROBE_TIMEOUT_SECONDS", 0.5, 0.05, 60),
        ),
    )
    reader.finish()
    return settings


def _targets(reader: Reader) -> list[Target]:
    text = reader.text(_TARGETS)
    try:
        document: Any = json.loads(text) if text else {}
    except ValueError as error:
        reader.problems.append(f"{_TARGETS}: is no JSON ({error})")
        return []
    if not isinstance(document, dict) or set(document) - set(POOLS):
        reader.problems.append(f"{_TARGETS}: must be an object with the keys {' and '.join(POOLS)}")
        return []
    targets = [target for pool in POOLS for target in _pool(reader, pool, document.get(pool, []))]
    names = [(target.pool, target.name) for target in targets]
    for pool, name in sorted({key for key in names if names.count(key) > 1}):
        reader.problems.append(f"{_TARGETS}: {pool} names {name!r} twice")
    return targets


def _pool(reader: Reader, pool: str, entries: Any) -> list[Target]:
    if not isinstance(entries, list):
        reader.problems.append(f"{_TARGETS}: {pool} is no list")
        return []
    targets = (_target(reader, pool, position, entry) for position, entry in enumerate(entries))
    return [target for target in targets if target]


def _target(reader: Reader, pool: str, position: int, entry: Any) -> Target | None:
    where = f"{_TARGETS}: {pool}[{position}]"
    name, address = (entry.get("name"), entry.get("address")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        reader.problems.append(f"{where}.name: {name!r} is not 1 to 128 of A-Z a-z 0-9 _ . / -")
        return None
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        reader.problems.append(f"{where}.address: {address!r} is not host:port")
        return None
    return Target(pool, name, host.strip("[]"), int(port))
