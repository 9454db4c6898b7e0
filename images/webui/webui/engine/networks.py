"""ControlNet and SparseCtrl networks from files: a folder in diffusers' layout, or a ControlNet's single file.

A single file is built as for Stable Diffusion 1.5, unless `controlnet` in the `<name>.json` beside it says otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, SparseControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from webui.engine import single_file
from webui.engine.base import EngineError
from webui.engine.library import Model
from webui.engine.weights import Part, fill, read_part, read_tensors

CLASSES = {"ControlNetModel": ControlNetModel, "SparseControlNetModel": SparseControlNetModel}
SD15 = {
    "_class_name": "ControlNetModel",
    "cross_attention_dim": 768,
}  # the rest of its defaults is Stable Diffusion 1.5


def load_control(model: Model, dtype: torch.dtype) -> Part:
    """Raises OSError, or EngineError MODEL_LOAD_FAIL for what is neither."""
    if model.is_folder:
        part = read_part(model.path, dtype)
        if part.config.get("_class_name") not in CLASSES:
            known = " or ".join(CLASSES)
            raise EngineError("MODEL_LOAD_FAIL", f"{model.path} is a {part.config.get('_class_name')}, not a {known}")
        return part
    state = read_tensors(model.path, dtype)
    if any(name.startswith(("control_model.", "input_blocks.")) for name in state):
        try:
            state = convert_controlnet_checkpoint(state, {"layers_per_block": 2})
        except KeyError as error:
            raise EngineError("MODEL_LOAD_FAIL", f"{model.path} lacks {error}") from error
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    if "controlnet_mid_block.weight" not in state:
        raise EngineError("MODEL_LOAD_FAIL", f"{model.path} is no ControlNet of Stable Diffusion 1.5")
    if any("motion_modules" in name for name in state):
        raise EngineError("MODEL_LOAD_FAIL", f"{model.path} is a SparseCtrl file; these are read as diffusers' folders")
    return Part({**SD15, **single_file.sidecar(model.path).get("controlnet", {})}, state)


def make_control(part: Part, dtype: torch.dtype, device: str) -> Any:
    """The network on the device, sharing the part's tensors where that is the CPU."""
    kind = CLASSES[part.config["_class_name"]]
    with torch.device("meta"):
        network = kind.from_config({name: value for name, value in part.config.items() if name != "_class_name"})
    return fill(network, part.state, "the control network", dtype).to(device)
