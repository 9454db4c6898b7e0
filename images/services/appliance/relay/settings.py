"""The relay's environment: which robots there are, and their secret files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.relay.messages import Kind
from appliance.settings import Address, Common, Reader, Secret, read_common

_ROBOTS = "APPLIANCE_RELAYS"
_URL = re.compile(r"https?://[^\s/]+/\S*")


@dataclass(frozen=True)
class Robot:
    name: str
    kind: Kind
    url: Secret
    signs_with: Secret | None


@dataclass(frozen=True)
class RelaySettings:
    common: Common
    listen: Address
    cluster_token: Secret
    robots: Mapping[str, Robot]


def read_relay_settings(environment: Mapping[str, str]) -> RelaySettings:
    """Raises `SettingsError` with every problem at once."""
    reader = Reader(environment)
    common = read_common(reader, "relay")
    settings = RelaySettings(
        common=common,
        listen=reader.address("APPLIANCE_LISTEN", "0.0.0.0:9095"),
        cluster_token=reader.secret(common.secrets_dir, "cluster_token"),
        robots={robot.name: robot for robot in _robots(reader, common)},
    )
    reader.finish()
    return settings


def _robots(reader: Reader, common: Common) -> list[Robot]:
    text = reader.text(_ROBOTS)
    try:
        kinds = {str(name): Kind(kind) for name, kind in json.loads(text or "{}").items()}
    except (ValueError, AttributeError):
        reader.problems.append(f'{_ROBOTS}: {text!r} is not a JSON object like {{"ops": "dingtalk"}}')
        return []
    return [_robot(reader, common, name, kind) for name, kind in kinds.items()]


def _robot(reader: Reader, common: Common, name: str, kind: Kind) -> Robot:
    url = reader.secret(common.secrets_dir, f"receiver_{name}_url")
    if url.reveal() and not _URL.fullmatch(url.reveal()):
        path = common.secrets_dir / f"receiver_{name}_url"
        reader.problems.append(f"{path}: holds no address; write the robot's whole https:// address into it")
    secret = f"receiver_{name}_secret"
    has_one = (common.secrets_dir / secret).exists()
    return Robot(name, kind, url, reader.secret(common.secrets_dir, secret) if has_one else None)
