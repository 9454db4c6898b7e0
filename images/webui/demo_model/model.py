"""The parts of the demo model, and how they become folders that any diffusers program loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from transformers import CLIPTextConfig, CLIPTextModel

from demo_model.clips import SIZE, corpus
from webui.tiny_models import make_tokenizer

CHANNELS = (48, 112)
FACTOR = 8  # pixels on a side of a latent
LATENTS = 12
TEXT_WIDTH = 64
TEXT_LENGTH = 32
LONGEST = 32  # frames
# Zero signal at the end, nearly: what is left of the background there would tell the model what noise alone cannot.
NOISE = {"beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}


@dataclass
class Parts:
    """All that is trained, and the tokenizer."""

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any

    def to(self, device: str) -> Parts:
        for part in (self.vae, self.unet, self.text_encoder):
            part.to(device)
        return self


def make_parts(seed: int, folder: Path) -> Parts:
    """Untrained; `folder` is a place for a temporary folder."""
    torch.manual_seed(seed)
    # Every word that training shows is one token; any other word falls into letters.
    words = sorted({word.strip(",") for text in corpus() for word in text.split()})
    tokenizer = make_tokenizer(folder / "tokenizer.tmp", words, TEXT_LENGTH)
    unet = UNetMotionModel.from_unet2d(_image_unet(), _motion_adapter())
    return Parts(make_autoencoder(), unet, _text_encoder(tokenizer), tokenizer)


def make_autoencoder() -> Any:
    """What its latents are is set: see `demo_model.autoencoder.thumbnails`."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENTS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def _image_unet() -> Any:
    return UNet2DConditionModel(
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        sample_size=SIZE // FACTOR,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # which diffusers takes for the number of heads
        norm_num_groups=8,
    )


def _motion_adapter() -> Any:
    return MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        motion_max_seq_length=LONGEST,
        use_motion_mid_block=True,
    )


def _text_encoder(tokenizer: Any) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def embed(parts: Parts, texts: list[str]) -> torch.Tensor:
    """(texts, TEXT_LENGTH, TEXT_WIDTH), as a pipeline would embed them."""
    tokens = parts.tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    states: torch.Tensor = parts.text_encoder(tokens.input_ids.to(parts.text_encoder.device))[0]
    return states


def place_frames(unet: Any, frames: torch.Tensor) -> None:
    """Makes motion modules take the frames that they are given for those of these numbers (count,).

    So a few frames of a long clip can be trained on. `place_frames(unet, arange(LONGEST))` is what a file has.
    """
    for module in unet.modules():
        if isinstance(module, SinusoidalPositionalEmbedding):
            whole = SinusoidalPositionalEmbedding(module.pe.shape[2], LONGEST).pe
            module.pe = whole[:, frames.cpu()].to(module.pe)


def export(parts: Parts, folder: Path) -> None:
    """Writes `checkpoint/tiny` and `motion_module/tiny` in half precision; `folder` must not exist."""
    state = {name: value.detach().cpu() for name, value in parts.unet.state_dict().items()}
    images, motions = _image_unet(), _motion_adapter()
    images.load_state_dict({name: value for name, value in state.items() if "motion_modules" not in name})
    motions.load_state_dict({name: value for name, value in state.items() if "motion_modules" in name})
    vae, text = make_autoencoder(), _text_encoder(parts.tokenizer)
    vae.load_state_dict(parts.vae.state_dict())
    text.load_state_dict(parts.text_encoder.state_dict())
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=parts.tokenizer,
        unet=images,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1, **NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder / "checkpoint" / "tiny", safe_serialization=True)
    motions.to(torch.float16).save_pretrained(folder / "motion_module" / "tiny", safe_serialization=True)
