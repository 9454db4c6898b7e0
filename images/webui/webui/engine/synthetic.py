"""Frames drawn by numpy instead of a model: for tests of everything around the engine.

The faults (a JSON object) make it fail on purpose:
`hang_at_step` n: never finishes step n and ignores cancellation · `crash_at_step` n: dies of SIGSEGV ·
`kill_at_step` n: dies of SIGKILL, as by the kernel's OOM killer · `hang_in_phase` load, decode or encode ·
`slow_step_seconds` s: a step takes that long · `oom_above_context` n: OOM unless at most n frames are looked at
together · `oom_without_tiling`, `oom_without_offload` true: OOM unless that is on · `nan_at_decode` true: the steps
were for nothing · `only_prompt_contains` text: all of these only happen to those prompts ·
`oom` n: the first n generations fail with OOM · `sick_after_oom` true: so does the self-test after any generation ·
`fail_prompt_contains` text, with `reason`: those prompts fail · `load_seconds` s: loading takes that long ·
`load_error` text: loading fails · `vram_mib` n, `max_frames` n: claims to have that.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from webui import __version__
from webui.engine.base import Capabilities, Clip, Control, EngineError, Frames, Load, Phase, Reason, Snapshot
from webui.engine.library import Library
from webui.request import MemorySettings, VideoRequest, context_of
from webui.sampler_names import SAMPLERS, SCHEDULES
from webui.settings import EngineSettings

MAX_FRAMES = 128
STATE_BYTES = 32
# Asked for, each of these makes another picture, as it would with a model.
MORE = ("init_image", "last_frame", "init_video", "controlnets", "sparse_control", "free_init", "loras", "closed_loop")
KNOWN_FAULTS = frozenset(
    {"hang_at_step", "crash_at_step", "kill_at_step", "hang_in_phase", "slow_step_seconds", "only_prompt_contains"}
    | {"oom_above_context", "oom_without_tiling", "oom_without_offload", "nan_at_decode", "vram_mib", "max_frames"}
    | {"sick_after_oom", "oom", "fail_prompt_contains", "reason", "load_seconds", "load_error", "cached_mib"}
)


class SyntheticEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._faults: dict[str, Any] = json.loads(settings.faults)
        self._generations = 0

    def load(self) -> Capabilities:
        unknown = self._faults.keys() - KNOWN_FAULTS
        if unknown or self._faults.get("reason", "UNKNOWN") not in get_args(Reason):
            raise EngineError("MODEL_LOAD_FAIL", f"faults hold something unknown: {json.dumps(self._faults)}")
        time.sleep(self._faults.get("load_seconds", 0))
        if "load_error" in self._faults:
            raise EngineError("MODEL_LOAD_FAIL", str(self._faults["load_error"]))
        names = f"synthetic {__version__} {self._settings.checkpoint} {self._settings.motion_module}"
        return Capabilities(
            engine="synthetic",
            fingerprint=hashlib.sha256(names.encode()).hexdigest(),
            synthetic=True,
            checkpoint=self._settings.checkpoint,
            motion_module=self._settings.motion_module,
            max_frames=self._faults.get("max_frames", MAX_FRAMES),
            samplers=tuple(SAMPLERS),
            schedulers=SCHEDULES,
            vram_mib=self._faults.get("vram_mib", 0),
            **self.offers(),
        )

    def warm_up(self) -> Clip:
        if self._generations and self._faults.get("sick_after_oom"):
            raise EngineError("OOM", "synthetic fault: still out of GPU memory")
        return Clip(draw_frames(VideoRequest(prompt="warm-up", width=64, height=64, frames=2), seed=0))

    def accepts(self, snapshot: Snapshot, request: VideoRequest) -> bool:
        state = snapshot.tensors.get("state")
        return state is not None and state.dtype == np.uint8 and state.shape == (STATE_BYTES,)

    def generate(
        self, request: VideoRequest, control: Control, memory: MemorySettings, resume: Snapshot | None = None
    ) -> Clip:
        self._generations += 1
        if self._generations <= self._faults.get("oom", 0):
            raise EngineError("OOM", "synthetic fault: out of GPU memory")
        failing = self._faults.get("fail_prompt_contains")
        if failing and failing in request.prompt:
            raise EngineError(self._faults.get("reason", "UNKNOWN"), f"synthetic fault: prompt contains {failing!r}")
        faults = self._faults if self._faults.get("only_prompt_contains", "") in request.prompt else {}
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**63)
        done, state = 0, first_state(request, seed, memory)
        if resume is not None:
            done, seed, state = resume.step, resume.seed, resume.tensors["state"].tobytes()
        _enter(control, "load", faults)
        _run_out_of_memory(faults, request, memory)
        control.phase("step")
        while done < request.total_steps:
            done += 1
            _misbehave(faults, done)
            time.sleep(faults.get("slow_step_seconds", self._settings.step_seconds))
            state = next_state(state, done)
            picture = partial(_draw_preview, request, seed, state)
            control.step(done, Snapshot(done, seed, {"state": np.frombuffer(state, np.uint8)}, picture))
        _enter(control, "decode", faults)
        if faults.get("oom_without_tiling") and not memory.vae_tiling:
            raise EngineError("OOM", "synthetic fault: out of GPU memory while decoding")
        if faults.get("nan_at_decode"):
            raise EngineError("UNKNOWN", "synthetic fault: the model produced NaN")
        frames = draw_frames(request, seed, state)
        _enter(control, "encode", faults)
        return Clip(frames, request.described() | {"seed": seed, "sampler": "DDIM"})

    def identify(self, request: VideoRequest) -> str:
        """Its pictures depend on no file."""
        return ""

    def offers(self) -> dict[str, Any]:
        return Library(self._settings.models_dir, self._settings.scratch_dir).offers()

    def loads(self) -> list[Load]:
        return []

    def release(self) -> None:
        """Holds nothing between generations."""

    def gpu(self) -> dict[str, Any] | None:
        total, cached = self._faults.get("vram_mib"), self._faults.get("cached_mib", 0)
        memory = {"memory_total_mib": total, "memory_used_mib": cached, "memory_cached_mib": cached}
        return total and {"name": "synthetic", **memory}


def _enter(control: Control, phase: Phase, faults: dict[str, Any]) -> None:
    control.phase(phase)
    while phase == faults.get("hang_in_phase"):
        time.sleep(60)


def _run_out_of_memory(faults: dict[str, Any], request: VideoRequest, memory: MemorySettings) -> None:
    together = context_of(request, memory) or request.frames
    if together > faults.get("oom_above_context", together):
        raise EngineError("OOM", f"synthetic fault: out of GPU memory with {together} frames together")
    if faults.get("oom_without_offload") and not memory.cpu_offload:
        raise EngineError("OOM", "synthetic fault: out of GPU memory without offloading")


def _misbehave(faults: dict[str, Any], step: int) -> None:
    if step == faults.get("crash_at_step"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if step == faults.get("kill_at_step"):
        os.kill(os.getpid(), signal.SIGKILL)
    while step == faults.get("hang_at_step"):
        time.sleep(60)


def first_state(request: VideoRequest, seed: int, memory: MemorySettings) -> bytes:
    text = f"{seed} {context_of(request, memory)} {request.prompt} {request.negative_prompt}"
    more = {name: value for name, value in request.described().items() if name in MORE}
    text += f" {json.dumps(more, sort_keys=True)}" if more else ""
    return hashlib.sha256(text.encode()).digest()


def next_state(state: bytes, step: int) -> bytes:
    """As a model's latents do, the state depends on every step before: none can be left out or done twice."""
    return hashlib.sha256(state + step.to_bytes(4, "big")).digest()


def _draw_preview(request: VideoRequest, seed: int, state: bytes) -> NDArray[np.uint8]:
    small = replace(request, width=max(8, request.width // 4), height=max(8, request.height // 4), frames=1)
    picture: NDArray[np.uint8] = draw_frames(small, seed, state)[0]
    return picture


def draw_frames(request: VideoRequest, seed: int, state: bytes | None = None) -> Frames:
    """A disc that travels once around over drifting stripes; colours and speed follow the state after the last step."""
    if state is None:
        state = first_state(request, seed, MemorySettings())
        for step in range(1, request.steps + 1):
            state = next_state(state, step)
    random = np.random.default_rng(list(state))
    colours = random.integers(40, 256, size=(2, 3))
    angle, waves = random.uniform(0, 2 * np.pi), random.integers(2, 6)
    y, x = np.mgrid[0 : request.height, 0 : request.width].astype(np.float32)
    y, x = y / request.height - 0.5, x / request.width - 0.5
    across = np.cos(angle) * x + np.sin(angle) * y
    frames = np.empty((request.frames, request.height, request.width, 3), np.uint8)
    for index in range(request.frames):
        turn = 2 * np.pi * index / request.frames
        stripes = 0.5 + 0.5 * np.sin(2 * np.pi * waves * across + turn)
        disc = np.hypot(x - 0.28 * np.cos(turn + angle), y - 0.28 * np.sin(turn + angle)) < 0.14
        frames[index] = np.where(disc[..., None], colours[0], stripes[..., None] * colours[1])
    return frames
