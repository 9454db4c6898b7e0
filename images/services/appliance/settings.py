"""Environment and secret files → frozen settings. Read once per process; all problems are reported together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from appliance.errors import SettingsError
from appliance.job import MAX_PIXEL_FRAMES

T = TypeVar("T")
LOG_LEVELS = ("debug", "info", "warning", "error")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class Secret:
    """A text that does not show up in reprs, logs or tracebacks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Common:
    service: str
    node_name: str
    log_level: str
    secrets_dir: Path


@dataclass(frozen=True)
class RedisSettings:
    address: Address | None
    sentinels: tuple[Address, ...]
    sentinel_master: str
    username: str
    password: Secret
    replicas: int
    socket_timeout_seconds: float = 1.0
    connect_timeout_seconds: float = 0.5
    ca: Path | None = None
    """Certificate authority of the servers; None: no TLS."""
    watchdog_seconds: float = 60.0
    """0: no watchdog."""


@dataclass(frozen=True)
class QueueSettings:
    lease_seconds: float = 2.5
    beat_seconds: float = 0.5
    queue_limit: int = 1000
    crash_budget: int = 3
    error_budget: int = 3
    oom_budget: int = 5
    job_timeout_seconds: float = 1800.0
    retention_seconds: float = 604800.0
    failover_grace_seconds: float = 6.0
    user_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiSettings:
    common: Common
    redis: RedisSettings
    queue: QueueSettings
    listen: Address
    jobs_dir: Path
    api_keys_file: Path
    max_pixel_frames: int = MAX_PIXEL_FRAMES


@dataclass(frozen=True)
class A1111Settings:
    """A foreign AUTOMATIC1111 that the agent drives instead of our own webui."""

    url: str
    motion_module: str
    auth: Secret
    """`user:password` of its --api-auth; empty: none."""
    load_seconds: float = 300.0
    silence_seconds: float = 15.0
    """Without an answer this long it counts as hung: while it loads, its interpreter may well be busy for seconds."""
    deaf_seconds: float = 120.0
    """Going on this long in spite of interrupts, it is asked to end itself."""
    listen: Address | None = None
    """Where the agent answers the controller's probes in the A1111's stead; None: nowhere."""


@dataclass(frozen=True)
class AgentSettings:
    common: Common
    redis: RedisSettings
    queue: QueueSettings
    worker: str
    webui_url: str
    jobs_dir: Path
    cluster_token: Secret
    stream_silence_seconds: float
    no_progress_seconds: float  # between two steps
    drain_seconds: float
    load_seconds: float = 300.0
    decode_seconds: float = 120.0
    encode_seconds: float = 120.0
    a1111: A1111Settings | None = None
    """None: the webui is our own."""


@dataclass(frozen=True)
class StorageSettings:
    common: Common
    jobs_dir: Path
    models_dir: Path


@dataclass
class Reader:
    """Takes values out of an environment and remembers every complaint."""

    environment: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.environment.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name}: is not set; give it a value in the service's environment")
            return ""
        return default

    def matching(self, name: str, default: str | None, pattern: re.Pattern[str]) -> str:
        value = self.text(name, default)
        if value and not pattern.fullmatch(value):
            self.problems.append(f"{name}: {value!r} does not match {pattern.pattern}")
        return value

    def number(self, name: str, default: float, minimum: float, maximum: float) -> float:
        return self._bounded(name, default, minimum, maximum, float)

    def whole(self, name: str, default: int, minimum: int, maximum: int) -> int:
        return self._bounded(name, default, minimum, maximum, int)

    def _bounded(self, name: str, default: T, minimum: float, maximum: float, convert: Callable[[str], T]) -> T:
        text = self.text(name, str(default))
        try:
            value = convert(text)
        except ValueError:
            self.problems.append(f"{name}: {text!r} is not a number")
            return default
        if not minimum <= value <= maximum:  # type: ignore[operator]
            self.problems.append(f"{name}: {text} is outside {minimum:g} to {maximum:g}")
            return default
        return value

    def weights(self, name: str) -> Mapping[str, float]:
        """A JSON object: a user's name to their share of the cluster."""
        text = self.text(name, "{}")
        try:
            table = json.loads(text)
        except ValueError:
            table = None
        if not isinstance(table, dict):
            self.problems.append(f'{name}: {text!r} is not a JSON object like {{"ada": 2}}')
            return {}
        for user, weight in table.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0.01 <= weight <= 100:
                self.problems.append(f"{name}: {user}: {weight!r} is not a number from 0.01 to 100")
        return table

    def address(self, name: str, default: str | None) -> Address:
        text = self.text(name, default)
        return self._parse_address(name, text) if text else Address("", 0)

    def addresses(self, name: str) -> tuple[Address, ...]:
        parts = [part.strip() for part in self.environment.get(name, "").split(",") if part.strip()]
        return tuple(self._parse_address(name, part) for part in parts)

    def _parse_address(self, name: str, text: str) -> Address:
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            self.problems.append(f"{name}: {text!r} is not host:port")
            return Address("", 0)
        return Address(host.strip("[]"), int(port))

    def optional_file(self, name: str) -> Path | None:
        text = self.text(name, "")
        if text and not Path(text).is_file():
            self.problems.append(f"{name}: {text} is not a file; mount it, or leave {name} unset")
        return Path(text) if text else None

    def secret(self, folder: Path, name: str) -> Secret:
        path = folder / name
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path}: cannot be read ({error}); mount the secret {name!r}")
            return Secret("")
        if not value:
            self.problems.append(f"{path}: is empty; write the secret {name!r} into it")
        return Secret(value)

    def finish(self) -> None:
        if self.problems:
            raise SettingsError(self.problems)


def read_common(reader: Reader, service: str) -> Common:
    level = reader.text("APPLIANCE_LOG_LEVEL", "info").lower()
    if level not in LOG_LEVELS:
        reader.problems.append(f"APPLIANCE_LOG_LEVEL: {level!r} is not one of {', '.join(LOG_LEVELS)}")
    return Common(
        service=service,
        node_name=reader.matching("APPLIANCE_NODE_NAME", None, NAME),
        log_level=level,
        secrets_dir=Path(reader.text("APPLIANCE_SECRETS_DIR", "/run/secrets")),
    )


def read_redis(reader: Reader, common: Common) -> RedisSettings:
    sentinels = reader.addresses("APPLIANCE_SENTINELS")
    if sentinels and reader.environment.get("APPLIANCE_REDIS_ADDRESS", "").strip():
        reader.problems.append("APPLIANCE_REDIS_ADDRESS: set it or APPLIANCE_SENTINELS, not both")
    return RedisSettings(
        address=None if sentinels else reader.address("APPLIANCE_REDIS_ADDRESS", "redis:6379"),
        sentinels=sentinels,
        sentinel_master=reader.text("APPLIANCE_SENTINEL_MASTER", "queue"),
        username=reader.text("APPLIANCE_REDIS_USERNAME", "appliance"),
        password=reader.secret(common.secrets_dir, "redis_password"),
        replicas=reader.whole("APPLIANCE_REDIS_REPLICAS", 0, 0, 8),
        ca=reader.optional_file("APPLIANCE_REDIS_CA"),
        watchdog_seconds=reader.number("APPLIANCE_REDIS_WATCHDOG_SECONDS", 60, 0, 86400),
    )


def read_queue(reader: Reader) -> QueueSettings:
    queue = QueueSettings(
        lease_seconds=reader.number("APPLIANCE_LEASE_SECONDS", 2.5, 0.2, 600),
        beat_seconds=reader.number("APPLIANCE_BEAT_SECONDS", 0.5, 0.05, 200),
        queue_limit=reader.whole("APPLIANCE_QUEUE_LIMIT", 1000, 1, 1_000_000),
        crash_budget=reader.whole("APPLIANCE_CRASH_BUDGET", 3, 1, 100),
        error_budget=reader.whole("APPLIANCE_ERROR_BUDGET", 3, 1, 100),
        oom_budget=reader.whole("APPLIANCE_OOM_BUDGET", 5, 1, 100),
        job_timeout_seconds=reader.number("APPLIANCE_JOB_TIMEOUT_SECONDS", 1800, 1, 7 * 86400),
        retention_seconds=reader.number("APPLIANCE_RETENTION_SECONDS", 604800, 1, 3650 * 86400),
        failover_grace_seconds=reader.number("APPLIANCE_FAILOVER_GRACE_SECONDS", 6, 0, 600),
        user_weights=reader.weights("APPLIANCE_USER_WEIGHTS"),
    )
    if queue.lease_seconds < 2 * queue.beat_seconds:
        reader.problems.append(
            f"APPLIANCE_LEASE_SECONDS: {queue.lease_seconds:g} is less than two beats of {queue.beat_seconds:g} s; "
            "one late heartbeat would cost a running job"
        )
    return queue


def read_api_settings(environment: Mapping[str, str]) -> ApiSettings:
    reader = Reader(environment)
    common = read_common(reader, "api")
    api_keys_file = common.secrets_dir / "api_keys"
    if not api_keys_file.is_file():
        reader.problems.append(f"{api_keys_file}: is missing; mount the secret 'api_keys' (name:role:sha256 lines)")
    settings = ApiSettings(
        common=common,
        redis=read_redis(reader, common),
        queue=read_queue(reader),
        listen=reader.address("APPLIANCE_LISTEN", "0.0.0.0:8000"),
        jobs_dir=Path(reader.text("APPLIANCE_JOBS_DIR", "/storage/jobs")),
        api_keys_file=api_keys_file,
        max_pixel_frames=reader.whole("APPLIANCE_MAX_PIXEL_FRAMES", MAX_PIXEL_FRAMES, 64 * 64, 1024 * 1024 * 128),
    )
    reader.finish()
    return settings


def read_agent_settings(environment: Mapping[str, str]) -> AgentSettings:
    reader = Reader(environment)
    common = read_common(reader, "agent")
    settings = AgentSettings(
        common=common,
        redis=read_redis(reader, common),
        queue=read_queue(reader),
        worker=reader.matching("APPLIANCE_WORKER", None, NAME),
        webui_url=reader.matching("APPLIANCE_WEBUI_URL", None, re.compile(r"https?://[^\s/]+/?")).rstrip("/"),
        jobs_dir=Path(reader.text("APPLIANCE_JOBS_DIR", "/storage/jobs")),
        cluster_token=reader.secret(common.secrets_dir, "cluster_token"),
        stream_silence_seconds=reader.number("APPLIANCE_STREAM_SILENCE_SECONDS", 2.0, 0.2, 600),
        no_progress_seconds=reader.number("APPLIANCE_NO_PROGRESS_SECONDS", 120, 0.2, 86400),
        drain_seconds=reader.number("APPLIANCE_DRAIN_SECONDS", 20, 0, 86400),
        load_seconds=reader.number("APPLIANCE_LOAD_SECONDS", 300, 0.2, 86400),
        decode_seconds=reader.number("APPLIANCE_DECODE_SECONDS", 120, 0.2, 86400),
        encode_seconds=reader.number("APPLIANCE_ENCODE_SECONDS", 120, 0.2, 86400),
    )
    settings = replace(settings, a1111=_read_a1111(reader, settings))
    reader.finish()
    return settings


def _read_a1111(reader: Reader, settings: AgentSettings) -> A1111Settings | None:
    engine = reader.text("APPLIANCE_WEBUI_ENGINE", "own")
    if engine not in ("own", "a1111"):
        reader.problems.append(f"APPLIANCE_WEBUI_ENGINE: {engine!r} is not one of own, a1111")
    if engine != "a1111":
        return None
    folder = settings.common.secrets_dir
    return A1111Settings(
        url=settings.webui_url,
        motion_module=reader.text("APPLIANCE_MOTION_MODULE"),
        auth=reader.secret(folder, "a1111_auth") if (folder / "a1111_auth").exists() else Secret(""),
        load_seconds=settings.load_seconds,
        silence_seconds=reader.number("APPLIANCE_A1111_SILENCE_SECONDS", 15, 0.5, 3600),
        # An interrupt is heard neither while models load nor while the video is decoded.
        deaf_seconds=max(settings.load_seconds, settings.decode_seconds),
        listen=reader.address("APPLIANCE_LISTEN", "0.0.0.0:7860"),
    )


def read_storage_settings(environment: Mapping[str, str]) -> StorageSettings:
    reader = Reader(environment)
    settings = StorageSettings(
        common=read_common(reader, "storage-init"),
        jobs_dir=Path(reader.text("APPLIANCE_JOBS_DIR", "/storage/jobs")),
        models_dir=Path(reader.text("APPLIANCE_MODELS_DIR", "/storage/models")),
    )
    reader.finish()
    return settings
