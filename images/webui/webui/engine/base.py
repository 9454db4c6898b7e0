"""What every engine is, does and may say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
Told = Callable[[int, int], None]
"""Hears how many of how many parts are done; what it raises ends the work."""

# After these the CUDA context stays broken: only a new process can use the GPU again.
POISONING: frozenset[Reason] = frozenset({"CUDA_ERROR", "GPU_LOST"})


class EngineError(Exception):
    """A failure with the reason that the agent, the queue and the metrics use for it.

    What in its message is no text, as in a file's name that is no UTF-8, shows as a question mark."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        self.message = message.encode(errors="replace").decode()
        super().__init__(self.message)


class StorageError(EngineError):
    """The shared storage does not take the result: it is full, read-only or away. Says nothing against the job."""

    def __init__(self, message: str) -> None:
        super().__init__("UNKNOWN", message)


class StoppedError(EngineError):
    def __init__(self) -> None:
        super().__init__("CANCELLED", "stopped on request")


def nobody(done: int, parts: int) -> None:
    """Hears of it and does nothing."""


@dataclass(frozen=True)
class Load:
    """Models that were loaded: cold for the first ones, cached from main memory, switched from disk."""

    model: str
    cache: Literal["cold", "cached", "switched"]
    seconds: float


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
    schedulers: Sequence[str] = ()
    # By name, all that may be asked for; checkpoint and motion_module are what is taken when nothing is.
    checkpoints: Sequence[str] = ()
    motion_modules: Sequence[str] = ()
    loras: Sequence[str] = ()
    vaes: Sequence[str] = ()
    controlnets: Sequence[str] = ()
    refused: Sequence[str] = ()  # file names of pickles that lie among them and are never loaded
    motion_frames: Mapping[str, int] = field(default_factory=dict)  # max_frames of the other motion modules


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
    picture: Callable[[], NDArray[np.uint8]] | None = field(default=None, compare=False)
    """Draws (height, width, 3) for a preview, where the tensors are no latents that one could look at."""


class Control(Protocol):
    """The engine's way to report; every call raises StoppedError when the job is to stop."""

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        """After each step, with the state that may be kept; it lies in main memory, where a hung GPU cannot hold it."""

    def phase(self, name: Phase, part: int = 0, parts: int = 0) -> None: ...

    def decoded(self, clip: Clip, ready: int) -> None:
        """The first `ready` of the clip's frames will not change any more, nor will its parameters."""

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

    def identify(self, request: VideoRequest) -> str:
        """Changes with the content of any model file that the request uses. Raises EngineError if one is missing."""

    def offers(self) -> dict[str, Any]:
        """The fields of Capabilities that change when files come and go. Any thread may ask; raises OSError."""

    def loads(self) -> list[Load]:
        """What was loaded since this was last asked."""

    def release(self) -> None:
        """Gives back what the last generation held, also after a failed one."""

    def gpu(self) -> dict[str, Any] | None:
        """`name`, `memory_total_mib`, `memory_used_mib` and, part of it, `memory_cached_mib`: what the engine has freed
        and keeps for itself. None without a GPU."""
