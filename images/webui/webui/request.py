"""Reads a generation order from the agent: every field checked, unknown ones refused by name."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from webui.engine.base import Capabilities

JOB_DIR = r"\d{4}/\d{2}/\d{2}/(?P<job>[0-9a-f-]{36})"
OUTPUT_DIR = re.compile(JOB_DIR + r"/attempts/(?P<fence>\d{1,20})")
CHECKPOINT_DIR = re.compile(JOB_DIR + "/checkpoint")
PRIORITIES = ("high", "normal", "low")
FORMATS = ("mp4", "gif", "webp", "frames")
# Part of the public request, but nothing here can do them yet: accepted only when they ask for nothing.
UNSUPPORTED = ("loras", "init_image", "closed_loop")
ORDER_FIELDS = {"job", "fence", "output_dir", "checkpoint_dir", "memory", "request"}
METADATA_BYTES = 4096


class RequestError(Exception):
    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {problem}" for name, problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class VideoRequest:
    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    frames: int = 16
    fps: int = 8
    steps: int = 20
    cfg_scale: float = 7.5
    seed: int = -1
    sampler: str | None = None
    model: str | None = None
    motion_module: str | None = None
    context_batch_size: int | None = None
    context_overlap: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MemorySettings:
    """What the agent asks for after this job has run out of memory; costs time, and a little quality."""

    context_batch_size: int | None = None
    vae_tiling: bool = False
    cpu_offload: bool = False


@dataclass(frozen=True)
class Order:
    """One attempt at a job. The folders are relative to the jobs volume; without one for checkpoints none are made."""

    job: str
    fence: int
    output_dir: str
    request: VideoRequest
    checkpoint_dir: str | None = None
    memory: MemorySettings = MemorySettings()


@dataclass(frozen=True)
class Interrupt:
    """Without a job it means whatever runs; with a fence only that attempt at the job."""

    job: str | None
    fence: int | None
    checkpoint: bool

    def means(self, order: Order) -> bool:
        return self.job in (None, order.job) and self.fence in (None, order.fence)


Check = Callable[[Any], str | None]


def _whole(low: int, high: int, multiple: int = 1) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return f"must be a whole number from {low} to {high}"
        return f"must be a multiple of {multiple}" if value % multiple else None

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return f"must be a number from {low:g} to {high:g}"
        return None

    return check


def _text(limit: int) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and len(value) <= limit else f"must be text of at most {limit} characters"

    return check


def _name(limit: int) -> Check:
    def check(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > limit:
            return f"must be null or text of at most {limit} characters"
        return "must not hold path separators" if "/" in value or "\\" in value else None

    return check


def _one_of(allowed: tuple[str, ...]) -> Check:
    def check(value: Any) -> str | None:
        return None if value in allowed else f"must be one of {', '.join(allowed)}"

    return check


def _format(value: Any) -> str | None:
    if not isinstance(value, list) or not value or any(item not in FORMATS for item in value):
        return f"must be a list of {', '.join(FORMATS)}"
    missing = [item for item in value if item != "mp4"]
    return f"{', '.join(missing)} is not supported by this engine; only mp4 is" if missing else None


def _stride(value: Any) -> str | None:
    return None if value is None or (value == 1 and not isinstance(value, bool)) else "only 1 is supported"


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _true_or_false(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _metadata(value: Any) -> str | None:
    if not isinstance(value, dict | None):
        return "must be an object"
    return None if len(json.dumps(value)) <= METADATA_BYTES else f"must not exceed {METADATA_BYTES} bytes"


def _nothing(value: Any) -> str | None:
    return "is not supported by this engine" if value else None


CHECKS: dict[str, Check] = {
    "prompt": _text(4000),
    "negative_prompt": _text(4000),
    "width": _whole(64, 1024, 8),
    "height": _whole(64, 1024, 8),
    "frames": _whole(1, 128),
    "fps": _whole(1, 60),
    "steps": _whole(1, 150),
    "cfg_scale": _number(0, 30),
    "seed": _whole(-1, 2**63 - 1),
    "sampler": _name(64),
    "model": _name(200),
    "motion_module": _name(200),
    "format": _format,
    "priority": _one_of(PRIORITIES),
    "deadline_seconds": _or_null(_number(0, 10**9)),
    "context_batch_size": _or_null(_whole(1, 128)),
    "context_overlap": _or_null(_whole(-1, 127)),
    "context_stride": _stride,
    "metadata": _metadata,
    **dict.fromkeys(UNSUPPORTED, _nothing),
}

MEMORY_CHECKS: dict[str, Check] = {
    "context_batch_size": _or_null(_whole(1, 128)),
    "vae_tiling": _true_or_false,
    "cpu_offload": _true_or_false,
}


def parse_order(body: object) -> Order:
    if not isinstance(body, dict):
        raise RequestError([("body", "must be a JSON object")])
    problems = [(str(name), "is not a known field") for name in body.keys() - ORDER_FIELDS]
    job, fence, output_dir = body.get("job"), body.get("fence"), body.get("output_dir")
    if not _is_uuid(job):
        problems.append(("job", "must be a UUID in canonical form"))
    if problem := _whole(1, 2**63 - 1)(fence):
        problems.append(("fence", problem))
    match = OUTPUT_DIR.fullmatch(output_dir) if isinstance(output_dir, str) else None
    if match is None or match["job"] != job or match["fence"] != str(fence):
        problems.append(("output_dir", "must be <yyyy>/<mm>/<dd>/<job>/attempts/<fence> of this very job and fence"))
    checkpoint_dir = body.get("checkpoint_dir")
    match = CHECKPOINT_DIR.fullmatch(checkpoint_dir) if isinstance(checkpoint_dir, str) else None
    if checkpoint_dir is not None and (match is None or match["job"] != job):
        problems.append(("checkpoint_dir", "must be <yyyy>/<mm>/<dd>/<job>/checkpoint of this very job"))
    memory = {} if body.get("memory") is None else body["memory"]
    problems += _problems_of("memory", memory, memory_problems)
    request = body.get("request")
    problems += _problems_of("request", request, request_problems)
    if problems:
        raise RequestError(problems)
    assert isinstance(job, str) and isinstance(fence, int) and isinstance(output_dir, str) and isinstance(request, dict)  # noqa: S101, PT018
    return Order(job, fence, output_dir, video_request(request), checkpoint_dir, MemorySettings(**memory))


def parse_interrupt(body: object) -> Interrupt:
    if not isinstance(body, dict):
        raise RequestError([("body", "must be a JSON object")])
    job, fence, keep = body.get("job"), body.get("fence"), body.get("checkpoint", False)
    problems = [(str(name), "is not a known field") for name in body.keys() - {"job", "fence", "checkpoint"}]
    if job is not None and not isinstance(job, str):
        problems.append(("job", "must be null or a job's id"))
    if problem := _or_null(_whole(1, 2**63 - 1))(fence):
        problems.append(("fence", problem))
    if problem := _true_or_false(keep):
        problems.append(("checkpoint", problem))
    if problems:
        raise RequestError(problems)
    return Interrupt(job, fence, keep)


def _problems_of(
    name: str, value: object, check: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(name, "must be a JSON object")]
    return [(f"{name}.{field}", problem) for field, problem in check(value)]


def memory_problems(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    problems = [(str(name), "is not a known field") for name in memory.keys() - MEMORY_CHECKS.keys()]
    for name in MEMORY_CHECKS.keys() & memory.keys():
        if problem := MEMORY_CHECKS[name](memory[name]):
            problems.append((name, problem))
    return sorted(problems)


def request_problems(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    problems = [(str(name), "is not a known field") for name in sorted(request.keys() - CHECKS.keys(), key=str)]
    if "prompt" not in request:
        problems.append(("prompt", "is missing"))
    for name in CHECKS.keys() & request.keys():
        if problem := CHECKS[name](request[name]):
            problems.append((name, problem))
    return sorted(problems)


def video_request(request: Mapping[str, Any]) -> VideoRequest:
    return VideoRequest(**{name: request[name] for name in VideoRequest.__dataclass_fields__ if name in request})


def context_of(request: VideoRequest, memory: MemorySettings) -> int | None:
    """How many frames the model may look at together; None when that is all of them."""
    asked = [size for size in (request.context_batch_size, memory.context_batch_size) if size is not None]
    context = min(asked, default=request.frames)
    return context if context < request.frames else None


def check_supported(request: VideoRequest, engine: Capabilities) -> None:
    """Refuses, by name, what the loaded engine cannot do."""
    problems: list[tuple[str, str]] = []
    if (context_of(request, MemorySettings()) or request.frames) > engine.max_frames:
        problems.append(("request.frames", f"the loaded motion module makes at most {engine.max_frames} frames"))
    for name, wanted, loaded in (
        ("model", request.model, engine.checkpoint),
        ("motion_module", request.motion_module, engine.motion_module),
    ):
        if wanted and wanted != loaded:
            problems.append((f"request.{name}", f"{wanted!r} is not loaded here; {loaded!r} is"))
    if request.sampler and request.sampler.lower() not in {name.lower() for name in engine.samplers}:
        problems.append(("request.sampler", f"not supported by this engine; use {', '.join(engine.samplers)}"))
    if problems:
        raise RequestError(problems)


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False
