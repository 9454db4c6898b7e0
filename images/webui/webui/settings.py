"""Environment and secret files, read once into frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENGINES = ("diffusers", "synthetic")
DEVICES = ("cpu", "cuda")
DTYPES = ("auto", "fp16", "bf16", "fp32")
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """Lists every problem found, one a line."""


@dataclass(frozen=True)
class Secret:
    value: str = field(repr=False)

    def __str__(self) -> str:
        return "***"


@dataclass(frozen=True)
class EngineSettings:
    """What the engine process needs; holds no secret, because it is sent to that process as text."""

    kind: str = "synthetic"
    device: str = "cpu"
    checkpoint: str = "synthetic"
    motion_module: str = "synthetic"
    threads: int = 1
    jobs_dir: str = "/storage/jobs"
    models_dir: str = "/storage/models"
    scratch_dir: str = "/tmp/appliance"  # noqa: S108 - made by us, for us alone
    log_level: str = "info"
    step_seconds: float = 0.05
    faults: str = "{}"
    checkpoint_seconds: float = 30.0  # 0: never
    vae: str = ""  # empty: the checkpoint's own
    dtype: str = "auto"  # fp16 on a GPU, fp32 without
    compile: bool = False  # the first step of each size then takes minutes: not offered by cluster.yaml
    model_cache_gib: float = 8.0
    model_cache_count: int = 16  # checkpoints, motion modules, VAEs and LoRAs together


@dataclass(frozen=True)
class Settings:
    node_name: str
    host: str
    port: int
    cluster_token: Secret
    engine: EngineSettings
    stop_seconds: float
    worker: str = ""
    """The worker's name; empty where nobody gave it one."""
    api_auth: Secret = Secret("")
    """This node's own users as `user:password`, one a line; empty: the cluster token alone opens it."""


class _Reader:
    """Reads values and remembers every complaint, so that one start shows all of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in allowed:
            self.problems.append(f"{name}: {value!r} is not one of {', '.join(allowed)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            self.problems.append(f"{name}: {text!r} is not a number from {low:g} to {high:g}")
        return value

    def model_name(self, name: str, default: str, needed: bool = True) -> str:
        value = self.text(name, default)
        if not value:
            if needed:
                self.problems.append(f"{name}: missing; give the name of a model on the models volume")
        elif "/" in value or "\\" in value or value.startswith("."):
            self.problems.append(f"{name}: {value!r} must be a plain name without path separators")
        return value

    def listen(self, name: str, default: str) -> tuple[str, int]:
        value = self.text(name, default)
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            self.problems.append(f"{name}: {value!r} is not host:port")
            return host, 0
        return host.strip("[]"), int(port)

    def json_object(self, name: str) -> str:
        text = self.text(name, "{}")
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            self.problems.append(f"{name}: not a JSON object")
        return text

    def secret(self, name: str) -> Secret:
        path = Path(self.text("APPLIANCE_SECRETS_DIR", "/run/secrets")) / name
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path}: cannot read this secret: {error}")
            return Secret("")
        if not value:
            self.problems.append(f"{path}: this secret is empty")
        return Secret(value)

    def users(self, name: str) -> Secret:
        """An optional secret: `user:password`, separated by commas or line ends as A1111's --api-auth has them."""
        path = Path(self.text("APPLIANCE_SECRETS_DIR", "/run/secrets")) / name
        if not path.exists():
            return Secret("")
        lines = [entry.strip() for line in self.secret(name).value.splitlines() for entry in line.split(",")]
        users = [line for line in lines if line and not line.startswith("#")]
        for number, line in enumerate(users, start=1):
            if not all(line.partition(":")):
                self.problems.append(f"{path}: entry {number} is not user:password")  # never the entry itself
        return Secret("\n".join(users))


def listen_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Where the server listens; all that the health check needs to know."""
    reader = _Reader(environ)
    address = reader.listen("APPLIANCE_LISTEN", "0.0.0.0:7860")
    _refuse(reader.problems)
    return address


def read_settings(environ: Mapping[str, str]) -> Settings:
    reader = _Reader(environ)
    kind = reader.choice("APPLIANCE_ENGINE", "diffusers", ENGINES)
    # The synthetic engine loads no files, so it alone can do without names.
    nameless = "synthetic" if kind == "synthetic" else ""
    engine = EngineSettings(
        kind=kind,
        device=reader.choice("APPLIANCE_DEVICE", "cpu", DEVICES),
        checkpoint=reader.model_name("APPLIANCE_CHECKPOINT", nameless),
        motion_module=reader.model_name("APPLIANCE_MOTION_MODULE", nameless),
        threads=int(reader.number("APPLIANCE_THREADS", 1, 1, 256)),
        jobs_dir=reader.text("APPLIANCE_JOBS_DIR", "/storage/jobs"),
        models_dir=reader.text("APPLIANCE_MODELS_DIR", "/storage/models"),
        scratch_dir=reader.text("APPLIANCE_SCRATCH_DIR", "/tmp/appliance"),  # noqa: S108
        log_level=reader.choice("APPLIANCE_LOG_LEVEL", "info", LOG_LEVELS),
        step_seconds=reader.number("APPLIANCE_SYNTHETIC_STEP_SECONDS", 0.05, 0, 3600),
        faults=reader.json_object("APPLIANCE_SYNTHETIC_FAULTS"),
        checkpoint_seconds=reader.number("APPLIANCE_CHECKPOINT_SECONDS", 30, 0, 3600),
        vae=reader.model_name("APPLIANCE_VAE", "", needed=False),
        dtype=reader.choice("APPLIANCE_DTYPE", "auto", DTYPES),
        compile=reader.choice("APPLIANCE_COMPILE", "0", ("0", "1")) == "1",
        model_cache_gib=reader.number("APPLIANCE_MODEL_CACHE_GIB", 8, 0, 4096),
        model_cache_count=int(reader.number("APPLIANCE_MODEL_CACHE_COUNT", 16, 0, 1000)),
    )
    host, port = reader.listen("APPLIANCE_LISTEN", "0.0.0.0:7860")
    settings = Settings(
        node_name=reader.text("APPLIANCE_NODE_NAME", "unnamed"),
        worker=reader.text("APPLIANCE_WORKER", ""),
        host=host,
        port=port,
        cluster_token=reader.secret("cluster_token"),
        api_auth=reader.users("api_auth"),
        engine=engine,
        stop_seconds=reader.number("APPLIANCE_STOP_SECONDS", 10, 0.1, 600),
    )
    _refuse(reader.problems)
    return settings


def _refuse(problems: list[str]) -> None:
    if problems:
        raise SettingsError("\n".join(problems))
