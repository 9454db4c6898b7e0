"""The diffusers engine in this process, with tiny models, and what tests do with it. Needs torch and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, SparseControlNetModel
from safetensors.torch import save_file

from webui.demo_models import make_models
from webui.engine.base import Clip, Frames, Snapshot, StoppedError
from webui.engine.diffusers import DiffusersEngine
from webui.request import MemorySettings, VideoRequest, request_problems, video_request
from webui.settings import EngineSettings
from webui.tiny_models import CHANNELS, SEED, TEXT_WIDTH

SMALL = {"prompt": "a red circle", "width": 64, "height": 64, "frames": 6, "steps": 4, "seed": 7}


def tiny_engine(root: Path) -> DiffusersEngine:
    """Its models: checkpoint and motion module `tiny`, ControlNets `tiny` and `sparse`."""
    list(make_models(root / "models"))
    make_controls(root / "models" / "controlnet")
    settings = EngineSettings(
        kind="diffusers",
        checkpoint="tiny",
        motion_module="tiny",
        models_dir=str(root / "models"),
        scratch_dir=str(root / "scratch"),
    )
    engine = DiffusersEngine(settings)
    engine.load()
    return engine


def make_controls(folder: Path) -> None:
    shape: dict[str, Any] = {"block_out_channels": CHANNELS, "layers_per_block": 1, "cross_attention_dim": TEXT_WIDTH}
    shape |= {"attention_head_dim": 8, "norm_num_groups": 8}
    torch.manual_seed(SEED + 2)
    plain = ControlNetModel(
        **shape,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 16, 16, 16),
    )
    sparse = SparseControlNetModel(
        **shape, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), motion_num_attention_heads=4
    )
    for name, network in (("tiny", plain), ("sparse", sparse)):
        for part, weight in network.named_parameters():  # which begin at zero, and would control nothing
            if "controlnet_" in part:
                torch.nn.init.normal_(weight, std=0.2)
        network.save_pretrained(folder / name, safe_serialization=True)


def make_lora(path: Path) -> None:
    """Kohya's layout, for two attention layers of the tiny checkpoint."""
    torch.manual_seed(SEED + 3)
    layers = {"down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": 32, "mid_block_attentions_0_proj_in": 64}
    tensors = {}
    for layer, width in layers.items():
        tensors[f"lora_unet_{layer}.lora_down.weight"] = torch.randn(4, width)
        tensors[f"lora_unet_{layer}.lora_up.weight"] = torch.randn(width, 4)
        tensors[f"lora_unet_{layer}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)


class Watcher:
    """The control of a generation that notes what it is told, and stops after a step if it is asked to."""

    def __init__(self, stop_after: int | None = None, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.steps: list[int] = []
        self.phases: list[tuple[str, int, int]] = []
        self.ready: list[tuple[int, bytes]] = []
        self.snapshots: dict[int, Snapshot] = {}
        self._stop_after = stop_after
        self._on_step = on_step

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        self.steps.append(done)
        if snapshot is not None:
            self.snapshots[done] = snapshot
        self._on_step(done)
        if done == self._stop_after:
            raise StoppedError

    def phase(self, name: str, part: int = 0, parts: int = 0) -> None:
        self.phases.append((name, part, parts))

    def decoded(self, clip: Clip, ready: int) -> None:
        self.ready.append((ready, clip.frames[:ready].tobytes()))

    def check(self) -> None:
        pass


def small(**fields: Any) -> VideoRequest:
    asked = SMALL | fields
    assert request_problems(asked) == []
    return video_request(asked)


def make(
    engine: DiffusersEngine, watcher: Watcher | None = None, resume: Snapshot | None = None, **fields: Any
) -> Frames:
    try:
        clip = engine.generate(small(**fields), watcher or Watcher(), MemorySettings(), resume)
    finally:
        engine.release()
    return clip.frames
