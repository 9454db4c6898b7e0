"""Models of Stable Diffusion 1.5's and AnimateDiff v3's full size, with random weights, as A1111 has them on disk."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.integration.metrics_text import value_of
from tests.integration.webui_models import a1111_motion, ldm_text, ldm_unet, ldm_vae, store
from tests.integration.webui_node import Node, generate, order
from webui.engine import sd15
from webui.tiny_models import make_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
GIB = 1 << 30
MEMORY_LIMIT = 12 * GIB


def random_weights(names: dict[str, Any]) -> dict[str, Any]:
    """Small enough that nothing overflows: norms leave their input as it is."""
    made = {}
    for name, tensor in names.items():
        if tensor.dim() == 1:
            made[name] = torch.full(tensor.shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.float16)
        else:
            made[name] = torch.empty(tensor.shape, dtype=torch.float16).normal_(std=0.02)
    return made


def make_tokenizer(folder: Path, scratch: Path) -> None:
    """As large as CLIP's, in CLIP's two files; its further words never occur."""
    make_checkpoint(scratch / "tiny")
    tokenizer = CLIPTokenizer.from_pretrained(str(scratch / "tiny" / "tokenizer"), local_files_only=True)
    vocabulary = dict(tokenizer.get_vocab())
    vocabulary |= {f"unused{number}</w>": number for number in range(len(vocabulary), sd15.TEXT_ENCODER["vocab_size"])}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    torch.manual_seed(4)
    models = tmp_path / "models"
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**sd15.UNET), AutoencoderKL(**sd15.VAE)
        text, motion = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_ENCODER)), MotionAdapter(use_motion_mid_block=False)
    names = ldm_unet(unet.state_dict()) | ldm_vae(vae.state_dict()) | ldm_text(text.state_dict())
    store(random_weights(names), models / "checkpoint" / "sd15.safetensors", torch.float16)
    named = a1111_motion(motion.state_dict())
    store(random_weights(named), models / "motion_module" / "mm_sd15_v3.safetensors", torch.float16)
    make_tokenizer(models / "tokenizer", tmp_path)
    (models / ".animatediff-ha").touch()
    running = Node(
        tmp_path / "node",
        APPLIANCE_MODELS_DIR=str(models),
        APPLIANCE_ENGINE="diffusers",
        APPLIANCE_CHECKPOINT="sd15",
        APPLIANCE_MOTION_MODULE="mm_sd_v15_v3",
        APPLIANCE_SCRATCH_DIR=str(tmp_path / "scratch"),
        APPLIANCE_THREADS="2",
    )
    try:
        yield running
    finally:
        running.close()


def peak_memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_full_size_models_in_a1111s_layout_load_and_run_a_step(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    while (answer := node.ping()) is None or answer.status_code != 200:
        body = answer.json() if answer is not None else {}
        assert body.get("status") != "error", body
        assert time.monotonic() - started < 600, f"not ready after 600 s: {body}"
        time.sleep(0.5)
    ready = time.monotonic() - started
    capabilities = answer.json()["capabilities"]
    assert capabilities["models"] == ["sd15"]
    assert capabilities["motion_modules"] == ["mm_sd15_v3"]
    assert capabilities["max_frames"] == 32
    node.client.timeout = 900
    before = time.monotonic()
    events = generate(
        node, order(width=64, height=64, frames=2, steps=1, seed=1, motion_module="mm_sd15_v3.safetensors")
    )
    assert events[-1]["event"] == "done", events[-1]
    seconds, peak = time.monotonic() - before, peak_memory(node.child())
    metrics = node.client.get("/metrics").text
    load = value_of(metrics, "animatediff_model_load_time_seconds_sum", cache="cold", model="sd15")
    assert load > 0
    models = Path(node.environ["APPLIANCE_MODELS_DIR"])
    files = sum(path.stat().st_size for path in models.rglob("*.safetensors")) / GIB
    with capsys.disabled():
        print(
            f"\n{files:.1f} GiB of files: models loaded in {load:.1f} s, ready after {ready:.1f} s, one step "
            f"of 2 frames of 64x64 with decoding {seconds:.1f} s, peak memory {peak / GIB:.1f} GiB"
        )
    assert peak < MEMORY_LIMIT
