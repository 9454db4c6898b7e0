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
from diffusers import AnimateDiffPipeline, MotionAdapter
from numpy.typing import NDArray

from webui import __version__
from webui.engine.base import Capabilities, Clip, Control, EngineError, Frames, Reason, Snapshot
from webui.engine.schedule import ResumableDDIM
from webui.engine.windows import WindowedUNet, tiled, windowed
from webui.request import MemorySettings, VideoRequest, context_of
from webui.settings import EngineSettings

DECODE_FRAMES = 4  # at once: the autoencoder, not the UNet, sets the peak of memory
MIB = 1 << 20
LATENTS, RANDOM, SCHEDULER = "latents", "random", "scheduler."  # names of tensors in a checkpoint
MODEL_FILES = (".safetensors", ".json", ".txt")
# Text in PyTorch's errors that means this GPU will not come back for this process, or at all.
LOST_GPU = ("no cuda gpus are available", "no cuda-capable device", "device unavailable", "invalid device ordinal")

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
            with (
                torch.inference_mode(),
                windowed(self._pipeline.unet, request.frames, context_of(request, memory), request.context_overlap),
            ):
                latents = self._denoise(request, seed, generator, control, resume)
            control.phase("decode")
            with torch.inference_mode(), tiled(self._pipeline.vae, memory.vae_tiling):
                frames = self._decode(latents, control, 1 if memory.vae_tiling else DECODE_FRAMES)
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

    def _denoise(
        self, request: VideoRequest, seed: int, generator: torch.Generator, control: Control, resume: Snapshot | None
    ) -> torch.Tensor:
        scheduler = self._pipeline.scheduler
        scheduler.first_step, start = 0, None
        if resume is not None:
            scheduler.first_step = resume.step
            start = torch.tensor(resume.tensors[LATENTS]).to(self._settings.device, self._pipeline.unet.dtype)
            scheduler.remember({name: torch.tensor(value) for name, value in _scheduler_part(resume).items()})
            if resume.step == request.steps:
                return start

        def report(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            done = scheduler.first_step + index + 1
            tensors = {LATENTS: values["latents"], RANDOM: generator.get_state()}
            tensors |= {SCHEDULER + name: value for name, value in scheduler.memory().items()}
            # Raises when the job is to stop; pipeline._interrupt would decode first.
            control.step(done, Snapshot(done, seed, {name: _to_numpy(tensor) for name, tensor in tensors.items()}))
            return values

        result = self._pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_frames=request.frames,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            generator=generator,
            latents=start,
            output_type="latent",
            callback_on_step_end=report,
        )
        latents: torch.Tensor = result.frames
        return latents

    def _decode(self, latents: torch.Tensor, control: Control, at_once: int) -> Frames:
        """(1, channels, frames, h, w) latents, a few frames at a time, to (frames, height, width, 3) bytes."""
        vae = self._pipeline.vae
        chunks = latents[0].transpose(0, 1).split(at_once)
        pieces: list[Frames] = []
        for number, piece in enumerate(chunks, start=1):
            pixels = vae.decode(piece / vae.config.scaling_factor).sample.float()
            if not torch.isfinite(pixels).all():
                raise EngineError("UNKNOWN", "the model produced NaN or infinite pixels")
            pixels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round()
            pieces.append(pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy())
            control.phase("decode", number, len(chunks))
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


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _scheduler_part(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(SCHEDULER): value for name, value in snapshot.tensors.items() if name.startswith(SCHEDULER)
    }


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
