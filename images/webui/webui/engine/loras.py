"""LoRAs and motion LoRAs: added to the weights for one generation, which afterwards are what they were, bit for bit.

Adding them once costs nothing at each step, works with every sampler, offloading and compiled models alike, and needs
no further library. Understood are kohya's keys, diffusers' old and new ones and those of AnimateDiff's motion LoRAs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from webui.engine.weights import Tensors

KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
DOWN, UP, ALPHA = "down", "up", "alpha"
ENDINGS = (
    (".lora_A.weight", DOWN), (".lora_B.weight", UP),
    (".lora_A.default.weight", DOWN), (".lora_B.default.weight", UP),
    (".lora_down.weight", DOWN), (".lora_up.weight", UP),
    (".lora.down.weight", DOWN), (".lora.up.weight", UP),
    ("_lora.down.weight", DOWN), ("_lora.up.weight", UP),
    (".alpha", ALPHA),
)  # fmt: skip
OLD_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)$")
FEW = 0.5  # of a LoRA's layers: where fewer have found their place, the user should know


@dataclass(frozen=True)
class Lora:
    name: str
    weight: float
    state: Tensors


@dataclass
class Layer:
    """One product of a narrow and a wide matrix, for one weight of the model."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None


class Applied:
    """Weights as they were before; `undo` puts them back wherever they lie by then."""

    def __init__(self) -> None:
        self._before: dict[torch.nn.Parameter, torch.Tensor] = {}

    def keep(self, weight: torch.nn.Parameter) -> None:
        if weight not in self._before:
            self._before[weight] = weight.detach().to("cpu", copy=True)

    def undo(self) -> None:
        with torch.no_grad():
            for weight, before in self._before.items():
                weight.copy_(before)
        self._before.clear()


def apply(loras: Sequence[Lora], unet: Any, text_encoder: Any, motion_module: str, applied: Applied) -> list[str]:
    """Adds each to the weights, and tells which of them cannot do what their user expects.

    What it has changed so far is in `applied`, also after an error."""
    places = dict(_places(unet, text_encoder))
    warnings: list[str] = []
    with torch.no_grad():
        for lora in loras:
            layers, unknown = _layers(lora.state)
            done = sum(_add(layer, places.get(key), lora.weight, applied) for key, layer in layers.items())
            warnings += _warnings(lora, done, len(layers), unknown, unet, motion_module)
    return warnings


def _warnings(lora: Lora, done: int, count: int, unknown: int, unet: Any, motion_module: str) -> list[str]:
    name = f"LoRA {lora.name}"
    if not done:
        kind = "it is of a kind that is not supported" if unknown and not count else "it was made for other models"
        return [f"{name} has no effect: {kind}"]
    if any("motion_modules" in key for key in lora.state) and not unet.config.use_motion_mid_block:
        return [
            f"{name} is a motion LoRA, which only works with a v2 motion module; with {motion_module} it has next to "
            "no effect"
        ]
    if done < FEW * (count + unknown):
        return [f"{name} has only part of its effect: {done} of {count + unknown} layers fit these models"]
    return []


def _places(unet: Any, text_encoder: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every weight that a LoRA may change, by each name that a LoRA may have for it."""
    for part, module in (("unet", unet), ("text_encoder", text_encoder)):
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                yield f"{part}.{name}", layer.weight
                yield f"{part}_{name.replace('.', '_')}", layer.weight
                if part == "text_encoder" and not name.startswith("text_model."):  # as transformers had it before 5
                    yield f"{part}.text_model.{name}", layer.weight
                    yield f"{part}_text_model_{name.replace('.', '_')}", layer.weight


def _layers(state: Tensors) -> tuple[dict[str, Layer], int]:
    """By the name of its place; and how many tensors are of a kind that nothing is known about."""
    layers: dict[str, Layer] = {}
    unknown = 0
    for name, tensor in state.items():
        found = _place_of(name)
        if found is None:
            unknown += 1
            continue
        layer = layers.setdefault(found[0], Layer())
        if found[1] == DOWN:
            layer.down = tensor
        elif found[1] == UP:
            layer.up = tensor
        else:
            layer.alpha = float(tensor)
    return layers, unknown


def _place_of(name: str) -> tuple[str, str] | None:
    """The place's name and which of its tensors this is."""
    for ending, role in ENDINGS:
        if name.endswith(ending):
            return _canonical(name.removesuffix(ending)), role
    return None


def _canonical(name: str) -> str:
    for prefix, part in KOHYA.items():
        if name.startswith(prefix):
            return f"{part}_{name.removeprefix(prefix)}"
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = OLD_PROCESSOR.sub(r".\1", name)
    name = name.replace(".attention_blocks.0.", ".attn1.").replace(".attention_blocks.1.", ".attn2.")
    name = name.replace(".temporal_transformer.", ".")
    name = name + ".0" if name.endswith(".to_out") else name
    return name if name.startswith(("unet.", "text_encoder.")) else f"unet.{name}"


def _add(layer: Layer, weight: torch.nn.Parameter | None, strength: float, applied: Applied) -> bool:
    """Whether it had a place. The sum is made in single precision, whatever the model is in."""
    if weight is None or layer.down is None or layer.up is None:
        return False
    down = layer.down.to(weight.device, torch.float32)
    up = layer.up.to(weight.device, torch.float32)
    if up.flatten(1).shape[1] != down.shape[0] or up.shape[0] * down[0].numel() != weight.numel():
        return False
    scale = strength * (layer.alpha / down.shape[0] if layer.alpha is not None else 1.0)
    change = (up.flatten(1) @ down.flatten(1)).view_as(weight) * scale
    applied.keep(weight)
    weight.copy_(weight.float() + change)
    return True
