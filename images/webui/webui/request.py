"""Reads a generation order from the agent: every field checked, unknown ones refused by name."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from webui.checks import or_null, problems_of, true_or_false, whole
from webui.model_names import find_name, plain_name
from webui.request_checks import CHECKS, FORMATS, PRIORITIES, memory_problems, request_problems
from webui.sampler_names import UnknownChoiceError, choose
from webui.video_request import ControlNet, FreeInit, KeyImage, Lora, SparseControl, VideoRequest, video_request

if TYPE_CHECKING:
    from webui.engine.base import Capabilities

JOB_DIR = r"\d{4}/\d{2}/\d{2}/(?P<job>[0-9a-f-]{36})"
OUTPUT_DIR = re.compile(JOB_DIR + r"/attempts/(?P<fence>\d{1,20})")
CHECKPOINT_DIR = re.compile(JOB_DIR + "/checkpoint")
ORDER_FIELDS = {"job", "fence", "output_dir", "checkpoint_dir", "memory", "request"}

__all__ = [
    "CHECKS",
    "FORMATS",
    "PRIORITIES",
    "ControlNet",
    "FreeInit",
    "Interrupt",
    "KeyImage",
    "Lora",
    "MemorySettings",
    "Order",
    "RequestError",
    "SparseControl",
    "VideoRequest",
    "check_supported",
    "context_of",
    "parse_interrupt",
    "parse_order",
    "request_problems",
    "video_request",
]


class RequestError(Exception):
    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {problem}" for name, problem in problems))
        self.problems = problems


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
    scratch: bool = False
    """A node-local run: its folder is relative to the local scratch disk."""

    @property
    def owner(self) -> str:
        """What whoever finds the engine busy is told: the job, or `local`, which no agent may interrupt."""
        return "local" if self.scratch else self.job


@dataclass(frozen=True)
class Interrupt:
    """Without a job it means whatever runs; with a fence only that attempt at the job. Never a node-local run."""

    job: str | None
    fence: int | None
    checkpoint: bool

    def means(self, order: Order) -> bool:
        return not order.scratch and self.job in (None, order.job) and self.fence in (None, order.fence)


def parse_order(body: object) -> Order:
    if not isinstance(body, dict):
        raise RequestError([("body", "must be a JSON object")])
    problems = [(str(name), "is not a known field") for name in body.keys() - ORDER_FIELDS]
    job, fence, output_dir = body.get("job"), body.get("fence"), body.get("output_dir")
    if not _is_uuid(job):
        problems.append(("job", "must be a UUID in canonical form"))
    problems += problems_of("fence", fence, whole(1, 2**63 - 1))
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
    problems += problems_of("fence", fence, or_null(whole(1, 2**63 - 1)))
    problems += problems_of("checkpoint", keep, true_or_false)
    if problems:
        raise RequestError(problems)
    return Interrupt(job, fence, keep)


def _problems_of(
    name: str, value: object, check: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(name, "must be a JSON object")]
    return [(f"{name}.{field}", problem) for field, problem in check(value)]


def context_of(request: VideoRequest, memory: MemorySettings) -> int | None:
    """How many frames the model may look at together; None when that is all of them."""
    asked = [size for size in (request.context_batch_size, memory.context_batch_size) if size is not None]
    context = min(asked, default=request.frames)
    return context if context < request.frames else None


def check_supported(request: VideoRequest, engine: Capabilities) -> None:
    """Refuses, by name, what the engine cannot do."""
    problems = _missing_models(request, engine)
    module = find_name(request.motion_module or engine.motion_module, engine.motion_frames)
    max_frames = engine.motion_frames[module] if module else engine.max_frames
    if (context_of(request, MemorySettings()) or request.frames) > max_frames:
        problems.append(("request.frames", f"the motion module makes at most {max_frames} frames together"))
    try:
        choice = choose(request.sampler, request.scheduler, request.motion_module or engine.motion_module)
        if request.sampler and choice.sampler.lower() not in {name.lower() for name in engine.samplers}:
            problems.append(("request.sampler", f"not supported by this engine; use {', '.join(engine.samplers)}"))
    except UnknownChoiceError as error:
        problems.append((f"request.{error.field}", error.message))
    if problems:
        raise RequestError(problems)


def _missing_models(request: VideoRequest, engine: Capabilities) -> list[tuple[str, str]]:
    wanted: list[tuple[str, str | None, Sequence[str]]] = [
        ("model", request.model, engine.checkpoints or [engine.checkpoint]),
        ("motion_module", request.motion_module, engine.motion_modules or [engine.motion_module]),
        ("vae", request.vae, engine.vaes),
        *((f"loras[{at}].name", lora.name, engine.loras) for at, lora in enumerate(request.loras)),
        *((f"controlnets[{at}].model", net.model, engine.controlnets) for at, net in enumerate(request.controlnets)),
    ]
    if request.sparse_control is not None:
        wanted.append(("sparse_control.model", request.sparse_control.model, engine.controlnets))
    return [
        (f"request.{field}", f"{name!r} {_why_not(name, engine)}; {_some(there)}")
        for field, name, there in wanted
        if name and find_name(name, there) is None
    ]


def _why_not(name: str, engine: Capabilities) -> str:
    if find_name(name, map(plain_name, engine.refused)) is None:
        return "is not here"
    return "is a pickle, which can run any code and is never loaded: convert it to .safetensors"


def _some(names: Sequence[str]) -> str:
    if not names:
        return "there are none"
    return f"there is {', '.join(names[:20])}" + (", and more" if len(names) > 20 else "")


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False
