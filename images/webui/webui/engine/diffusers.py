"""AnimateDiff by diffusers, from local files alone: a checkpoint folder and a motion module folder."""

from __future__ import annotations

import hashlib
import logging
import secrets
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

from webui import __version__
from webui.engine.base import Capabilities, Clip, Control, EngineError, Frames, Reason
from webui.request import VideoRequest
from webui.settings import EngineSettings

# Frames decoded at once: the autoencoder, not the UNet, sets the peak of memory.
DECODE_FRAMES = {"cpu": 4, "cuda": 4}
MODEL_FILES = (".safetensors", ".json", ".txt")
# Text in PyTorch's errors that means this GPU will not come back for this process, or at all.
LOST_GPU = ("no cuda gpus are available", "no cuda-capable device", "device unavailable", "invalid device ordinal")

log = logging.getLogger(__name__)


class Quiet:
    """The control of a warm-up: nobody listens, nobody stops it."""

    def step(self, done: int) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    def check(self) -> None:
        pass


class DiffusersEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._pipeline: Any = None

    def load(self) -> Capabilities:
        settings = self._settings
        checkpoint = model_folder(settings.models_dir, "checkpoint", settings.checkpoint)
        motion_module = model_folder(settings.models_dir, "motion_module", settings.motion_module)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise EngineError("GPU_LOST", "APPLIANCE_DEVICE is cuda, but PyTorch sees no GPU")
        torch.set_num_threads(settings.threads)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        try:
            adapter = self._load(checkpoint, motion_module)
        except Exception as error:
            raise to_engine_error(error, "MODEL_LOAD_FAIL") from error
        return Capabilities(
            engine=f"diffusers-{settings.device}",
            fingerprint=fingerprint(checkpoint, motion_module),
            synthetic=False,
            checkpoint=settings.checkpoint,
            motion_module=settings.motion_module,
            max_frames=adapter.config.motion_max_seq_length,
            samplers=("DDIM",),
        )

    def warm_up(self) -> Clip:
        return self.generate(VideoRequest("warm-up", width=64, height=64, frames=2, steps=1, seed=0), Quiet())

    def generate(self, request: VideoRequest, control: Control) -> Clip:
        seed = request.seed if request.seed >= 0 else secrets.randbelow(2**63)
        try:
            with torch.inference_mode():
                latents = self._denoise(request, seed, control)
                control.phase("decode")
                frames = self._decode(latents, control)
        except Exception as error:
            raise to_engine_error(error, "UNKNOWN") from error
        warnings = self._warnings(request)
        return Clip(frames, request.as_dict() | {"seed": seed, "sampler": "DDIM", "warnings": warnings})

    def release(self) -> None:
        if self._pipeline is not None:
            self._pipeline.maybe_free_model_hooks()
        if self._settings.device == "cuda":
            torch.cuda.empty_cache()

    def _load(self, checkpoint: Path, motion_module: Path) -> Any:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        if self._settings.device == "cuda":
            options["torch_dtype"] = torch.float16
        adapter = MotionAdapter.from_pretrained(str(motion_module), **options)
        pipeline = AnimateDiffPipeline.from_pretrained(
            str(checkpoint),
            motion_adapter=adapter,
            scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
            **options,
        )
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(self._settings.device)
        return adapter

    def _denoise(self, request: VideoRequest, seed: int, control: Control) -> torch.Tensor:
        def report(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            control.step(index + 1)  # raises when the job is to stop; pipeline._interrupt would decode first
            return values

        result = self._pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_frames=request.frames,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            # Noise from the CPU's generator is the same on every device.
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="latent",
            callback_on_step_end=report,
        )
        latents: torch.Tensor = result.frames
        return latents

    def _decode(self, latents: torch.Tensor, control: Control) -> Frames:
        """(1, channels, frames, h, w) latents, a few frames at a time, to (frames, height, width, 3) bytes."""
        vae = self._pipeline.vae
        pieces: list[Frames] = []
        for piece in latents[0].transpose(0, 1).split(DECODE_FRAMES[self._settings.device]):
            pixels = vae.decode(piece / vae.config.scaling_factor).sample.float()
            if not torch.isfinite(pixels).all():
                raise EngineError("UNKNOWN", "the model produced NaN or infinite pixels")
            pixels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round()
            pieces.append(pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy())
            control.phase("decode")
        return np.concatenate(pieces)

    def _warnings(self, request: VideoRequest) -> list[str]:
        tokenizer = self._pipeline.tokenizer
        limit = tokenizer.model_max_length
        return [
            f"{name} has {count} tokens; the model read the first {limit}"
            for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt))
            if (count := len(tokenizer(text, truncation=False, verbose=False).input_ids)) > limit
        ]


def model_folder(root: str, kind: str, name: str) -> Path:
    folder = Path(root, kind, name)
    if not folder.is_dir():
        raise EngineError("MODEL_LOAD_FAIL", f"{folder} does not exist; it must be a folder in diffusers' layout")
    return folder


def fingerprint(*folders: Path) -> str:
    """Code version and the content of every model file; equal fingerprints make equal pictures."""
    digest = hashlib.sha256(f"diffusers {__version__} {diffusers.__version__}".encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file()):
            digest.update(f"\n{path.relative_to(folder)} ".encode())
            digest.update(file_checksum(path))
    return digest.hexdigest()


def file_checksum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def to_engine_error(error: Exception, otherwise: Reason) -> EngineError:
    """PyTorch tells most failures apart only by their text."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    lowered = text.lower()
    message = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EngineError("OOM", message)
    if isinstance(error, MemoryError) or "defaultcpuallocator" in lowered:
        return EngineError("HOST_OOM", message)
    if any(hint in lowered for hint in LOST_GPU):
        return EngineError("GPU_LOST", message)
    if "cuda error" in lowered or "cublas" in lowered or "cudnn" in lowered:
        return EngineError("CUDA_ERROR", message)
    return EngineError(otherwise, message)
