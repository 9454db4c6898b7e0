"""The script that one would write with diffusers alone; answers orders like `ours.py`, and knows nothing of us.

python plain.py MODELS DEVICE THREADS OPTIONS

OPTIONS is a JSON object: checkpoint, motion_module, attention, compile
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor  # noqa: E402
from diffusers.utils import logging  # noqa: E402


def load(models: str, device: str, options: dict[str, Any]) -> Any:
    kind = torch.float16 if device == "cuda" else torch.float32
    adapter = MotionAdapter.from_pretrained(f"{models}/motion_module/{options['motion_module']}", torch_dtype=kind)
    pipeline = AnimateDiffPipeline.from_pretrained(
        f"{models}/checkpoint/{options['checkpoint']}",
        motion_adapter=adapter,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
        torch_dtype=kind,
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()
    if options.get("attention") == "eager":
        pipeline.unet.set_attn_processor(AttnProcessor())
    if options.get("compile"):
        pipeline.unet = torch.compile(pipeline.unet)
    return pipeline


def generate(pipeline: Any, order: dict[str, Any]) -> dict[str, Any]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if order.get("context"):
        pipeline.enable_free_noise(context_length=order["context"], context_stride=order["stride"])
    else:
        pipeline.disable_free_noise()
    times, worked = [time.perf_counter()], time.process_time()

    def step(*arguments: Any) -> dict[str, Any]:
        times.append(time.perf_counter())
        values: dict[str, Any] = arguments[-1]
        return values

    seeds = range(order["seed"], order["seed"] + order.get("batch", 1))
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    is_batch = len(seeds) > 1  # FreeNoise takes no lists
    found = pipeline(
        prompt=[order["prompt"]] * len(seeds) if is_batch else order["prompt"],
        width=order["width"],
        height=order["height"],
        num_frames=order["frames"],
        num_inference_steps=order["steps"],
        guidance_scale=7.5,
        generator=generators if is_batch else generators[0],
        output_type="np",
        callback_on_step_end=step,
    ).frames
    frames = (found * 255).round().astype(np.uint8)
    seconds, worked = time.perf_counter() - times[0], time.process_time() - worked
    peak = torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else None
    return {
        "seconds": seconds,
        "cpu_seconds": worked,
        "step_seconds": (times[-1] - times[0]) / order["steps"],
        "peak_mib": peak,
        "sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
    }


def main() -> None:
    models, device, threads, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    imported = time.perf_counter()
    pipeline = load(models, device, options)
    facts = {"import_seconds": imported - STARTED, "load_seconds": time.perf_counter() - imported}
    print(json.dumps(facts), flush=True)
    name = options["checkpoint"]
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        if order.get("model", name) != name:
            name = order["model"]
            del pipeline
            pipeline = load(models, device, options | {"checkpoint": name})
        loaded = time.perf_counter() - began
        print(json.dumps(generate(pipeline, order) | {"load_seconds": loaded}), flush=True)


if __name__ == "__main__":
    main()
