"""What to give up, rung by rung, when a job has run out of GPU memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.agent.ending import Failed
from appliance.job import JobRequest
from appliance.queue import FailKind

SMALLER_CONTEXTS = (12, 8)


@dataclass(frozen=True)
class Memory:
    """`context_batch_size` None means as the request has it."""

    context_batch_size: int | None = None
    vae_tiling: bool = False
    cpu_offload: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        """What the user reads in the job's history; empty for the request as it was made."""
        parts = [f"context {self.context_batch_size}"] if self.context_batch_size else []
        parts += ["vae tiling"] if self.vae_tiling else []
        parts += ["cpu offload"] if self.cpu_offload else []
        return ", ".join(parts)


def ladder(request: Mapping[str, Any]) -> tuple[Memory, ...]:
    """Cheaper and cheaper. Without a context of its own a request is denoised all frames together, so a context that
    is not smaller than that would only repeat the attempt that has just failed."""
    together = _together(request)
    rungs = [Memory(), *(Memory(size) for size in SMALLER_CONTEXTS if size < together)]
    context = rungs[-1].context_batch_size
    return (*rungs, Memory(context, vae_tiling=True), Memory(context, vae_tiling=True, cpu_offload=True))


def memory_for(request: Mapping[str, Any], ooms: int) -> Memory:
    rungs = ladder(request)
    return rungs[min(max(ooms, 0), len(rungs) - 1)]


def after_oom(failed: Failed, request: Mapping[str, Any], memory: Memory) -> Failed:
    """The failure to report: another try where there is a cheaper rung, else the end with what to ask for less of."""
    if failed.kind is not FailKind.OOM or memory != ladder(request)[-1]:
        return failed
    message = f"out of memory even with {memory.label}; ask for {_less_of(request)} ({failed.message})"
    return replace(failed, kind=FailKind.PERMANENT, message=message)


def _less_of(request: Mapping[str, Any]) -> str:
    width, height, frames = (_number(request, name) for name in ("width", "height", "frames"))
    return f"a smaller picture than {width}x{height}" + (f" or fewer frames than {frames}" if frames > 1 else "")


def _together(request: Mapping[str, Any]) -> int:
    frames = _number(request, "frames")
    context = request.get("context_batch_size")
    return min(frames, context) if isinstance(context, int) else frames


def _number(request: Mapping[str, Any], name: str) -> int:
    value = request.get(name)
    return value if isinstance(value, int) else int(JobRequest.model_fields[name].default)
