"""Stable Diffusion 1.5 as numbers: what single files leave out and a hub would tell.

They are those of https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5 (CreativeML Open RAIL-M) where they
differ from the libraries' defaults. A file `<name>.json` beside a single file changes single values of them:
`{"unet": {…}, "vae": {…}, "text_encoder": {…}, "scheduler": {…}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNET: Mapping[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
VAE: Mapping[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
MOTION_MODULE: Mapping[str, Any] = {"motion_num_attention_heads": 8, "motion_norm_num_groups": 32}
