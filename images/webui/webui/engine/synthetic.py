"""Frames drawn by numpy instead of a model: for tests of everything around the engine.

The faults (a JSON object) make it fail on purpose:
`hang_at_step` n: never finishes step n and ignores cancellation · `crash_at_step` n: dies of SIGSEGV ·
`kill_at_step` n: dies of SIGKILL, as by the kernel's OOM killer · `oom` n: the first n generations fail with OOM ·
`fail_prompt_contains` text, with `reason`: those prompts fail · `load_seconds` s: loading takes that long ·
`load_error` text: loading fails · `only_prompt_contains` text: hang, crash and kill only happen to those prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import time
from typing import Any, get_args

import numpy as np

from webui import __version__
from webui.engine.base import Capabilities, Clip, Control, EngineError, Frames, Reason
from webui.request import VideoRequest
from webui.settings import EngineSettings

MAX_FRAMES = 128
KNOWN_FAULTS = frozenset(
    {"hang_at_step", "crash_at_step", "kill_at_step", "only_prompt_contains"}
    | {"oom", "fail_prompt_contains", "reason", "load_seconds", "load_error"}
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
            max_frames=MAX_FRAMES,
            samplers=("DDIM",),
        )

    def warm_up(self) -> Clip:
        return Clip(draw_frames(VideoRequest(prompt="warm-up", width=64, height=64, frames=2), seed=0))

    def generate(self, request: VideoRequest, control: Control) -> Clip:
        self._generations += 1
        if self._generations <= self._faults.get("oom", 0):
            raise EngineError("OOM", "synthetic fault: out of GPU memory")
        failing = self._faults.get("fail_prompt_contains")
        if failing and failing in request.prompt:
            raise EngineError(self._faults.get("reason", "UNKNOWN"), f"synthetic fault: prompt contains {failing!r}")
        for step in range(1, request.steps + 1):
            self._misbehave(step, request.prompt)
            time.sleep(self._settings.step_seconds)
            control.step(step)
        control.phase("decode")
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**63)
        return Clip(draw_frames(request, seed), request.as_dict() | {"seed": seed, "sampler": "DDIM"})

    def release(self) -> None:
        """Holds nothing between generations."""

    def _misbehave(self, step: int, prompt: str) -> None:
        if self._faults.get("only_prompt_contains", "") not in prompt:
            return
        if step == self._faults.get("crash_at_step"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if step == self._faults.get("kill_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        while step == self._faults.get("hang_at_step"):
            time.sleep(60)


def draw_frames(request: VideoRequest, seed: int) -> Frames:
    """A disc that travels once around over drifting stripes; colours and speed follow seed and prompt."""
    digest = hashlib.sha256(f"{seed} {request.prompt} {request.negative_prompt}".encode()).digest()
    random = np.random.default_rng(list(digest))
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
