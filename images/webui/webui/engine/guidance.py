"""Classifier-free guidance: the UNet asked with both prompts, together or one after the other."""

from __future__ import annotations

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


class Guidance:
    """Asks with both prompts at once, which is faster, or `split`, which takes about half the UNet's working memory.

    Both give the same but for rounding (about 1e-5 of single precision's range). A GPU that runs out of memory with
    both at once goes on one after the other by itself; on the CPU nothing changes on its own, so that the same seed
    stays the same bytes.
    """

    def __init__(self, scale: float, *, split: bool = False) -> None:
        self._scale = scale
        self.split = split

    @property
    def is_on(self) -> bool:
        return self._scale > 1

    def predict(self, pipeline: Any, latents: Any, timestep: Any, texts: Any) -> Any:
        """`texts` is (2 * frames, tokens, width), the negative prompt first; without guidance (frames, …)."""
        if not self.is_on:
            return _ask(pipeline, latents, timestep, texts)
        if not self.split:
            try:
                both = _ask(pipeline, torch.cat([latents] * 2), timestep, texts)
                return self._mix(*both.chunk(2))
            except torch.cuda.OutOfMemoryError as error:
                log.warning("not enough memory for both prompts at once: %s", str(error).splitlines()[0])
            self.split = True  # out here the failed attempt's tensors are free
            torch.cuda.empty_cache()
        return self._mix(*(_ask(pipeline, latents, timestep, text) for text in texts.chunk(2)))

    def _mix(self, without: Any, with_: Any) -> Any:
        return without + self._scale * (with_ - without)


def _ask(pipeline: Any, latents: Any, timestep: Any, texts: Any) -> Any:
    scaled = pipeline.scheduler.scale_model_input(latents, timestep)
    return pipeline.unet(scaled, timestep, encoder_hidden_states=texts).sample
