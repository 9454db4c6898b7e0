"""AnimateDiff by diffusers, from local files alone: a checkpoint folder and a motion module folder."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AnimateDiffPipeline, MotionAdapter

from webui.engine.base import Capabilities, Clip, Control, EngineError, Snapshot
from webui.engine.denoise import LATENTS, RANDOM, decode, denoise
from webui.engine.failure import to_engine_error
from webui.engine.loading import fingerprint, model_folder
from webui.engine.schedule import ResumableDDIM
from webui.engine.windows import WindowedUNet, tiled, windowed
from webui.request import MemorySettings, VideoRequest, context_of
from webui.settings import EngineSettings

DECODE_FRAMES = 4  # at once: the autoencoder, not the UNet, sets the peak of memory
MIB = 1 << 20


log = logging.getLogger(__name__)


class Quiet:
    """The control of a warm-up: nobody listens, nobody stops it."""

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        pass

    def phase(self, name: str, part: int = 0, parts: int = 0) -> None:
        pass

    def check(self) -> None:
        pass


class DiffusersEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._pipeline: Any = None
        self._offloading = False

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
            vram_mib=torch.cuda.mem_get_info()[1] // MIB if settings.device == "cuda" else 0,
        )

    def warm_up(self) -> Clip:
        request = VideoRequest("warm-up", width=64, height=64, frames=2, steps=1, seed=0)
        return self.generate(request, Quiet(), MemorySettings())

    def accepts(self, snapshot: Snapshot, request: VideoRequest) -> bool:
        pipeline, scale = self._pipeline, self._pipeline.vae_scale_factor
        channels = pipeline.unet.config.in_channels
        shape = (1, channels, request.frames, request.height // scale, request.width // scale)
        latents, random = snapshot.tensors.get(LATENTS), snapshot.tensors.get(RANDOM)
        return (
            latents is not None
            and random is not None
            and latents.shape == shape
            and bool(np.isfinite(latents).all())
            and random.dtype == np.uint8
            and random.shape == torch.Generator("cpu").get_state().shape
        )

    def generate(
        self, request: VideoRequest, control: Control, memory: MemorySettings, resume: Snapshot | None = None
    ) -> Clip:
        # Noise from the CPU's generator is the same on every device.
        generator = torch.Generator("cpu").manual_seed(request.seed if request.seed >= 0 else secrets.randbelow(2**63))
        if resume is not None:
            generator.manual_seed(resume.seed).set_state(torch.tensor(resume.tensors[RANDOM]))
        seed = resume.seed if resume is not None else generator.initial_seed()
        control.phase("load")
        try:
            self._offload(memory)
            control.phase("step")  # from here on silence is judged as a step's
            with (
                torch.inference_mode(),
                windowed(self._pipeline.unet, request.frames, context_of(request, memory), request.context_overlap),
            ):
                latents = denoise(self._pipeline, request, seed, generator, control, resume)
            control.phase("decode")
            with torch.inference_mode(), tiled(self._pipeline.vae, memory.vae_tiling):
                frames = decode(self._pipeline.vae, latents, control, 1 if memory.vae_tiling else DECODE_FRAMES)
        except Exception as error:
            raise to_engine_error(error, "UNKNOWN") from error
        warnings = self._warnings(request)
        return Clip(frames, request.as_dict() | {"seed": seed, "sampler": "DDIM", "warnings": warnings})

    def release(self) -> None:
        if self._pipeline is not None:
            self._pipeline.maybe_free_model_hooks()
        if self._settings.device == "cuda":
            torch.cuda.empty_cache()
        if self._offloading:  # only now that nothing holds the last generation's tensors is there room again
            self._pipeline.remove_all_hooks()
            self._pipeline.to(self._settings.device)
            self._offloading = False

    def gpu(self) -> dict[str, Any] | None:
        if self._settings.device != "cuda":
            return None
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return {"name": name, "memory_total_mib": total // MIB, "memory_used_mib": (total - free) // MIB}

    def _offload(self, memory: MemorySettings) -> None:
        """Until `release`: each model is on the GPU only while it works. Without a GPU there is nothing to save."""
        if memory.cpu_offload and self._settings.device == "cuda":
            self._offloading = True
            self._pipeline.enable_model_cpu_offload(device=self._settings.device)

    def _load(self, checkpoint: Path, motion_module: Path) -> Any:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        if self._settings.device == "cuda":
            options["torch_dtype"] = torch.float16
        adapter = MotionAdapter.from_pretrained(str(motion_module), **options)
        pipeline = AnimateDiffPipeline.from_pretrained(
            str(checkpoint),
            motion_adapter=adapter,
            scheduler=ResumableDDIM(beta_schedule="linear", clip_sample=False, steps_offset=1),
            **options,
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet.__class__ = WindowedUNet  # the pipeline makes its UNet itself, from checkpoint and adapter
        self._pipeline = pipeline.to(self._settings.device)
        return adapter

    def _warnings(self, request: VideoRequest) -> list[str]:
        tokenizer = self._pipeline.tokenizer
        limit = tokenizer.model_max_length
        return [
            f"{name} has {count} tokens; the model read the first {limit}"
            for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt))
            if (count := len(tokenizer(text, truncation=False, verbose=False).input_ids)) > limit
        ]
