"""Where a video starts from: latents of a picture, of a first and a last picture, or of another video."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from webui import media
from webui.engine.base import EngineError, Told, nobody
from webui.request import VideoRequest

ENCODE_FRAMES = 4  # at once, as for decoding

log = logging.getLogger(__name__)


def start_latents(pipeline: Any, request: VideoRequest, generator: torch.Generator, told: Told = nobody) -> Any:
    """Clean latents (1, channels, frames, h, w) in the UNet's type on the CPU; None for a video from noise alone.

    A first picture counts less from frame to frame, a last one less from the end backwards, and noise fills up what
    they leave. Takes from the generator only where it fills up. Raises EngineError INVALID_INPUT, and what `told` does.
    """
    if not request.starts_from_media:
        return None
    if request.init_video:
        return _frames_first(encoded(pipeline, _clip(request, told), told)).to(pipeline.unet.dtype)
    shares = _shares(request)
    latents = torch.zeros(())
    for text, share in ((request.init_image, shares[0]), (request.last_frame, shares[1])):
        if text:
            latents = latents + _along(share) * _frames_first(encoded(pipeline, _picture(text, request), told))
    noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32)
    return (latents + _along(1 - shares[0] - shares[1]) * noise).to(pipeline.unet.dtype)


def fading(frames: int, power: float, scale: float) -> torch.Tensor:
    """(frames,): how much of the first picture each frame starts from: 1 - i^power / scale, not below 0.

    The formula, with its names, is that of AUTOMATIC1111's AnimateDiff extension.
    """
    return (1 - torch.arange(frames, dtype=torch.float64).pow(power) / scale).clamp(min=0).float()


def _shares(request: VideoRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first and the last picture; where together they would be more than all, in proportion."""
    first = fading(request.frames, request.latent_power, request.latent_scale) * bool(request.init_image)
    last = fading(request.frames, request.latent_power_last, request.latent_scale_last).flip(0)
    last = last * bool(request.last_frame)
    too_much = (first + last).clamp(min=1)
    return first / too_much, last / too_much


def _along(share: torch.Tensor) -> torch.Tensor:
    return share.view(1, 1, -1, 1, 1)


def _frames_first(latents: Any) -> Any:
    """(count, channels, h, w) to (1, channels, count, h, w)."""
    return latents.transpose(0, 1)[None].contiguous()


def encoded(pipeline: Any, pictures: torch.Tensor, told: Told = nobody) -> Any:
    """(count, 3, height, width) bytes to scaled latents (count, channels, h, w) on the CPU, float.

    The most likely latents are taken and not drawn ones: the same picture is the same start on any device. `told` hears
    how many of how many parts are done.
    """
    pieces: list[torch.Tensor] = []
    chunks = pictures.split(ENCODE_FRAMES)
    for chunk in chunks:
        try:
            pieces.append(_encoded(pipeline, chunk))
            problem = None
        except torch.cuda.OutOfMemoryError as error:
            problem = str(error).splitlines()[0]
        if problem is not None:  # out here the failed attempt's tensors are free
            log.warning("not enough memory to encode %d pictures at once: %s", len(chunk), problem)
            torch.cuda.empty_cache()
            pieces += [_encoded(pipeline, picture) for picture in chunk.split(1)]
        told(len(pieces), len(chunks))
    return torch.cat(pieces)


def _encoded(pipeline: Any, pictures: torch.Tensor) -> torch.Tensor:
    vae, device = pipeline.vae, pipeline._execution_device
    pixels = (pictures.to(device).float() / 127.5 - 1).to(vae.dtype)
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents.float().cpu()


def _picture(text: str, request: VideoRequest) -> torch.Tensor:
    try:
        pixels = media.read_image(text, (request.width, request.height))
    except media.MediaError as error:
        raise EngineError("INVALID_INPUT", f"a picture to start from {error}") from error
    return _channels_first(pixels[None])


def _clip(request: VideoRequest, told: Told) -> torch.Tensor:
    try:
        pixels = media.read_video(request.init_video or "", request.frames, (request.width, request.height), told)
    except media.MediaError as error:
        raise EngineError("INVALID_INPUT", f"init_video {error}") from error
    return _channels_first(pixels)


def _channels_first(pixels: media.Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
