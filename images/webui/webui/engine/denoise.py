"""From noise to latents: one pass of the pipeline, reported and resumable step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from webui.engine.base import Control, EngineError, Frames, Snapshot
from webui.request import VideoRequest

LATENTS, RANDOM, SCHEDULER = "latents", "random", "scheduler."  # names of tensors in a checkpoint


def denoise(
    pipeline: Any,
    request: VideoRequest,
    seed: int,
    generator: torch.Generator,
    control: Control,
    resume: Snapshot | None,
) -> torch.Tensor:
    scheduler = pipeline.scheduler
    scheduler.first_step, start = 0, None
    if resume is not None:
        scheduler.first_step = resume.step
        start = torch.tensor(resume.tensors[LATENTS]).to(pipeline._execution_device, pipeline.unet.dtype)
        scheduler.remember({name: torch.tensor(value) for name, value in _scheduler_part(resume).items()})
        if resume.step == request.steps:
            return start

    def report(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        done = scheduler.first_step + index + 1
        tensors = {LATENTS: values["latents"], RANDOM: generator.get_state()}
        tensors |= {SCHEDULER + name: value for name, value in scheduler.memory().items()}
        # Raises when the job is to stop; pipeline._interrupt would decode first.
        control.step(done, Snapshot(done, seed, {name: _to_numpy(tensor) for name, tensor in tensors.items()}))
        return values

    result = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_frames=request.frames,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        generator=generator,
        latents=start,
        output_type="latent",
        callback_on_step_end=report,
    )
    latents: torch.Tensor = result.frames
    return latents


def decode(vae: Any, latents: torch.Tensor, control: Control, at_once: int) -> Frames:
    """(1, channels, frames, h, w) latents, a few frames at a time, to (frames, height, width, 3) bytes."""
    chunks = latents[0].transpose(0, 1).split(at_once)
    pieces: list[Frames] = []
    for number, piece in enumerate(chunks, start=1):
        pixels = vae.decode(piece / vae.config.scaling_factor).sample.float()
        if not torch.isfinite(pixels).all():
            raise EngineError("UNKNOWN", "the model produced NaN or infinite pixels")
        pixels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round()
        pieces.append(pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy())
        control.phase("decode", number, len(chunks))
    return np.concatenate(pieces)


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _scheduler_part(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(SCHEDULER): value for name, value in snapshot.tensors.items() if name.startswith(SCHEDULER)
    }
