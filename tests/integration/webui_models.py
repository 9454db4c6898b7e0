"""Small and large models of Stable Diffusion 1.5's build with random weights, in diffusers' and in A1111's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from webui.engine import sd15
from webui.tiny_models import make_checkpoint

Tensors = dict[str, torch.Tensor]
SMALL_UNET = {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32, "norm_num_groups": 8, "sample_size": 8}
SMALL_UNET |= {"attention_head_dim": 4}
SMALL_VAE = {**sd15.VAE, "block_out_channels": (16, 16, 16, 16), "norm_num_groups": 8, "layers_per_block": 1}
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_MOTION = {"block_out_channels": (32, 32, 32, 32), "motion_num_attention_heads": 4, "motion_norm_num_groups": 8}

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
UNET_ENDS |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
MOTION = {".transformer_blocks.": ".temporal_transformer.transformer_blocks.", ".attn1.": ".attention_blocks.0."}
MOTION |= {".attn2.": ".attention_blocks.1.", ".norm1.": ".norms.0.", ".norm2.": ".norms.1.", ".norm3.": ".ff_norm."}


def make_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{**sd15.UNET, **config})


def make_motion(config: Mapping[str, Any], mid_block: bool) -> MotionAdapter:
    adapter = MotionAdapter(**{**config, "use_motion_mid_block": mid_block})
    for name, weight in adapter.named_parameters():  # which diffusers starts at zero: all frames would be alike
        if "proj_out" in name and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    return adapter


def ldm_unet(state: Tensors, layers: int = 2, blocks: int = 4) -> Tensors:
    """The authors' names for a UNet's tensors."""
    prefixes = dict(UNET_ENDS)
    for block in range(blocks):
        for layer in range(layers):
            at = block * (layers + 1) + layer + 1
            prefixes[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{at}.0"
            prefixes[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{at}.1"
        prefixes[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
        for layer in range(layers + 1):
            at = block * (layers + 1) + layer
            prefixes[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{at}.0"
            prefixes[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{at}.1"
        upsampler = f"output_blocks.{block * (layers + 1) + layers}.{1 if block == 0 else 2}.conv"
        prefixes[f"up_blocks.{block}.upsamplers.0.conv"] = upsampler
    prefixes |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    prefixes |= {"mid_block.attentions.0": "middle_block.1"}
    renamed: Tensors = {}
    for name, tensor in state.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix + "."))
        rest = name.removeprefix(prefix + ".")
        if ".resnets." in name:
            layer_name, _, kind = rest.rpartition(".")
            rest = f"{RESNET[layer_name]}.{kind}"
        renamed[f"model.diffusion_model.{prefixes[prefix]}.{rest}"] = tensor
    return renamed


def ldm_vae(state: Tensors, blocks: int = 4) -> Tensors:
    """The authors' names for an autoencoder's tensors; attention is a convolution there."""
    renamed: Tensors = {}
    for name, tensor in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for block in range(blocks):
            new = new.replace(f"encoder.down_blocks.{block}.resnets.", f"encoder.down.{block}.block.")
            new = new.replace(f"encoder.down_blocks.{block}.downsamplers.0.", f"encoder.down.{block}.downsample.")
            new = new.replace(f"decoder.up_blocks.{block}.resnets.", f"decoder.up.{blocks - 1 - block}.block.")
            new = new.replace(f"decoder.up_blocks.{block}.upsamplers.0.", f"decoder.up.{blocks - 1 - block}.upsample.")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if ".mid_block.attentions.0." in new:
            head, _, rest = new.partition(".mid_block.attentions.0.")
            layer, _, kind = rest.rpartition(".")
            new = f"{head}.mid.attn_1.{VAE_ATTENTION[layer]}.{kind}"
            tensor = tensor[..., None, None] if kind == "weight" and layer != "group_norm" else tensor
        renamed[f"first_stage_model.{new}"] = tensor
    return renamed


def ldm_text(state: Tensors) -> Tensors:
    return {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in state.items()
    }


def a1111_motion(state: Tensors, frames: int = 32) -> Tensors:
    """The authors' names for a motion module's tensors, with the positions that only their files carry."""
    renamed: Tensors = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in MOTION.items():
            new = new.replace(ours, theirs)
        for part in (".proj_in.", ".proj_out."):
            new = new.replace(part, f".temporal_transformer{part}")
        if ".temporal_transformer." not in new:
            head, _, kind = new.rpartition(".norm.")
            new = f"{head}.temporal_transformer.norm.{kind}"
        if not new.endswith(".pe"):
            renamed[new] = tensor
    for name in [name for name in renamed if name.endswith("attention_blocks.0.to_q.weight")]:
        positions = torch.zeros(1, frames, renamed[name].shape[1])
        renamed[name.replace("to_q.weight", "pos_encoder.pe")] = positions
    return renamed


def store(state: Mapping[str, torch.Tensor], path: Path, dtype: torch.dtype = torch.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.to(dtype).contiguous().clone() for name, tensor in state.items()}, path)


class SmallModels:
    """`root` with the same random networks as folders and as single files, a tokenizer, and LoRAs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.manual_seed(5)
        tiny = root / "checkpoint" / "tiny"
        tiny.parent.mkdir(parents=True)
        make_checkpoint(tiny)
        shutil.copytree(tiny / "tokenizer", root / "tokenizer")
        words = len(CLIPTokenizer.from_pretrained(str(tiny / "tokenizer"), local_files_only=True))
        self.unet = make_unet(SMALL_UNET)
        self.vae = AutoencoderKL(**SMALL_VAE)
        self.text = CLIPTextModel(CLIPTextConfig(**{**sd15.TEXT_ENCODER, **SMALL_TEXT, "vocab_size": words}))
        self.motions = {name: make_motion(SMALL_MOTION, mid) for name, mid in (("v2", True), ("v3", False))}
        self._save_folders(tiny, words)
        self._save_files(words)

    def _save_folders(self, tiny: Path, words: int) -> None:
        folder = self.root / "checkpoint" / "folder"
        self.unet.save_pretrained(folder / "unet")
        self.vae.save_pretrained(folder / "vae")
        self.text.save_pretrained(folder / "text_encoder")
        shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        for name, adapter in self.motions.items():
            adapter.save_pretrained(self.root / "motion_module" / f"{name}-folder")

    def _save_files(self, words: int) -> None:
        state = ldm_unet(self.unet.state_dict()) | ldm_vae(self.vae.state_dict()) | ldm_text(self.text.state_dict())
        self.file = self.root / "checkpoint" / "single.safetensors"
        store(state, self.file)
        config = {"unet": SMALL_UNET, "vae": SMALL_VAE, "text_encoder": {**SMALL_TEXT, "vocab_size": words}}
        self.file.with_suffix(".json").write_text(json.dumps(config))
        for name, adapter in self.motions.items():
            path = self.root / "motion_module" / f"{name}.safetensors"
            store(a1111_motion(adapter.state_dict(), frames=24 if name == "v2" else 32), path)
            path.with_suffix(".json").write_text(json.dumps({k: v for k, v in SMALL_MOTION.items() if "motion" in k}))
