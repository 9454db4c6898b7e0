"""ControlNet and SparseCtrl: what pictures add to the UNet's layers, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch

from webui import media
from webui.engine.base import EngineError, Told, nobody
from webui.engine.conditions import encoded
from webui.request import ControlNet, SparseControl, VideoRequest

# Gives the network of that name, ready to run beside the UNet.
FindNetwork = Callable[[str], Any]


class Control(Protocol):
    looks_at_motion: bool
    """Whether it must see the frames that the motion modules see together; otherwise each frame counts alone."""

    def active(self, part: float, next_part: float) -> bool:
        """Whether it counts in the step that does the run's work from `part` to `next_part`, both 0..1."""

    def ask(self, sample: Any, timestep: Any, text: Any, frames: Sequence[int]) -> tuple[Sequence[Any], Any]:
        """What to add to the outputs of the UNet's down blocks, and to its middle's."""


@dataclass
class FrameControl:
    """A ControlNet that looks at every frame by itself."""

    network: Any
    pictures: Any
    """(count, 3, height, width) bytes on the CPU; as floats on the GPU only a window's at a time are affordable."""
    picture_of_frame: Sequence[int]
    weight: float
    start: float
    end: float
    looks_at_motion = False

    def active(self, part: float, next_part: float) -> bool:
        return part >= self.start and next_part <= self.end

    def ask(self, sample: Any, timestep: Any, text: Any, frames: Sequence[int]) -> tuple[Sequence[Any], Any]:
        chosen = self.pictures[[self.picture_of_frame[frame] for frame in frames]]
        shown = (chosen.to(sample.device).float() / 255).to(sample.dtype).repeat(sample.shape[0], 1, 1, 1)
        flat = sample.transpose(1, 2).flatten(0, 1)
        down, middle = self.network(
            flat, timestep, text, controlnet_cond=shown, conditioning_scale=self.weight, return_dict=False
        )
        return down, middle


@dataclass
class SparseFrames:
    """SparseCtrl: pictures at some frames, between which its own motion layers find the way."""

    network: Any
    shown: Any
    """(1, channels, frames, h, w): pixels in bytes or latents, as the network wants them; zero where there is none."""
    mask: Any
    """(1, 1, frames, h, w): one where a picture is."""
    weight: float
    looks_at_motion = True

    def active(self, part: float, next_part: float) -> bool:
        return True

    def ask(self, sample: Any, timestep: Any, text: Any, frames: Sequence[int]) -> tuple[Sequence[Any], Any]:
        seen = list(frames)
        if len(seen) > (longest := self.network.config.motion_max_seq_length):
            raise EngineError("INVALID_INPUT", f"the SparseCtrl network sees at most {longest} frames together")
        shown = self.shown[:, :, seen].to(sample.device)
        shown = shown if shown.is_floating_point() else shown.float() / 255
        down, middle = self.network(
            sample,
            timestep,
            text,
            controlnet_cond=shown.to(sample.dtype),
            conditioning_mask=self.mask[:, :, seen].to(sample.device, sample.dtype),
            conditioning_scale=self.weight,
            return_dict=False,
        )
        return down, middle


class Controls:
    """All of one request's. `at` is told before each step."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self._controls = controls
        self._active: Sequence[Control] = controls

    def at(self, step: int, steps: int) -> None:
        self._active = [control for control in self._controls if control.active(step / steps, (step + 1) / steps)]

    @property
    def look_at_motion(self) -> bool:
        return any(control.looks_at_motion for control in self._active)

    def residuals(self, sample: Any, timestep: Any, text: Any, frames: Sequence[int]) -> dict[str, Any]:
        """Arguments for the UNet; none if nothing counts in this step, which leaves it as without any control."""
        total: tuple[list[Any], Any] | None = None
        for control in self._active:
            down, middle = control.ask(sample, timestep, text, frames)
            if total is None:
                total = list(down), middle
            else:
                total = [one + other for one, other in zip(total[0], down, strict=True)], total[1] + middle
        if total is None:
            return {}
        return {"down_block_additional_residuals": tuple(total[0]), "mid_block_additional_residual": total[1]}


def controls_for(pipeline: Any, request: VideoRequest, find: FindNetwork, told: Told = nobody) -> Controls | None:
    """None if nothing is controlled; a weight of 0 is nothing. Raises EngineError INVALID_INPUT, and what `told` does,
    which hears of each picture."""
    find = cache(find)  # two controls of one network share it
    made: list[Control] = [
        _frame_control(control, request, find(control.model), told) for control in request.controlnets if control.weight
    ]
    sparse = request.sparse_control
    if sparse is not None and sparse.weight:
        made.append(_sparse_frames(sparse, request, pipeline, find(sparse.model), told))
    return Controls(made) if made else None


def _frame_control(control: ControlNet, request: VideoRequest, network: Any, told: Told) -> FrameControl:
    if hasattr(network, "concat_conditioning_mask"):
        raise EngineError("INVALID_INPUT", f"{control.model} is a SparseCtrl network; name it in sparse_control")
    sent = [control.image] if control.image is not None else list(control.images or ())
    return FrameControl(
        network=network,
        pictures=_pictures([picture for picture in sent if picture is not None], request, told),
        picture_of_frame=[min(frame, len(sent) - 1) for frame in range(request.frames)],
        weight=control.weight,
        start=control.start,
        end=control.end,
    )


def _sparse_frames(
    sparse: SparseControl, request: VideoRequest, pipeline: Any, network: Any, told: Told
) -> SparseFrames:
    if not hasattr(network, "concat_conditioning_mask"):
        raise EngineError("INVALID_INPUT", f"{sparse.model} is no SparseCtrl network; name it in controlnets")
    pictures = _pictures([item.image for item in sparse.images], request, told)
    # The network for colour pictures sees what the autoencoder makes of them.
    if network.use_simplified_condition_embedding:
        pictures = encoded(pipeline, pictures, told)
    _, channels, height, width = pictures.shape
    shown = torch.zeros(1, channels, request.frames, height, width, dtype=pictures.dtype)
    mask = torch.zeros(1, 1, request.frames, height, width)
    frames = [item.frame for item in sparse.images]
    shown[0, :, frames] = pictures.transpose(0, 1)
    mask[0, :, frames] = 1
    return SparseFrames(network, shown, mask, sparse.weight)


def _pictures(sent: Sequence[str], request: VideoRequest, told: Told) -> Any:
    """(count, 3, height, width) bytes."""
    pixels: list[media.Pixels] = []
    for text in sent:
        try:
            pixels.append(media.read_image(text, (request.width, request.height)))
        except media.MediaError as error:
            raise EngineError("INVALID_INPUT", f"a control picture {error}") from error
        told(len(pixels), len(sent))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
