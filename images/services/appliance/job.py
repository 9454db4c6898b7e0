"""What a job is: its request, its states, its id and where it lives on storage. Pure but for the clock of new ids."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from appliance.job_fields import (
    MAX_FRAMES,
    Choice,
    Clip,
    ControlNet,
    FreeInit,
    Image,
    Lora,
    ModelName,
    OutputFormat,
    Pixels,
    Prompt,
    SparseControl,
    frames_named,
    model_stem,
    require_number,
)

DEFAULT_CLASS: Final = "default"
METADATA_LIMIT_BYTES: Final = 4096
METADATA_LIMIT_LEVELS: Final = 100  # pydantic's serializer gives up at about 250
MAX_PIXEL_FRAMES: Final = 64 * 1024 * 1024  # width x height x frames: 64 frames of 1024², 128 of 720²


class JobState(str, Enum):
    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def is_final(self) -> bool:
        """Nothing that the cluster does by itself leads out of it."""
        return self in (JobState.DONE, JobState.CANCELLED, JobState.DEAD)


# Any waiting job may die too: its deadline can pass before a worker is free. Only a dead one can be asked for again.
TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.DEAD}),
    JobState.DELAYED: frozenset({JobState.QUEUED, JobState.CANCELLED, JobState.DEAD}),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.DELAYED, JobState.QUEUED, JobState.CANCELLED, JobState.DEAD}),
    JobState.DONE: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.DEAD: frozenset({JobState.QUEUED}),
}


def is_legal(before: JobState, after: JobState) -> bool:
    return after in TRANSITIONS[before]


class Reason(str, Enum):
    """Why an attempt failed; the same set everywhere."""

    OOM = "OOM"
    HOST_OOM = "HOST_OOM"
    TIMEOUT = "TIMEOUT"
    MODEL_LOAD_FAIL = "MODEL_LOAD_FAIL"
    CUDA_ERROR = "CUDA_ERROR"
    GPU_LOST = "GPU_LOST"
    WORKER_LOST = "WORKER_LOST"
    INVALID_INPUT = "INVALID_INPUT"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def parse(cls, value: object) -> Reason:
        return cls(value) if isinstance(value, str) and value in cls._value2member_map_ else cls.UNKNOWN


class Priority(str, Enum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def slack_seconds(self) -> int:
        return {Priority.HIGH: 0, Priority.NORMAL: 600, Priority.LOW: 3600}[self]


NUMBERS: Final = (
    *("width", "height", "frames", "fps", "steps", "cfg_scale", "seed", "deadline_seconds"),
    *("context_batch_size", "context_stride", "context_overlap", "clip_skip", "loop_number", "denoising_strength"),
    *("latent_power", "latent_scale", "latent_power_last", "latent_scale_last"),
)
# What a request carries inside itself and only the worker looks at: as large as it is private.
PICTURES: Final = ("init_image", "last_frame", "init_video", "controlnets", "sparse_control")


class JobRequest(BaseModel):
    """The public job request. Unknown fields are refused by name; what an engine cannot do, the engine refuses."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    negative_prompt: Prompt = ""
    width: Pixels = 512
    height: Pixels = 512
    frames: int = Field(16, ge=1, le=MAX_FRAMES, validate_default=True)
    fps: int = Field(8, ge=1, le=60)
    steps: int = Field(20, ge=1, le=150)
    cfg_scale: float = Field(7.5, ge=0, le=30)
    seed: int = Field(-1, ge=-1, le=2**63 - 1)
    sampler: Choice | None = None
    scheduler: Choice | None = None
    model: ModelName | None = None
    motion_module: ModelName | None = None
    vae: ModelName | None = None
    clip_skip: int = Field(1, ge=1, le=4)
    loras: list[Lora] = Field(default_factory=list, max_length=8)
    init_image: Image | None = None
    last_frame: Image | None = None
    init_video: Clip | None = None
    denoising_strength: float = Field(0.75, ge=0, le=1)
    latent_power: float = Field(1.0, ge=0.1, le=10)
    latent_scale: float = Field(32.0, ge=1, le=128)
    latent_power_last: float = Field(1.0, ge=0.1, le=10)
    latent_scale_last: float = Field(32.0, ge=1, le=128)
    free_init: FreeInit | None = None
    controlnets: list[ControlNet] = Field(default_factory=list, max_length=2)
    sparse_control: SparseControl | None = None
    context_batch_size: int | None = Field(None, ge=1, le=MAX_FRAMES)
    context_stride: int | None = Field(None, ge=1, le=8)
    context_overlap: int | None = Field(None, ge=-1, le=MAX_FRAMES - 1)
    closed_loop: bool = Field(False, strict=True)
    loop_number: int = Field(0, ge=0, le=65535)
    format: list[OutputFormat] = Field(default_factory=lambda: [OutputFormat.MP4], min_length=1, max_length=5)
    priority: Priority = Priority.NORMAL
    deadline_seconds: float | None = Field(None, gt=0, le=7 * 86400)
    metadata: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"maxProperties": 256})

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _refuse_texts_for_numbers(cls, value: object) -> object:
        """Nothing is silently read as something else; but JSON knows one kind of number, so 20.0 is a whole one."""
        return require_number(value)

    @field_validator("format", mode="before")
    @classmethod
    def _accept_one_format(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("metadata")
    @classmethod
    def _limit_metadata(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            size = len(json.dumps(value, allow_nan=False))
            json.dumps(value, ensure_ascii=False).encode()
        except RecursionError as error:
            raise ValueError("is nested too deeply") from error
        except UnicodeEncodeError as error:
            raise ValueError("holds half a surrogate pair, which is not Unicode text") from error
        if size > METADATA_LIMIT_BYTES:
            raise ValueError(f"is {size} bytes as JSON; at most {METADATA_LIMIT_BYTES} are kept")
        if nesting(value) > METADATA_LIMIT_LEVELS:
            raise ValueError(f"is nested too deeply; at most {METADATA_LIMIT_LEVELS} levels are kept")
        return value

    @field_validator("frames")
    @classmethod
    def _limit_travel(cls, value: int, info: ValidationInfo) -> int:
        if late := [number for number in frames_named(info.data.get("prompt", "")) if number >= value]:
            raise ValueError(f"the prompt travels to frame {late[0]}, and there are only {value}, numbered from 0")
        return value

    @field_validator("init_video")
    @classmethod
    def _refuse_two_starts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("init_image") is not None:
            raise ValueError("cannot be given together with init_image")
        return value

    @field_validator("sparse_control")
    @classmethod
    def _limit_key_frames(cls, value: SparseControl | None, info: ValidationInfo) -> SparseControl | None:
        frames = info.data.get("frames", MAX_FRAMES)
        if value is not None and (last := max(item.frame for item in value.images)) >= frames:
            raise ValueError(f"names frame {last}, and there are only {frames}, numbered from 0")
        return value

    @property
    def carries_pictures(self) -> bool:
        return any(getattr(self, name) for name in PICTURES)

    def canonical_json(self) -> str:
        """What the client said, in one spelling: equal requests are equal texts. Pure ASCII."""
        body = self.model_dump(mode="json", exclude_unset=True)
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def nesting(value: object) -> int:
    levels, inside = 0, [value]
    while containers := [item for item in inside if isinstance(item, (dict, list))]:
        levels += 1
        inside = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return levels


def pixel_frames(request: JobRequest) -> int:
    """What a video costs in memory and storage, whatever its shape."""
    return request.width * request.height * request.frames


def estimate_cost_ms(request: JobRequest) -> int:
    """GPU milliseconds on the reference card: 16 frames of 512² in 20 steps are taken as 10 s. Only ratios matter."""
    pixels = request.width * request.height / 512**2
    return max(100, round(10_000 * pixels * (request.frames / 16) * (_steps_run(request) / 20)))


def _steps_run(request: JobRequest) -> float:
    """Starting from a picture leaves out the first steps; FreeInit runs all of them again and again."""
    from_picture = request.init_image is not None or request.init_video is not None
    strength = request.denoising_strength if from_picture else 1.0
    return request.steps * strength * (request.free_init.iterations if request.free_init else 1)


# What AnimateDiff on Stable Diffusion 1.5 takes in half precision: the models, then this much per 16 frames of 512².
MODELS_MIB: Final = 3584
CONTEXT_MIB: Final = 3072
CONTEXT_FRAMES: Final = 16  # frames looked at together, unless the request says otherwise
VRAM_STEP_MIB: Final = 2048
VRAM_PLAIN_MIB: Final = 8192  # every worker is expected to have this much
FRAME_CLASSES: Final = (32, 64, 128)


@dataclass(frozen=True)
class Needs:
    """What a worker must have to run a job. The empty Needs is every plain job's; None and 0 stand for no need."""

    model: str | None = None
    motion_module: str | None = None
    vram_mib: int = 0
    frames: int = 0

    def to_json(self) -> str:
        """One spelling per meaning; what is not needed is not named."""
        named = {name: value for name, value in vars(self).items() if value}
        return json.dumps(named, sort_keys=True, separators=(",", ":"))

    def worker_class(self) -> str:
        if self == Needs():
            return DEFAULT_CLASS
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Capabilities:
    """What a worker can run. None stands for anything, 0 for no limit known (a CPU has no GPU memory to run out of)."""

    models: tuple[str, ...] | None = None
    motion_modules: tuple[str, ...] | None = None
    vram_mib: int = 0
    max_frames: int = 0
    loras: tuple[str, ...] | None = None
    vaes: tuple[str, ...] | None = None
    controlnets: tuple[str, ...] | None = None
    samplers: tuple[str, ...] | None = None
    schedulers: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, raw: object) -> Capabilities:
        """From a webui's ping. Whatever is not understood is taken as not limited: the webui itself refuses too."""
        if not isinstance(raw, Mapping):
            return cls()
        return cls(
            models=_model_names(raw.get("models")),
            motion_modules=_model_names(raw.get("motion_modules")),
            vram_mib=_count(raw.get("vram_mib")),
            max_frames=_count(raw.get("max_frames")),
            loras=_model_names(raw.get("loras")),
            vaes=_model_names(raw.get("vaes")),
            controlnets=_model_names(raw.get("controlnets")),
            samplers=_names(raw.get("samplers")),
            schedulers=_names(raw.get("schedulers")),
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; what would be None is left out."""
        named = {name: value for name, value in vars(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}

    def for_claim(self) -> dict[str, Any]:
        """What `lacks` looks at: the rest is for people to choose from, and a claim is made every second."""
        counted = ("models", "motion_modules", "vram_mib", "max_frames")
        return {name: value for name, value in self.as_dict().items() if name in counted}

    def lacks(self, needs: Needs) -> tuple[str, ...]:
        """The names of the needs that are not met."""
        lacking = {
            "model": needs.model is not None and self.models is not None and needs.model not in self.models,
            "motion_module": needs.motion_module is not None
            and self.motion_modules is not None
            and needs.motion_module not in self.motion_modules,
            "vram_mib": 0 < self.vram_mib < needs.vram_mib,
            "frames": 0 < self.max_frames < needs.frames,
        }
        return tuple(name for name, lacks in lacking.items() if lacks)


# A worker's record lies in Redis and is read with every listing: a folder of ten thousand LoRAs must not get there.
NAMES_LIMIT: Final = 1000
NAME_LIMIT_CHARS: Final = 200


def _names(value: object) -> tuple[str, ...] | None:
    """None too for a list too long to keep: what is not listed must not look as if it were missing."""
    if not isinstance(value, (list, tuple)) or len(value) > NAMES_LIMIT:
        return None
    return tuple(item for item in value if isinstance(item, str) and len(item) <= NAME_LIMIT_CHARS)


def _model_names(value: object) -> tuple[str, ...] | None:
    names = _names(value)
    return None if names is None else tuple(dict.fromkeys(model_stem(name) for name in names))


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def needs_of(request: JobRequest) -> Needs:
    together = min(request.frames, request.context_batch_size or CONTEXT_FRAMES)
    pixels = request.width * request.height / 512**2
    vram = MODELS_MIB + CONTEXT_MIB * pixels * together / 16
    window = min(request.frames, request.context_batch_size or request.frames)  # what the motion module sees at once
    frames = next(limit for limit in FRAME_CLASSES if window <= limit)
    return Needs(
        model=None if request.model is None else model_stem(request.model),
        motion_module=None if request.motion_module is None else model_stem(request.motion_module),
        vram_mib=0 if vram <= VRAM_PLAIN_MIB else math.ceil(vram / VRAM_STEP_MIB) * VRAM_STEP_MIB,
        frames=0 if frames == FRAME_CLASSES[0] else frames,
    )


def resolution_of(request: JobRequest) -> str:
    """The bucket under which run times are averaged."""
    return f"{request.width}x{request.height}"


def new_job_id(now_ms: int | None = None) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random; sorts by time."""
    timestamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    random = int.from_bytes(os.urandom(10), "big")
    value = (timestamp & (2**48 - 1)) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def is_job_id(text: str) -> bool:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    return str(parsed) == text and parsed.version == 7


def job_folder(job_id: str) -> str:
    """`<yyyy>/<mm>/<dd>/<job>`, relative to the jobs volume, from the id's own timestamp in UTC."""
    if not is_job_id(job_id):
        raise ValueError(f"{job_id!r} is not a UUIDv7 in canonical text")
    created = datetime.fromtimestamp((uuid.UUID(job_id).int >> 80) / 1000, tz=timezone.utc)
    return f"{created:%Y/%m/%d}/{job_id}"


def attempt_folder(job_id: str, fence: int) -> str:
    return f"{job_folder(job_id)}/attempts/{fence}"
