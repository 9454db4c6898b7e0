"""Weights as they lie in main memory: a part of a model is its configuration and its tensors, shared by pipelines."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors import SafetensorError, safe_open

from webui.engine.base import EngineError

Tensors = dict[str, torch.Tensor]
PREFERRED = ("diffusion_pytorch_model", "model", "pytorch_lora_weights")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One network: what its class is made with, and its tensors by name, on the CPU."""

    config: Mapping[str, Any]
    state: Tensors

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.nbytes for tensor in self.state.values())


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> Tensors:
    """Copies in main memory, floating point as `dtype`; a mapped file would fail with SIGBUS when its mount does.

    Raises OSError, or EngineError MODEL_LOAD_FAIL for a file that is no whole safetensors file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: _own(file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise EngineError("MODEL_LOAD_FAIL", f"{path} is no whole safetensors file: {error}") from error


def _own(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(wanted, copy=True).contiguous()


def read_part(folder: Path, dtype: torch.dtype) -> Part:
    """A folder of diffusers' or transformers' layout: config.json and weights. Raises like `read_tensors`."""
    config = read_json(folder / "config.json")
    state: Tensors = {}
    for path in weight_files(folder):
        state |= read_tensors(path, dtype)
    return Part(config, state)


def weight_files(folder: Path) -> list[Path]:
    """Those that make up the model once: of several precisions the plain one, of a split one all pieces."""
    if indexes := sorted(folder.glob("*.safetensors.index.json")):
        names = set(read_json(indexes[0])["weight_map"].values())
        return sorted(folder / Path(name).name for name in names)
    found = sorted(folder.glob("*.safetensors"))
    for stem in PREFERRED:
        for ending in (".safetensors", ".fp16.safetensors"):
            if folder / f"{stem}{ending}" in found:
                return [folder / f"{stem}{ending}"]
    if len(found) == 1:
        return found
    there = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no folder"
    raise EngineError("MODEL_LOAD_FAIL", f"{folder} needs one .safetensors file with the weights; there is {there}")


def read_json(path: Path) -> dict[str, Any]:
    """Raises OSError, or EngineError MODEL_LOAD_FAIL."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError("MODEL_LOAD_FAIL", f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EngineError("MODEL_LOAD_FAIL", f"{path} holds no JSON object")
    return value


def fill(module: Any, state: Tensors, what: str, dtype: torch.dtype) -> Any:
    """Gives `module` these very tensors; if it lies on a GPU already, copies them to where its own are.

    Raises EngineError MODEL_LOAD_FAIL when some are missing or of another shape."""
    assign = not any(weight.is_cuda for weight in module.parameters())
    try:
        found = module.load_state_dict(state, strict=False, assign=assign)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise EngineError("MODEL_LOAD_FAIL", f"{what}: {lines[1].strip() if len(lines) > 1 else lines[0]}") from error
    parameters = dict(module.named_parameters())
    missing = [name for name in found.missing_keys if name in parameters]
    if missing:
        count = f"{len(missing)} of {len(parameters)} weights"
        raise EngineError("MODEL_LOAD_FAIL", f"{what} lacks {count}, the first is {missing[0]}")
    if found.unexpected_keys:
        log.warning("%s: %d tensors have no place, as %s", what, len(found.unexpected_keys), found.unexpected_keys[0])
    _make_buffers(module, what)
    # Also for equal bytes: PyTorch rounds some results otherwise where weights could be trained.
    module.requires_grad_(False).eval()
    return torch.nn.Module.to(module, dtype)  # diffusers' own method only adds a warning


def _make_buffers(module: Any, what: str) -> None:
    """What a module computes itself, and files therefore may leave out."""
    for name, part in module.named_modules():
        for key, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            if isinstance(part, SinusoidalPositionalEmbedding):
                part.pe = SinusoidalPositionalEmbedding(buffer.shape[2], buffer.shape[1]).pe
            elif key == "position_ids":
                part.position_ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            else:
                raise EngineError("MODEL_LOAD_FAIL", f"{what} lacks {name}.{key}")
