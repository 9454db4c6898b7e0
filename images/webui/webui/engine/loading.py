"""From model files to a pipeline, and what it is made of. Local files alone, and never a pickle."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from webui import __version__
from webui.engine import single_file
from webui.engine.base import EngineError
from webui.engine.library import Library, Model, file_checksum
from webui.engine.samplers import Noise
from webui.engine.weights import Part, Tensors, fill, read_json, read_part, read_tensors
from webui.engine.windows import WindowedUNet

TOKENIZER = "tokenizer"
MARKS = ("architectures", "torch_dtype", "dtype", "transformers_version")


@dataclass(frozen=True)
class Checkpoint:
    unet: Part
    vae: Part
    text_encoder: Part
    tokenizer: Any
    noise: Noise

    @property
    def size(self) -> int:
        """Bytes."""
        return self.unet.size + self.vae.size + self.text_encoder.size


def fingerprint(library: Library, way: str, *models: Model) -> str:
    """Code and the content of every model file; equal fingerprints make equal pictures. `way`: what else decides."""
    code = f"diffusers {__version__} {diffusers.__version__} torch {torch.__version__} {way}"
    digest = hashlib.sha256(code.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"\n{path.name} {file_checksum(path)}".encode())
    for model in models:
        digest.update(f"\n{model.kind} {library.checksum(model)}".encode())
    return digest.hexdigest()


def load_checkpoint(model: Model, dtype: torch.dtype, models_dir: Path) -> Checkpoint:
    """Raises OSError, or EngineError MODEL_LOAD_FAIL that tells what is wrong and what to put where."""
    if not model.is_folder:
        unet, vae, text = single_file.split_checkpoint(read_tensors(model.path, dtype), model.path)
        noise = _noise(single_file.sidecar(model.path).get("scheduler", {}))
        return Checkpoint(unet, vae, text, _find_tokenizer(model, models_dir, text.config["vocab_size"]), noise)
    unet, vae = read_part(model.path / "unet", dtype), read_part(model.path / "vae", dtype)
    text = read_part(model.path / "text_encoder", dtype)
    scheduler = model.path / "scheduler" / "scheduler_config.json"
    noise = _noise(read_json(scheduler) if scheduler.is_file() else {})
    vae = Part(vae.config, single_file.rename_old_attention(vae.state))
    tokenizer = _find_tokenizer(model, models_dir, text.config["vocab_size"])
    return Checkpoint(unet, vae, text, tokenizer, noise)


def _noise(config: dict[str, Any]) -> Noise:
    known = Noise()
    return Noise(**{name: config.get(name, getattr(known, name)) for name in Noise.__dataclass_fields__})


def load_vae(model: Model, dtype: torch.dtype) -> Part:
    if model.is_folder:
        part = read_part(model.path, dtype)
        return Part(part.config, single_file.rename_old_attention(part.state))
    return single_file.vae_part(read_tensors(model.path, dtype), model.path)


def load_motion_module(model: Model, dtype: torch.dtype) -> Part:
    if model.is_folder:
        return read_part(model.path, dtype)
    return single_file.motion_part(read_tensors(model.path, dtype), model.path)


def _find_tokenizer(model: Model, models_dir: Path, vocabulary: int) -> Any:
    """The checkpoint's own, or the one for all single files, or that of any other checkpoint folder, if it fits."""
    own = [model.path / TOKENIZER] if model.is_folder else []
    others = sorted(folder / TOKENIZER for folder in (models_dir / "checkpoint").iterdir() if folder.is_dir())
    looked_at: list[str] = []
    for folder in [*own, models_dir / TOKENIZER, *others]:
        if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            continue
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        # One that the checkpoint did not bring along must have exactly the words that it was trained with.
        if len(tokenizer) == vocabulary or (folder in own and len(tokenizer) < vocabulary):
            return tokenizer
        looked_at.append(f"{folder} has {len(tokenizer)} words, the model {vocabulary}")
    raise EngineError(
        "MODEL_LOAD_FAIL",
        f"{model.path} has no tokenizer: put vocab.json and merges.txt of CLIP ViT-L/14 (the folder tokenizer of any "
        f"Stable Diffusion 1.5 repository) into {models_dir / TOKENIZER}" + "".join(f"; {line}" for line in looked_at),
    )


def assemble(
    checkpoint: Checkpoint, motion_module: Part, vae: Part | None, dtype: torch.dtype, device: str, reuse: Any = None
) -> Any:
    """An AnimateDiffPipeline without a scheduler. On the CPU it works on the parts' own tensors, elsewhere on copies.

    `reuse` is a pipeline of the `same_build`, which gets these weights instead of its own.
    Raises EngineError MODEL_LOAD_FAIL when the parts do not belong together."""
    vae = vae or checkpoint.vae
    pipeline = reuse if reuse is not None else _build(checkpoint, motion_module, vae)
    fill(pipeline.vae, vae.state, "the autoencoder", dtype)
    fill(pipeline.text_encoder, _text_names(checkpoint, pipeline.text_encoder), "the text encoder", dtype)
    fill(pipeline.unet, checkpoint.unet.state | motion_module.state, "checkpoint with motion module", dtype)
    pipeline.tokenizer = checkpoint.tokenizer
    return pipeline.to(device)


def same_build(one: tuple[Checkpoint, Part, Part | None], other: tuple[Checkpoint, Part, Part | None]) -> bool:
    """Whether they differ in their weights alone."""
    return _build_of(*one) == _build_of(*other)


def _build_of(checkpoint: Checkpoint, motion_module: Part, vae: Part | None) -> list[dict[str, Any]]:
    return [
        _arguments(UNet2DConditionModel, checkpoint.unet),
        _arguments(MotionAdapter, motion_module),
        _arguments(AutoencoderKL, vae or checkpoint.vae),
        _without_marks(CLIPTextConfig(**_without_marks(checkpoint.text_encoder.config)).to_dict()),
    ]


def _arguments(kind: type, part: Part) -> dict[str, Any]:
    """What the class is made with, its defaults included; JSON knows no tuples."""
    names = {name: part.config.get(name, default.default) for name, default in signature(kind).parameters.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in names.items()}


def _build(checkpoint: Checkpoint, motion_module: Part, vae: Part) -> Any:
    """Without any weights yet: no memory and no random numbers for what comes from files."""
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(dict(vae.config))
        text_encoder = CLIPTextModel(CLIPTextConfig(**_without_marks(checkpoint.text_encoder.config)))
        images = UNet2DConditionModel.from_config(dict(checkpoint.unet.config))
        motions = MotionAdapter.from_config(dict(motion_module.config))
        try:
            unet = UNetMotionModel.from_unet2d(images, motions, load_weights=False)
        except ValueError as error:
            raise EngineError("MODEL_LOAD_FAIL", f"checkpoint and motion module do not match: {error}") from error
    unet.__class__ = WindowedUNet
    pipeline = AnimateDiffPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=unet,
        motion_adapter=None,
        scheduler=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_names(checkpoint: Checkpoint, module: Any) -> Tensors:
    """The files say text_model.…; newer versions of transformers have left that out of the module."""
    prefix = "text_model."
    if any(name.startswith(prefix) for name in module.state_dict()):
        return dict(checkpoint.text_encoder.state)
    state = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.text_encoder.state.items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def _without_marks(config: Any) -> dict[str, Any]:
    """A saved configuration also tells who saved it, and how."""
    return {name: value for name, value in config.items() if name not in MARKS and not name.startswith("_")}
