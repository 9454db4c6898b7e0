"""From noise, or from noised pictures, to latents: reported and resumable step by step.

The loop is our own. It makes the very numbers that diffusers' AnimateDiffPipeline makes, and can begin anywhere:
after a checkpoint, at a picture's strength, in the middle of FreeInit's runs.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from webui.engine.base import Control, Snapshot
from webui.engine.conditions import start_latents
from webui.engine.freeinit import next_noise
from webui.engine.guidance import Guidance
from webui.engine.text import embeddings
from webui.preview import picture_of
from webui.request import VideoRequest

# Names of tensors in a checkpoint.
LATENTS, NOISE, RANDOM, SCHEDULER = "latents", "noise", "random", "scheduler."


class Denoiser:
    """One generation's way from step to step. `seed` is only passed on into the checkpoints."""

    def __init__(
        self,
        pipeline: Any,
        request: VideoRequest,
        seed: int,
        generator: torch.Generator,
        control: Control,
        guidance: Guidance,
    ) -> None:
        self._pipeline = pipeline
        self._request = request
        self._seed = seed
        self._generator = generator
        self._control = control
        self._guidance = guidance
        self._scheduler = pipeline.scheduler
        self._device = pipeline._execution_device
        self._dtype = pipeline.unet.dtype
        draws = "generator" in signature(self._scheduler.step).parameters
        self._draws = {"generator": generator} if draws else {}
        self._noise: torch.Tensor | None = None  # the very first; FreeInit needs it again for every run

    def run(self, resume: Snapshot | None) -> torch.Tensor:
        """(1, channels, frames, h, w). Raises what `control` raises, within one step."""
        request = self._request
        done, latents = (0, None) if resume is None else (resume.step, self._taken_up(resume))
        if done == request.total_steps and latents is not None:
            return latents
        if latents is None:
            latents = self._begin()
        if request.total_steps:
            told = partial(self._control.phase, "step")
            texts = embeddings(self._pipeline, request, self._guidance.is_on, told)
            latents = self._steps(latents, texts, done, resume)
        self._pipeline.maybe_free_model_hooks()
        return latents

    def _begin(self) -> torch.Tensor:
        """The latents that the first step works on."""
        request, scheduler = self._request, self._scheduler
        clean = start_latents(self._pipeline, request, self._generator, partial(self._control.phase, "load"))
        self._control.phase("step")
        self._pipeline.maybe_free_model_hooks()  # an autoencoder that is only lent to the GPU goes first
        if request.starts_from_media and not request.total_steps:
            return torch.as_tensor(clean).to(self._device)
        self._set_steps(0)
        noise = self._fresh_noise(self._dtype)
        self._noise = noise if request.free_init else None
        if clean is None:
            return noise * scheduler.init_noise_sigma
        return self._noised(clean.to(self._device), noise)

    def _steps(self, latents: torch.Tensor, texts: torch.Tensor, done: int, resume: Snapshot | None) -> torch.Tensor:
        request, scheduler, count = self._request, self._scheduler, self._request.steps_a_run
        controls = self._pipeline.unet.controls
        while done < request.total_steps:
            inner = done % count
            if inner == 0 and done > 0:
                latents = self._renoised(latents)
            else:
                self._set_steps(inner, _scheduler_part(resume) if resume is not None else None)
            resume = None  # the next run begins like any other
            for timestep in scheduler.timesteps:
                if controls is not None:
                    controls.at(done % count, count)
                noise = self._guidance.predict(self._pipeline, latents, timestep, texts)
                result = scheduler.step(noise, timestep, latents, **self._draws)
                # Taken up from a checkpoint they lie in this order; in another one the next layers round otherwise.
                latents, done = result.prev_sample.contiguous(), done + 1
                self._report(done, latents, getattr(result, "pred_original_sample", None))
        return latents

    def _report(self, done: int, latents: torch.Tensor, clean: torch.Tensor | None) -> None:
        tensors = {LATENTS: latents, RANDOM: self._generator.get_state()}
        tensors |= {SCHEDULER + name: value for name, value in self._scheduler.memory().items()}
        if self._noise is not None:
            tensors[NOISE] = self._noise
        middle = (latents if clean is None else clean)[:, :, latents.shape[2] // 2][:, :, None]
        kept = {name: _to_numpy(tensor) for name, tensor in tensors.items()}
        # Raises when the job is to stop.
        self._control.step(done, Snapshot(done, self._seed, kept, partial(_picture, _to_numpy(middle))))

    def _set_steps(self, inner: int, memory: dict[str, NDArray[Any]] | None = None) -> None:
        """Makes the scheduler begin at the `inner`th step of a run."""
        request, scheduler = self._request, self._scheduler
        scheduler.first_step = request.steps - request.steps_a_run + inner
        scheduler.remember({name: torch.tensor(value) for name, value in (memory or {}).items()})
        scheduler.set_timesteps(request.steps, device=self._device)

    def _renoised(self, latents: torch.Tensor) -> torch.Tensor:
        """FreeInit, from one run to the next: noise of the strength that a run begins with."""
        self._set_steps(0)
        fresh = self._fresh_noise(torch.float32)
        noised = self._noised(latents, self._noise if self._noise is not None else fresh).float()
        pure = self._noised(torch.zeros_like(fresh), fresh)
        assert self._request.free_init is not None  # noqa: S101
        return next_noise(self._request.free_init, noised, pure).to(self._dtype)

    def _noised(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noised: torch.Tensor = self._scheduler.add_noise(latents, noise, self._scheduler.timesteps[:1])
        return noised

    def _fresh_noise(self, dtype: torch.dtype) -> torch.Tensor:
        """Drawn on the CPU: the same on every device."""
        pipeline, request = self._pipeline, self._request
        shape = latents_shape(pipeline, request)
        return torch.randn(shape, generator=self._generator, dtype=dtype).to(self._device)

    def _taken_up(self, resume: Snapshot) -> torch.Tensor:
        if NOISE in resume.tensors:
            self._noise = torch.tensor(resume.tensors[NOISE]).to(self._device, self._dtype)
        return torch.tensor(resume.tensors[LATENTS]).to(self._device, self._dtype)


def latents_shape(pipeline: Any, request: VideoRequest) -> tuple[int, int, int, int, int]:
    scale = pipeline.vae_scale_factor
    channels = pipeline.unet.config.in_channels
    return 1, channels, request.frames, request.height // scale, request.width // scale


def can_go_on(pipeline: Any, request: VideoRequest, snapshot: Snapshot) -> bool:
    """Whether the snapshot has what `Denoiser` needs, in the shapes that the request makes."""
    shape = latents_shape(pipeline, request)
    random = snapshot.tensors.get(RANDOM)
    needed = [snapshot.tensors.get(name) for name in ([LATENTS, NOISE] if request.free_init else [LATENTS])]
    return (
        all(tensor is not None and tensor.shape == shape and bool(np.isfinite(tensor).all()) for tensor in needed)
        and random is not None
        and random.dtype == np.uint8
        and random.shape == torch.Generator("cpu").get_state().shape
    )


def _picture(latents: NDArray[Any]) -> NDArray[np.uint8]:
    picture = picture_of(Snapshot(0, 0, {LATENTS: latents}))
    if picture is None:
        raise ValueError("these latents cannot be looked at")
    return picture


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:  # which numpy has not; single precision holds it without loss
        tensor = tensor.float()
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _scheduler_part(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(SCHEDULER): value for name, value in snapshot.tensors.items() if name.startswith(SCHEDULER)
    }
