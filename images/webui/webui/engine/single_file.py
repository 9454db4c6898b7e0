"""Single files as Stable Diffusion's and AnimateDiff's authors lay them out (and A1111), to diffusers' names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_animatediff_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from webui.engine import sd15
from webui.engine.base import EngineError
from webui.engine.weights import Part, Tensors, read_json

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
# What shows another family of models, for which there are no motion modules here.
FOREIGN = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "double_blocks.": "Flux",
    "model.diffusion_model.double_blocks.": "Flux",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
}
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
MOTION_NORM = re.compile(r"down_blocks\.(\d+)\.motion_modules\.(\d+)\.norm\.weight")


def sidecar(path: Path) -> dict[str, Any]:
    """`<name>.json` beside a single file; empty without one."""
    beside = path.with_suffix(".json")
    return read_json(beside) if beside.is_file() else {}


def split_checkpoint(state: Tensors, path: Path) -> tuple[Part, Part, Part]:
    """UNet, autoencoder and text encoder of a Stable Diffusion 1.5 file.

    Raises EngineError MODEL_LOAD_FAIL for another family of models, or when one of the three is missing."""
    _refuse_foreign(state, path)
    for prefix, what in ((UNET_PREFIX, "UNet"), (VAE_PREFIX, "autoencoder"), (TEXT_PREFIX, "text encoder")):
        if not any(name.startswith(prefix) for name in state):
            raise EngineError("MODEL_LOAD_FAIL", f"{path} holds no {what}: nothing in it begins with {prefix}")
    beside = sidecar(path)
    unet = {**sd15.UNET, **beside.get("unet", {})}
    vae = {**sd15.VAE, **beside.get("vae", {})}
    text = {**sd15.TEXT_ENCODER, **beside.get("text_encoder", {})}
    layers = unet.get("layers_per_block", 2)
    return (
        Part(unet, convert_ldm_unet_checkpoint(dict(state), {**unet, "layers_per_block": layers})),
        Part(vae, convert_ldm_vae_checkpoint(_under(state, VAE_PREFIX), vae)),
        Part(text, _under(state, TEXT_PREFIX)),
    )


def _refuse_foreign(state: Tensors, path: Path) -> None:
    for prefix, family in FOREIGN.items():
        if any(name.startswith(prefix) for name in state):
            raise EngineError("MODEL_LOAD_FAIL", f"{path} is of {family}; motion modules need Stable Diffusion 1.5")
    first = state.get(UNET_PREFIX + "input_blocks.0.0.weight")
    if first is not None and first.shape[1] != 4:
        raise EngineError(
            "MODEL_LOAD_FAIL", f"{path} takes {first.shape[1]} channels, as for inpainting; motion modules need 4"
        )


def _under(state: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def vae_part(state: Tensors, path: Path) -> Part:
    """An autoencoder alone, as the authors lay it out, as AUTOMATIC1111 does or as diffusers does."""
    config = {**sd15.VAE, **sidecar(path).get("vae", {})}
    if any(name.startswith(VAE_PREFIX) for name in state):
        state = _under(state, VAE_PREFIX)
    if any(name.startswith("decoder.up_blocks.") for name in state):
        return Part(config, rename_old_attention(state))
    if not any(name.startswith("decoder.up.") for name in state):
        raise EngineError("MODEL_LOAD_FAIL", f"{path} holds no autoencoder")
    return Part(config, convert_ldm_vae_checkpoint(dict(state), config))


def rename_old_attention(state: Tensors) -> Tensors:
    """Folders from before 2023 have other names in the autoencoder's attention."""
    renamed: Tensors = {}
    for name, tensor in state.items():
        if ".attentions." in name:
            for old, new in OLD_ATTENTION.items():
                name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def motion_part(state: Tensors, path: Path) -> Part:
    """A motion module as its authors lay it out, or diffusers' tensors in one file; the shapes tell the rest.

    Raises EngineError MODEL_LOAD_FAIL when there is no motion module in it."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if ".motion_modules." in name}
    positions = [tensor.shape[1] for name, tensor in state.items() if name.endswith(".pe")]
    converted: Tensors = convert_animatediff_checkpoint_to_diffusers(state)
    found = {match.groups(): tensor for name, tensor in converted.items() if (match := MOTION_NORM.fullmatch(name))}
    if not found:
        raise EngineError("MODEL_LOAD_FAIL", f"{path} holds no motion module for Stable Diffusion 1.5")
    config: dict[str, Any] = {
        **sd15.MOTION_MODULE,
        "block_out_channels": tuple(found[block, "0"].shape[0] for block in sorted({block for block, _ in found})),
        "motion_layers_per_block": len({layer for _, layer in found}),
        "motion_max_seq_length": max(positions, default=32),
        "use_motion_mid_block": any(name.startswith("mid_block.") for name in converted),
        **sidecar(path),
    }
    return Part(config, converted)
