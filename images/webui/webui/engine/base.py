"""What every engine is, does and may say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from webui.request import MemorySettings, VideoRequest

Reason = Literal[
    "OOM",
    "HOST_OOM",
    "TIMEOUT",
    "MODEL_LOAD_FAIL",
    "CUDA_ERROR",
    "GPU_LOST",
    "WORKER_LOST",
    "INVALID_INPUT",
    "CANCELLED",
    "UNKNOWN",
]
Phase = Literal["load", "step", "decode", "encode"]
Frames = NDArray[np.uint8]

# After these the CUDA context stays broken: only a new process can use the GPU again.
POISONING: frozenset[Reason] = frozenset({"CUDA_ERROR", "GPU_LOST"})


class EngineError(Exception):
    """A failure with the reason that the agent, the queue and the metrics use for it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class StoppedError(EngineError):
    def __init__(self) -> None:
        super().__init__("CANCELLED", "stopped on request")


@dataclass(frozen=True)
class Capabilities:
    """What the loaded engine can do; requests for anything else are refused before they reach it."""

    engine: str
    fingerprint: str
    synthetic: bool
    checkpoint: str
    motion_module: str
    max_frames: int
    samplers: Sequence[str]
    vram_mib: int = 0  # 0: not limited, or not known


@dataclass
class Clip:
    """Frames as (count, height, width, 3) RGB, and the parameters that made them, the seed included."""

    frames: Frames
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """All that a generation needs to go on after `step` steps as if it had never stopped.

    The seed is part of it: a request may have left the choice to the engine.
    """

    step: int
    seed: int
    tensors: dict[str, NDArray[Any]]


class Control(Protocol):
    """The engine's way to report; every call raises StoppedError when the job is to stop."""

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        """After each step, with the state that may be kept; it lies in main memory, where a hung GPU cannot hold it."""

    def phase(self, name: Phase, part: int = 0, parts: int = 0) -> None: ...

    def check(self) -> None: ...


class Engine(Protocol):
    def load(self) -> Capabilities: ...

    def warm_up(self) -> Clip: ...

    def accepts(self, snapshot: Snapshot, request: VideoRequest) -> bool:
        """Whether the snapshot has the shapes that the request needs; it was made by an equal engine."""

    def generate(
        self, request: VideoRequest, control: Control, memory: MemorySettings, resume: Snapshot | None = None
    ) -> Clip:
        """`memory` holds for this generation alone."""

    def release(self) -> None:
        """Gives back what the last generation held, also after a failed one."""

    def gpu(self) -> dict[str, Any] | None:
        """`name`, `memory_total_mib` and `memory_used_mib`, or None without a GPU."""
