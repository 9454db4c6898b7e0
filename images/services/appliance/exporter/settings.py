"""The exporter's environment: which workers and GPUs are this host's, whether it has a gateway, what it costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.exporter.prices import PriceTable
from appliance.settings import Address, Common, Reader, RedisSettings, Secret, read_common, read_redis

_UUID = re.compile(r"GPU-[0-9A-Fa-f-]{8,64}")
AWS_SECRET = "aws_credentials"  # noqa: S105 - a file's name


@dataclass(frozen=True)
class ExporterSettings:
    common: Common
    redis: RedisSettings
    listen: Address
    cluster_token: Secret
    workers: int
    gpus: tuple[str, ...]
    """UUIDs of the workers' GPUs: the one of worker 0 first. Empty: a host without, whose NVML is not looked for."""
    checkpoint: str
    gateway_socket: Path | None
    """None: no gateway on this host."""
    prices: PriceTable
    article_names: bool
    aws_credentials: Secret | None
    """A credentials file of AWS; None: its Cost Explorer is not asked."""

    @property
    def worker_names(self) -> tuple[str, ...]:
        return tuple(f"{self.common.node_name}/{number}" for number in range(self.workers))


def read_exporter_settings(environment: Mapping[str, str]) -> ExporterSettings:
    """Raises `SettingsError` with every problem at once."""
    reader = Reader(environment)
    common = read_common(reader, "exporter")
    socket = reader.text("APPLIANCE_GATEWAY_SOCKET", "")
    has_aws = (common.secrets_dir / AWS_SECRET).exists()
    settings = ExporterSettings(
        common=common,
        redis=read_redis(reader, common),
        listen=reader.address("APPLIANCE_LISTEN", "0.0.0.0:9400"),
        cluster_token=reader.secret(common.secrets_dir, "cluster_token"),
        workers=reader.whole("APPLIANCE_WORKERS", 0, 0, 256),
        gpus=_gpus(reader),
        checkpoint=reader.text("APPLIANCE_CHECKPOINT", ""),
        gateway_socket=Path(socket) if socket else None,
        prices=_prices(reader),
        article_names=_switch(reader, "APPLIANCE_ARTICLE_NAMES", "true"),
        aws_credentials=reader.secret(common.secrets_dir, AWS_SECRET) if has_aws else None,
    )
    reader.finish()
    return settings


def _gpus(reader: Reader) -> tuple[str, ...]:
    name = "APPLIANCE_GPUS"
    uuids = tuple(part.strip() for part in reader.text(name, "").split(",") if part.strip())
    for uuid in uuids:
        if not _UUID.fullmatch(uuid):
            reader.problems.append(f"{name}: {uuid!r} is no UUID of a GPU; `nvidia-smi -L` prints them")
    if len({uuid.casefold() for uuid in uuids}) < len(uuids):
        reader.problems.append(f"{name}: names a GPU twice")
    return uuids


def _prices(reader: Reader) -> PriceTable:
    name = "APPLIANCE_PRICES"
    try:
        return PriceTable.parse(json.loads(reader.text(name, "{}")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reader.problems.append(f"{name}: is no price table ({error!r}); render the host again")
        return PriceTable()


def _switch(reader: Reader, name: str, default: str) -> bool:
    text = reader.text(name, default)
    if text not in ("true", "false"):
        reader.problems.append(f"{name}: {text!r} is neither true nor false")
    return text == "true"
