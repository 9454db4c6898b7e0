"""The environment of `elasticsearch-setup`: whom to prepare, as whom, and what with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.settings import Common, Reader, Secret, read_common

USER = "appliance_setup"
_URL = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Bodies:
    """What Elasticsearch is told, as `config/elasticsearch` has it."""

    lifecycle: Mapping[str, Any]
    template: Mapping[str, Any]
    writer: Mapping[str, Any]
    """What Logstash's key may do."""
    output: str
    """The piece of Logstash's pipeline that the key is written into, at `${api_key}`."""


@dataclass(frozen=True)
class SetupSettings:
    common: Common
    url: str
    password: Secret
    ca: Path
    bodies: Bodies
    output: Path
    """The file that Logstash reads."""
    ready_seconds: float
    """How long Elasticsearch may take to answer for its cluster."""


def read_setup_settings(environment: Mapping[str, str]) -> SetupSettings:
    """Raises `SettingsError` with every problem at once."""
    reader = Reader(environment)
    common = read_common(reader, "elasticsearch-setup")
    folder = Path(reader.text("APPLIANCE_CONFIG_DIR", "/etc/appliance-elasticsearch"))
    settings = SetupSettings(
        common=common,
        url=reader.matching("APPLIANCE_ELASTICSEARCH_URL", None, _URL),
        password=reader.secret(common.secrets_dir, "logs_setup_password"),
        ca=common.secrets_dir / "ca.crt",
        bodies=Bodies(
            lifecycle=_object(reader, folder / "lifecycle.json"),
            template=_object(reader, folder / "template.json"),
            writer=_object(reader, folder / "writer.json"),
            output=_text(reader, folder / "output.conf"),
        ),
        output=Path(reader.text("APPLIANCE_OUTPUT_DIR", "/var/lib/logstash-output")) / "output.conf",
        ready_seconds=reader.number("APPLIANCE_READY_SECONDS", 180, 0, 3600),
    )
    if not settings.ca.is_file():
        reader.problems.append(f"{settings.ca}: is not there; mount the secret 'ca.crt'")
    reader.finish()
    return settings


def _text(reader: Reader, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reader.problems.append(f"{path}: cannot be read ({error}); mount config/elasticsearch")
        return ""


def _object(reader: Reader, path: Path) -> Mapping[str, Any]:
    text = _text(reader, path)
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        reader.problems.append(f"{path}: is no JSON ({error}); render it anew")
        return {}
    if not isinstance(found, dict):
        reader.problems.append(f"{path}: is no JSON object; render it anew")
        return {}
    return found
