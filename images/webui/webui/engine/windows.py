"""Context windows: the model sees a few frames at a time, as in AUTOMATIC1111's AnimateDiff extension.

Each step runs the UNet once per window and blends what overlaps, so memory follows the window and not the clip, in
every layer. (diffusers' FreeNoise only shortens temporal attention: the other layers still see the whole clip.)
Nothing is carried from step to step, so a checkpoint needs nothing more for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.unets.unet_motion_model import UNetMotionOutput

from webui.engine.base import Told, nobody
from webui.engine.context import Window
from webui.engine.controls import Controls


class WindowedUNet(UNetMotionModel):  # type: ignore[misc]
    """The pipeline's own UNet with another `forward`: as a subclass it also works below accelerate's hooks.

    ControlNets are asked in here, because they, too, may only see one window at a time.
    """

    windows: tuple[Window, ...] = ()
    controls: Controls | None = None
    told: Told = staticmethod(nobody)
    _compiled: Any = None

    def compile(self, *args: Any, **options: Any) -> None:
        """Only what looks at frames: the windows around it are Python's own loop, which would be unrolled."""
        self._compiled = torch.compile(super().forward, *args, **options)

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> Any:
        """`sample` is (clips, channels, frames, h, w), `encoder_hidden_states` (clips * frames, tokens, width)."""
        clips, _, frames, _, _ = sample.shape
        if not self.windows:
            noise = self._look(sample, timestep, encoder_hidden_states, range(frames), options)
            return UNetMotionOutput(sample=noise)
        texts = encoder_hidden_states.unflatten(0, (clips, frames))
        total = torch.zeros_like(sample, dtype=torch.float32)
        weights = torch.zeros(frames, 1, 1, dtype=torch.float32, device=sample.device)
        for number, window in enumerate(self.windows, start=1):
            seen = _seen(window, sample.device)
            noise = self._look(sample[:, :, seen], timestep, texts[:, seen].flatten(0, 1), window, options)
            weight = _weights(len(window)).to(sample.device)
            total[:, :, seen] += noise.float() * weight
            weights[seen] += weight
            self.told(number, len(self.windows))
        return UNetMotionOutput(sample=(total / weights).to(sample.dtype))

    def _look(self, sample: Any, timestep: Any, text: Any, frames: Sequence[int], options: dict[str, Any]) -> Any:
        if self.controls is not None:
            options = options | self.controls.residuals(sample, timestep, text, frames)
        forward = self._compiled or super().forward
        (noise,) = forward(sample, timestep, text, **options | {"return_dict": False})
        return noise


def _seen(window: Window, device: Any) -> Any:
    """An index of the frames; a slice where they follow one another, which copies nothing."""
    if window[-1] - window[0] == len(window) - 1 and list(window) == sorted(window):
        return slice(window[0], window[-1] + 1)
    return torch.tensor(window, device=device)


def _weights(count: int) -> Any:
    """A window knows its middle best, and must not show its edges."""
    half = torch.arange(1, count + 1, dtype=torch.float32)
    return torch.minimum(half, half.flip(0)).view(count, 1, 1)


@contextmanager
def windowed(unet: Any, windows: list[Window], controls: Controls | None = None, told: Told = nobody) -> Iterator[None]:
    """For one generation. `told` hears of each window of a step, and what it raises ends the step."""
    unet.windows, unet.controls, unet.told = tuple(windows), controls, told
    try:
        yield
    finally:
        unet.windows, unet.controls, unet.told = (), None, nobody
