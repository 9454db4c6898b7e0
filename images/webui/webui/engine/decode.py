"""From latents to frames, a few at a time, and fewer where memory is short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from webui.engine.base import Clip, Control, EngineError

TILE_PIXELS = 256

log = logging.getLogger(__name__)


def decode(
    vae: Any, latents: torch.Tensor, control: Control, at_once: int, parameters: dict[str, Any] | None = None
) -> Clip:
    """(1, channels, frames, h, w) latents to (frames, height, width, 3) bytes, which `control` may use as they come.

    A GPU that has no memory for `at_once` frames goes on with one, and then with tiles of it; what is decoded stays.
    """
    pictures = latents[0].transpose(0, 1)
    clip = Clip(np.empty((0, 0, 0, 3), np.uint8), parameters or {})
    done, count = 0, len(pictures)
    with ExitStack() as tiles:
        while done < count:
            pixels = _tried(vae, pictures[done : done + at_once], last_try=at_once == 1 and vae.use_tiling)
            if pixels is None:  # out here the failed attempt's tensors are free
                torch.cuda.empty_cache()
                if at_once == 1:
                    tiles.enter_context(tiled(vae, True))
                at_once = 1
                continue
            if not done:
                clip.frames = np.empty((count, *pixels.shape[1:]), np.uint8)
            clip.frames[done : done + len(pixels)] = pixels.numpy()
            done += len(pixels)
            control.decoded(clip, done)
            control.phase("decode", done, count)
    return clip


def _tried(vae: Any, latents: torch.Tensor, last_try: bool) -> torch.Tensor | None:
    """(count, height, width, 3) bytes on the CPU; None if there is too little memory for it."""
    try:
        return _pixels(vae, latents)
    except torch.cuda.OutOfMemoryError as error:
        if last_try:
            raise
        log.warning("not enough memory to decode %d frames at once: %s", len(latents), str(error).splitlines()[0])
    return None


def _pixels(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    pixels = vae.decode(latents / vae.config.scaling_factor).sample.float()
    if not torch.isfinite(pixels).all():
        raise EngineError("UNKNOWN", "the model produced NaN or infinite pixels")
    pixels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round()
    found: torch.Tensor = pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8)
    return found


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
