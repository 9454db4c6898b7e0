"""AnimateDiff by diffusers, from local files alone."""

from __future__ import annotations

import gc
import logging
import secrets
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from webui.engine.base import Capabilities, Clip, Control, EngineError, Load, Snapshot
from webui.engine.context import Window, windows
from webui.engine.controls import controls_for
from webui.engine.decode import decode, tiled
from webui.engine.denoise import RANDOM, Denoiser, can_go_on
from webui.engine.failure import to_engine_error
from webui.engine.guidance import Guidance
from webui.engine.library import Library
from webui.engine.loading import fingerprint
from webui.engine.models import Models, Ready, Selection, way_of_computing
from webui.engine.text import length_warnings
from webui.engine.windows import windowed
from webui.request import MemorySettings, VideoRequest, context_of
from webui.sampler_names import SAMPLERS, SCHEDULES
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

    def decoded(self, clip: Clip, ready: int) -> None:
        pass

    def check(self) -> None:
        pass


class DiffusersEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._library = Library(settings.models_dir, Path(settings.scratch_dir))
        self._models = Models(settings, self._library)
        self._offloading = False

    @property
    def _pipeline(self) -> Any:
        return self._models.pipeline

    def load(self) -> Capabilities:
        settings = self._settings
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise EngineError("GPU_LOST", "APPLIANCE_DEVICE is cuda, but PyTorch sees no GPU")
        torch.set_num_threads(settings.threads)
        gc.freeze()  # the libraries stay: no collection between two checkpoints has to look through them
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        try:
            selection = self._models.select(VideoRequest(""))
            with self._models.ready(VideoRequest("")) as ready:
                frames = ready.pipeline.unet.config.motion_max_seq_length
            return self._capabilities(selection, frames)
        except EngineError:
            raise
        except Exception as error:
            raise to_engine_error(error, "MODEL_LOAD_FAIL") from error

    def _capabilities(self, selection: Selection, max_frames: int) -> Capabilities:
        settings, library = self._settings, self._library
        models = [chosen.model for chosen in (selection.checkpoint, selection.motion_module, selection.vae) if chosen]
        return Capabilities(
            engine=f"diffusers-{settings.device}",
            fingerprint=fingerprint(library, way_of_computing(settings), *models),
            synthetic=False,
            checkpoint=selection.checkpoint.model.name,
            motion_module=selection.motion_module.model.name,
            max_frames=max_frames,
            samplers=tuple(SAMPLERS),
            schedulers=SCHEDULES,
            vram_mib=torch.cuda.mem_get_info()[1] // MIB if settings.device == "cuda" else 0,
            **self.offers(),
        )

    def warm_up(self) -> Clip:
        if self._settings.device == "cuda":
            self._warm_up_usual_size()
        request = VideoRequest("warm-up", width=64, height=64, frames=2, steps=1, seed=0)
        return self.generate(request, Quiet(), MemorySettings())

    def _warm_up_usual_size(self) -> None:
        """GPU libraries choose their ways by shape. A GPU without the memory for it will not see that size later."""
        request = VideoRequest("warm-up", steps=1, seed=0)
        frames = min(request.frames, self._pipeline.unet.config.motion_max_seq_length)
        try:
            self.generate(replace(request, frames=frames), Quiet(), MemorySettings())
        except EngineError as error:
            if error.reason != "OOM":
                raise
            log.warning("not warmed up for the usual size: %s", error.message)
        self.release()

    def accepts(self, snapshot: Snapshot, request: VideoRequest) -> bool:
        return can_go_on(self._pipeline, request, snapshot)

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
            with self._pipeline_for(request) as ready, torch.inference_mode():
                pipeline = ready.pipeline
                self._offload(memory)
                controls = controls_for(pipeline, request, self._models.control, partial(control.phase, "load"))
                control.phase("step")  # from here on silence is judged as a step's
                told, is_short = partial(control.phase, "step"), self._is_short(memory)
                with windowed(pipeline.unet, _windows(request, memory), controls, told, is_short=is_short):
                    guidance = Guidance(request.cfg_scale, split=is_short)
                    latents = Denoiser(pipeline, request, seed, generator, control, guidance).run(resume)
                control.phase("decode")
                made_with = request.described() | {"seed": seed} | ready.made_with
                made_with["warnings"] = length_warnings(pipeline, request) + ready.warnings
                with tiled(pipeline.vae, memory.vae_tiling):
                    return decode(pipeline.vae, latents, control, 1 if memory.vae_tiling else DECODE_FRAMES, made_with)
        except EngineError:
            raise
        except Exception as error:
            raise to_engine_error(error, "UNKNOWN") from error

    def _is_short(self, memory: MemorySettings) -> bool:
        """Whether the GPU has run out of memory with this job before. On the CPU equal seeds must stay equal bytes."""
        return self._settings.device == "cuda" and memory != MemorySettings()

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
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return {
            "name": torch.cuda.get_device_name(),
            "memory_total_mib": total // MIB,
            "memory_used_mib": (total - free) // MIB,
            "memory_cached_mib": max(0, cached) // MIB,
        }

    def identify(self, request: VideoRequest) -> str:
        return self._models.select(request).identity()

    def offers(self) -> dict[str, Any]:
        return self._library.offers()

    def loads(self) -> list[Load]:
        return self._models.loads()

    def _pipeline_for(self, request: VideoRequest) -> AbstractContextManager[Ready]:
        """The request's models on the device, its LoRAs in them and its sampler set; afterwards they are as before."""
        return self._models.ready(request)

    def _offload(self, memory: MemorySettings) -> None:
        """Until `release`: each model is on the GPU only while it works. Without a GPU there is nothing to save."""
        if memory.cpu_offload and self._settings.device == "cuda":
            self._offloading = True
            self._pipeline.enable_model_cpu_offload(device=self._settings.device)


def _windows(request: VideoRequest, memory: MemorySettings) -> list[Window]:
    context = context_of(request, memory)
    return windows(request.frames, context, request.context_overlap, request.context_stride, request.closed_loop)
