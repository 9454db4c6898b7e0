"""The UNet, with context windows where a clip is longer than the model may look at together.

Nothing is carried from step to step, so a checkpoint needs nothing more for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.unets.unet_motion_model import UNetMotionOutput

from webui.engine.base import Told, nobody
from webui.engine.context import Window
from webui.engine.controls import Controls
from webui.engine.layers import LayerByLayer


class WindowedUNet(UNetMotionModel):  # type: ignore[misc]
    """The pipeline's own UNet with another `forward`: as a subclass it also works below accelerate's hooks.

    ControlNets are asked in here, because they, too, may only see as much as the UNet at a time.
    """

    windows: tuple[Window, ...] = ()
    controls: Controls | None = None
    told: Told = staticmethod(nobody)
    is_short = False
    _compiled: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights alike. Asked in every step, where the library's own looks through all modules each time."""
        kind: torch.dtype = self.conv_in.weight.dtype
        return kind

    def compile(self, *args: Any, **options: Any) -> None:
        """For clips without windows. With them each length would be compiled anew, layer by layer."""
        self._compiled = torch.compile(super().forward, *args, **options)

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> Any:
        """`sample` is (clips, channels, frames, h, w), `encoder_hidden_states` (clips * frames, tokens, width)."""
        if not self.windows:
            return UNetMotionOutput(sample=self._look(sample, timestep, encoder_hidden_states, options))
        aside = "cpu" if self.is_short else sample.device
        clip = LayerByLayer(self, self.windows, self.controls, self.told, aside=aside)
        return UNetMotionOutput(sample=clip.noise(sample, timestep, encoder_hidden_states))

    def _look(self, sample: Any, timestep: Any, text: Any, options: dict[str, Any]) -> Any:
        if self.controls is not None:
            options = options | self.controls.residuals(sample, timestep, text, range(sample.shape[2]))
        forward = self._compiled or super().forward
        (noise,) = forward(sample, timestep, text, **options | {"return_dict": False})
        return noise


@contextmanager
def windowed(
    unet: Any,
    windows: list[Window],
    controls: Controls | None = None,
    told: Told = nobody,
    *,
    is_short: bool = False,
) -> Iterator[None]:
    """For one generation. `told` hears of each part of a step with windows, and what it raises ends the step.

    `is_short`: what need not be in the GPU's memory waits in the computer's; the same comes out of it.
    """
    unet.windows, unet.controls, unet.told, unet.is_short = tuple(windows), controls, told, is_short
    try:
        yield
    finally:
        unet.windows, unet.controls, unet.told, unet.is_short = (), None, nobody, False
