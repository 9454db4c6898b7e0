"""Context windows: the model sees a few neighbouring frames at a time, as in AUTOMATIC1111's AnimateDiff extension.

Each step runs the UNet once per window and blends what overlaps, so memory follows the window and not the clip, in
every layer. (diffusers' FreeNoise only shortens temporal attention: the other layers still see the whole clip.)
Nothing is carried from step to step, so a checkpoint needs nothing more for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.unets.unet_motion_model import UNetMotionOutput

from webui.engine.context import windows

TILE_PIXELS = 256


class WindowedUNet(UNetMotionModel):  # type: ignore[misc]
    """The pipeline's own UNet with another `forward`: as a subclass it also works below accelerate's hooks."""

    windows: tuple[tuple[int, int], ...] = ()

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> Any:
        if not self.windows:
            return super().forward(sample, timestep, encoder_hidden_states, **options)
        options["return_dict"] = False
        clips, _, frames, _, _ = sample.shape
        texts = encoder_hidden_states.unflatten(0, (clips, frames))
        total = torch.zeros_like(sample, dtype=torch.float32)
        weights = torch.zeros(frames, 1, 1, dtype=torch.float32, device=sample.device)
        for start, end in self.windows:
            text = texts[:, start:end].flatten(0, 1)
            (noise,) = super().forward(sample[:, :, start:end], timestep, text, **options)
            weight = _weights(end - start).to(sample.device)
            total[:, :, start:end] += noise.float() * weight
            weights[start:end] += weight
        return UNetMotionOutput(sample=(total / weights).to(sample.dtype))


def _weights(count: int) -> Any:
    """A window knows its middle best, and must not show its edges."""
    half = torch.arange(1, count + 1, dtype=torch.float32)
    return torch.minimum(half, half.flip(0)).view(count, 1, 1)


@contextmanager
def windowed(unet: Any, frames: int, context: int | None, overlap: int | None) -> Iterator[None]:
    unet.windows = tuple(windows(frames, context, overlap)) if context else ()
    try:
        yield
    finally:
        unet.windows = ()


@contextmanager
def tiled(vae: Any, wanted: bool) -> Iterator[None]:
    """Halves the tile until even a picture of the usual size has several; else tiling would change nothing."""
    if not wanted:
        yield
        return
    before = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    vae.enable_tiling()
    shrink = max(1, vae.tile_sample_min_size // TILE_PIXELS)
    vae.tile_sample_min_size //= shrink
    vae.tile_latent_min_size //= shrink
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = before
