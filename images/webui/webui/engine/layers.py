"""A long clip through the UNet, layer by layer: pictures in chunks, motion in context windows.

Of the UNet's layers only the motion modules look at more than one frame, so only they need the windows: what windows
overlap in is blended inside each of them, as FreeNoise does (https://arxiv.org/abs/2310.15169), and every other layer
sees each frame once. A layer works on no more frames, or on no more of their pixels, than one window has at a time.
What grows with the clip are one layer's input and output, and the outputs that wait for the way up: 16 MB a frame of
512x512 and prompt in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

from webui.engine.base import Told
from webui.engine.context import Window
from webui.engine.controls import Controls

AT_LEAST = 1 << 14  # pixels of frames at once, for small layers are not worth being taken apart
Look = Callable[[torch.Tensor], torch.Tensor]


class Blend:
    """What windows make of their frames, blended into one clip. The same bits each time, also on a GPU.

    `windows` are of one length and cover all `frames`; `like` has the device and the type to count in.
    """

    def __init__(self, windows: Sequence[Window], frames: int, like: torch.Tensor) -> None:
        weights = torch.zeros(len(windows), frames)
        for number, window in enumerate(windows):
            weights[number, list(window)] = _weights(len(window))
        weights /= weights.sum(0)
        shares = [weights[number, list(window)] for number, window in enumerate(windows)]
        self.windows = windows
        self.shares = [share.to(like) for share in shares]
        """Of each window's frames in the clip's."""
        seen = [frame for window in windows for frame in window]
        self._seen = torch.tensor(seen, device=like.device)
        share_of = torch.cat(shares).tolist()
        places = [[at for at, frame in enumerate(seen) if frame == one] for one in range(frames)]
        self._turns = []
        for turn in range(max(map(len, places))):
            # A frame that fewer windows see is taken again, for nothing.
            taken = [(of[turn], share_of[of[turn]]) if turn < len(of) else (of[0], 0.0) for of in places]
            where = torch.tensor([place for place, _ in taken], device=like.device)
            self._turns.append((where, torch.tensor([share for _, share in taken]).to(like)[:, None]))

    def __call__(self, look: Look, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` is (pixels, frames, width); `look` gets (pixels * windows, frames of a window, width)."""
        pixels, _, width = tokens.shape
        seen = tokens.index_select(1, self._seen).view(pixels * len(self.windows), -1, width)
        looked = look(seen).view(pixels, -1, width)
        (first, share), *others = self._turns
        total = looked.index_select(1, first).mul_(share)
        for where, share in others:
            total.addcmul_(looked.index_select(1, where), share)
        return total


class LayerByLayer:
    """One look of the UNet at a clip. `aside`: the device on which outputs wait that are needed again on the way up."""

    def __init__(
        self, unet: Any, windows: Sequence[Window], controls: Controls | None, told: Told, *, aside: Any
    ) -> None:
        self._unet, self._windows, self._controls = unet, windows, controls
        self._told, self._aside = told, aside
        kinds = [type(module).__name__ for module in unet.modules()]
        self._parts = 2 + sum(
            kinds.count(kind) for kind in ("ResnetBlock2D", "AnimateDiffTransformer3D", "Downsample2D", "Upsample2D")
        )
        self._done = 0

    def noise(self, sample: torch.Tensor, timestep: Any, texts: torch.Tensor) -> torch.Tensor:
        """`sample` is (clips, channels, frames, h, w), `texts` (clips * frames, tokens, width)."""
        unet = self._unet
        self._clips, _, self._frames, _, _ = sample.shape
        self._texts = texts
        self._blend = Blend(self._windows, self._frames, sample)
        self._time = unet.time_embedding(unet.time_proj(timestep.expand(1)).to(sample.dtype))
        hidden = self._each(lambda part, _: unet.conv_in(part), sample.transpose(1, 2).flatten(0, 1))
        waiting = [hidden.to(self._aside)]
        for block in unet.down_blocks:
            for layer in _layers(block):
                hidden = self._layer(layer, hidden)
                waiting.append(hidden.to(self._aside))
            for sampler in block.downsamplers or ():
                hidden = self._resize(sampler, hidden)
                waiting.append(hidden.to(self._aside))
        for layer in _layers(unet.mid_block):
            hidden = self._layer(layer, hidden)
        self._add_controls(sample, timestep, hidden, waiting)
        for block in unet.up_blocks:
            for layer in _layers(block):
                hidden = self._layer(layer, hidden, waiting.pop())
            for sampler in block.upsamplers or ():
                hidden = self._resize(sampler, hidden, output_size=waiting[-1].shape[2:])
        hidden = self._each(lambda part, _: unet.conv_out(unet.conv_act(unet.conv_norm_out(part))), hidden)
        return hidden.unflatten(0, (self._clips, self._frames)).transpose(1, 2)

    def _layer(self, layer: tuple[Any, Any, Any], hidden: torch.Tensor, waited: torch.Tensor | None = None) -> Any:
        resnet, attention, motion = layer

        def look(part: Any, rows: slice) -> Any:
            if waited is not None:
                part = torch.cat([part, waited[rows].to(part.device)], dim=1)
            part = resnet(part, self._time)
            if attention is None:
                return part
            text = self._texts[rows]
            return attention(part, encoder_hidden_states=text, return_dict=False)[0]

        hidden = self._each(look, hidden)
        if motion is not None:
            self._move(motion, hidden)
        return hidden

    def _resize(self, sampler: Any, hidden: torch.Tensor, **options: Any) -> Any:
        return self._each(lambda part, _: sampler(part, **options), hidden)

    def _each(self, look: Callable[[Any, slice], Any], hidden: torch.Tensor) -> Any:
        """A new tensor of what `look` makes of a few frames at a time."""
        self._done += 1
        made: Any = None
        at_once = max(self._clips * len(self._windows[0]), AT_LEAST // hidden[0, 0].numel())
        for rows in _even(len(hidden), at_once):
            part = look(hidden[rows], rows)
            if len(part) == len(hidden):
                made = part.contiguous()
            else:
                made = part.new_empty(len(hidden), *part.shape[1:]) if made is None else made
                made[rows] = part
            self._told(self._done, self._parts)
        return made

    def _move(self, motion: AnimateDiffTransformer3D, hidden: torch.Tensor) -> None:
        """Adds, in place, what the motion module says; a few pixels of all frames at a time."""
        self._done += 1
        clip = hidden.view(self._clips, self._frames, hidden.shape[1], -1)
        scale, shift = _normal(motion.norm, clip)
        pixels, looked_at = clip.shape[-1], sum(map(len, self._windows))
        at_once = max(pixels * len(self._windows[0]), AT_LEAST) // looked_at
        for some in _even(pixels, max(1, at_once)):
            tokens = clip[..., some].permute(0, 3, 1, 2)
            tokens = torch.addcmul(shift, tokens.float(), scale).to(hidden.dtype).flatten(0, 1)
            tokens = motion.proj_in(tokens)
            for block in motion.transformer_blocks:
                tokens = self._blend(partial(_attend, block), tokens)
                tokens += block.ff(block.norm3(tokens))
            moved = motion.proj_out(tokens).unflatten(0, (self._clips, -1))
            clip[..., some] += moved.permute(0, 2, 3, 1)
            self._told(self._done, self._parts)

    def _add_controls(self, sample: Any, timestep: Any, middle: torch.Tensor, waiting: list[torch.Tensor]) -> None:
        """In place, and only now: the middle has looked at the last of those that wait without it."""
        controls = self._controls
        if controls is None:
            return
        texts = self._texts.unflatten(0, (self._clips, self._frames))
        for frames, share in self._looks(controls):
            seen = torch.tensor(frames, device=sample.device)
            found = controls.residuals(sample[:, :, seen], timestep, texts[:, seen].flatten(0, 1), frames)
            if not found:
                return
            rows = torch.cat([seen + clip * self._frames for clip in range(self._clips)])
            parts = share.repeat(self._clips)[:, None, None, None]
            down = found["down_block_additional_residuals"]
            for into, added in zip([*waiting, middle], [*down, found["mid_block_additional_residual"]], strict=True):
                into[rows.to(into.device)] += (added * parts).to(into.device)
            self._told(self._done, self._parts)

    def _looks(self, controls: Controls) -> Iterator[tuple[Sequence[int], Any]]:
        """Frames, and how much of what a control says of them counts: windows only where one has motion layers."""
        if controls.look_at_motion:
            yield from zip(self._blend.windows, self._blend.shares, strict=True)
            return
        for some in _even(self._frames, len(self._windows[0])):
            frames = range(some.start, some.stop)
            yield frames, torch.ones(len(frames)).to(self._blend.shares[0])


def _attend(block: Any, tokens: torch.Tensor) -> torch.Tensor:
    """`tokens` is (any, frames that see one another, width)."""
    for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        if attention is not None:
            tokens = attention(block.pos_embed(norm(tokens))).add_(tokens)
    return tokens


def _layers(block: Any) -> list[tuple[Any, Any, Any]]:
    """Resnet, attention and motion module, in the order of work; the latter two may be missing."""
    parts = (getattr(block, name, ()) for name in ("resnets", "attentions", "motion_modules"))
    return list(zip_longest(*parts))


def _even(count: int, most: int) -> list[slice]:
    """Of nearly the same length each, for a last short one costs as much as a whole one."""
    parts = -(-count // most)
    bounds = [count * at // parts for at in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def _normal(norm: torch.nn.GroupNorm, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a group norm over all frames of (clips, frames, channels, pixels) multiplies by and adds, per channel."""
    grouped = clip.unflatten(2, (norm.num_groups, -1))
    variance, mean = torch.var_mean(grouped.float(), dim=(1, 3, 4), correction=0)
    size = clip.shape[2] // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(size, 1) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(size, 1) * scale
    return scale[:, None, None], shift[:, None, None]


def _weights(count: int) -> torch.Tensor:
    """A window knows its middle best, and must not show its edges."""
    half = torch.arange(1, count + 1, dtype=torch.float32)
    return torch.minimum(half, half.flip(0))
