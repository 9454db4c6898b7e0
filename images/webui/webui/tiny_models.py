"""A tiny checkpoint and motion module from a fixed seed: a real pipeline, meaningless pictures, no downloads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SEED = 20240607
CHANNELS = (32, 64)
TEXT_WIDTH = 32
TEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
CORPUS = (
    "a red circle moves left",
    "a blue square turns slowly on a green background",
    "the yellow triangle jumps up and down",
    "a white star falls from the night sky over a quiet sea",
    "a cat walks through tall grass, wind, soft light, high quality, best quality, masterpiece",
    "blurry, low quality, worst quality, watermark, text",
)


def make_checkpoint(folder: Path) -> None:
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
    )
    tokenizer = make_tokenizer(folder.with_name(f"{folder.name}.tokenizer"), CORPUS, TEXT_LENGTH)
    text_encoder = CLIPTextModel(
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
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def make_motion_module(folder: Path) -> None:
    torch.manual_seed(SEED + 1)
    adapter = MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )
    # diffusers starts the output projections at zero, which would make all frames alike.
    for name, weight in adapter.named_parameters():
        if "proj_out" in name and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    adapter.save_pretrained(folder, safe_serialization=True)


def make_tokenizer(folder: Path, corpus: Sequence[str], length: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of at most 1000 words trained on `corpus`, in CLIP's own file layout.

    `length`: the most tokens of a text. `folder`: where its files lie for a moment."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1000,
            # The trainer numbers letters with the suffix in random order unless they are there already.
            special_tokens=[START, END, *alphabet, *(f"{letter}</w>" for letter in alphabet)],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    folder.mkdir()
    try:
        tokenizer.model.save(str(folder))
        config = {"model_max_length": length, "bos_token": START, "eos_token": END}
        config |= {"unk_token": END, "pad_token": END, "tokenizer_class": "CLIPTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    finally:
        shutil.rmtree(folder)
