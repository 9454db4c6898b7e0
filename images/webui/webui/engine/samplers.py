"""From a sampler's and a schedule's name to a scheduler that can be stopped after any step and gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from webui.sampler_names import AUTOMATIC, EXPONENTIAL, KARRAS, SGM_UNIFORM, Choice

TRAIN_STEPS = 1000
LCM_STEPS = 50  # as many as the teacher made when the student was trained
SPACING = {AUTOMATIC: "leading", SGM_UNIFORM: "trailing"}
# What the schedulers remember from step to step; the index of the step itself follows from `first_step`.
COUNTS = ("lower_order_nums", "this_order")
STATE = ("model_outputs", "timestep_list", "last_sample", "sample", *COUNTS)
BFLOAT16 = ".bf16"  # numpy, which checkpoints are made of, has no such type


@dataclass(frozen=True)
class Noise:
    """What a checkpoint was trained with. AnimateDiff itself always spaces the betas linearly."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"


class Resumable:
    """A scheduler of diffusers' that leaves out the first steps, as no pipeline of diffusers' can.

    Only `timesteps` shows what is left. Underneath, the scheduler keeps the full list, because some make their last
    steps depend on its length; it is told the index to begin at, and given what it had remembered. So the remaining
    steps are, bit for bit, what they would have been.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._memory: dict[str, Any] = {}
        self.first_step = 0
        self.scaled = False
        """Whether the latents that the pipeline is given already have the first step's share of noise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_scheduler":
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    @property
    def timesteps(self) -> Any:
        return self._scheduler.timesteps[self.first_step :]

    @property
    def init_noise_sigma(self) -> Any:
        """Pipelines multiply the first latents with it, also those that were given to them."""
        return 1.0 if self.first_step or self.scaled else self._scheduler.init_noise_sigma

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **options: Any) -> None:
        if isinstance(self._scheduler, LCMScheduler):
            options["original_inference_steps"] = max(LCM_STEPS, num_inference_steps)
        self._scheduler.set_timesteps(num_inference_steps, device=device, **options)
        if self.first_step and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self.first_step)
        for name, value in self._memory.items():
            self._restore(name, value, device)

    def memory(self) -> dict[str, torch.Tensor]:
        """What it keeps from step to step, by name; empty for a sampler that looks back at nothing."""
        found: dict[str, torch.Tensor] = {}
        for name in STATE:
            value = getattr(self._scheduler, name, None)
            for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
                if item is not None:
                    key = name if index is None else f"{name}.{index}"
                    found |= _packed(key, torch.as_tensor(item))
        return found

    def remember(self, memory: Mapping[str, torch.Tensor]) -> None:
        """What `memory` gave out after step `first_step`; taken up by the next `set_timesteps`."""
        self._memory = dict(memory)

    def _restore(self, key: str, value: torch.Tensor, device: Any) -> None:
        if key.endswith(BFLOAT16):
            key, value = key.removesuffix(BFLOAT16), value.view(torch.bfloat16)
        name, _, index = key.partition(".")
        if name not in STATE:
            raise ValueError(f"a {type(self._scheduler).__name__} remembers nothing called {key}")
        if index:
            getattr(self._scheduler, name)[int(index)] = value.to(device)
        else:
            setattr(self._scheduler, name, int(value) if name in COUNTS else value.to(device))


def _packed(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {key + BFLOAT16: tensor.view(torch.int16)} if tensor.dtype == torch.bfloat16 else {key: tensor}


def make_scheduler(choice: Choice, noise: Noise) -> Resumable:
    """The scheduler of that name on AnimateDiff's betas, for a model of that `noise`."""
    common: dict[str, Any] = {
        "num_train_timesteps": TRAIN_STEPS,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": "linear",
        "prediction_type": noise.prediction_type,
    }
    return Resumable(_make(choice, common))


def _make(choice: Choice, common: dict[str, Any]) -> Any:
    spacing = SPACING.get(choice.schedule, "linspace")
    sigmas = {"use_karras_sigmas": choice.schedule == KARRAS, "use_exponential_sigmas": choice.schedule == EXPONENTIAL}
    if choice.sampler == "DDIM":
        return DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing=spacing, **common)
    if choice.sampler == "LCM":
        return LCMScheduler(clip_sample=False, **common)
    if choice.sampler == "Euler a":
        return EulerAncestralDiscreteScheduler(timestep_spacing=spacing, **common)
    if choice.sampler == "Euler":
        return EulerDiscreteScheduler(timestep_spacing=spacing, **sigmas, **common)
    if choice.sampler == "UniPC":
        return UniPCMultistepScheduler(timestep_spacing=spacing, **sigmas, **common)
    if choice.sampler == "DPM++ SDE":
        return DPMSolverSinglestepScheduler(
            algorithm_type="sde-dpmsolver++", lower_order_final=True, **sigmas, **common
        )
    kind = "sde-dpmsolver++" if "SDE" in choice.sampler else "dpmsolver++"
    return DPMSolverMultistepScheduler(
        algorithm_type=kind,
        solver_order=3 if "3M" in choice.sampler else 2,
        solver_type="heun" if choice.sampler.endswith("Heun") else "midpoint",
        timestep_spacing=spacing,
        **sigmas,
        **common,
    )
