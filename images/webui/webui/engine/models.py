"""Which models a request wants, and the pipeline made of them. One pipeline at a time is on the device."""

from __future__ import annotations

import gc
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from webui.engine import loras
from webui.engine.base import EngineError, Load
from webui.engine.library import Kind, Library, Model
from webui.engine.loading import Checkpoint, assemble, load_checkpoint, load_motion_module, load_vae, same_build
from webui.engine.networks import load_control, make_control
from webui.engine.samplers import make_scheduler
from webui.engine.shelf import Shelf, budget_bytes
from webui.engine.weights import Part, read_tensors, weight_files
from webui.request import VideoRequest
from webui.sampler_names import Choice, UnknownChoiceError, choose
from webui.settings import EngineSettings

Parts = tuple[Checkpoint, Part, Part | None]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
COMPILED_SHAPES = 16  # each size of clip is compiled once; beyond that the oldest is compiled again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """A pipeline for one request, what the result's parameters tell about it, and what its user should know."""

    pipeline: Any
    made_with: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class Chosen:
    """A model's files, and their checksum: two files of the same name are two models."""

    model: Model
    checksum: str

    @property
    def key(self) -> str:
        return f"{self.model.kind} {self.checksum}"


@dataclass(frozen=True)
class Selection:
    """All that a request wants to be made with."""

    checkpoint: Chosen
    motion_module: Chosen
    vae: Chosen | None
    loras: tuple[tuple[Chosen, float], ...]
    controls: tuple[Chosen, ...]
    sampler: Choice

    @property
    def pipeline_key(self) -> tuple[str, ...]:
        return (self.checkpoint.key, self.motion_module.key, self.vae.key if self.vae else "")

    def identity(self) -> str:
        """Changes with the content of any of the files."""
        parts = [*self.pipeline_key, *(f"{lora.key} {weight!r}" for lora, weight in self.loras)]
        parts += [control.key for control in self.controls]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def made_with(self) -> dict[str, Any]:
        """For the result's parameters."""
        return {
            "sampler": self.sampler.sampler,
            "scheduler": self.sampler.schedule,
            "model": self.checkpoint.model.name,
            "model_sha256": self.checkpoint.checksum,
            "motion_module": self.motion_module.model.name,
            "motion_module_sha256": self.motion_module.checksum,
            "vae": self.vae.model.name if self.vae else None,
            "vae_sha256": self.vae.checksum if self.vae else None,
            "loras": [
                {"name": lora.model.name, "weight": weight, "sha256": lora.checksum} for lora, weight in self.loras
            ],
            **({"control_sha256": [control.checksum for control in self.controls]} if self.controls else {}),
        }


class Models:
    """Not thread-safe: the engine's one thread uses it."""

    def __init__(self, settings: EngineSettings, library: Library) -> None:
        self._settings = settings
        self._library = library
        self.dtype = DTYPES[dtype_name(settings)]
        self._shelf = Shelf(budget_bytes(settings.model_cache_gib), settings.model_cache_count)
        self._current: tuple[str, ...] = ()
        self._parts: Parts | None = None
        self._loads: list[Load] = []
        self.pipeline: Any = None

    def select(self, request: VideoRequest) -> Selection:
        """Raises EngineError: MODEL_LOAD_FAIL for a model that is not there (any more), INVALID_INPUT for a sampler."""
        settings = self._settings
        motion_module = self._chosen("motion_module", request.motion_module or settings.motion_module)
        vae = request.vae or settings.vae
        try:
            sampler = choose(request.sampler, request.scheduler, motion_module.model.name)
        except UnknownChoiceError as error:
            raise EngineError("INVALID_INPUT", f"{error.field} {error.message}") from error
        return Selection(
            self._chosen("checkpoint", request.model or settings.checkpoint),
            motion_module,
            self._chosen("vae", vae) if vae else None,
            tuple((self._chosen("lora", lora.name), float(lora.weight)) for lora in request.loras if lora.weight != 0),
            tuple(self._chosen("controlnet", name) for name in _controls(request)),
            sampler,
        )

    def loads(self) -> list[Load]:
        """What was loaded since this was last asked."""
        loads, self._loads = self._loads, []
        return loads

    @contextmanager
    def ready(self, request: VideoRequest) -> Iterator[Ready]:
        """The request's models on the device, its LoRAs in them and its sampler set; afterwards they are as before."""
        selection = self.select(request)
        parts = self._activate(selection)
        added = [self._lora(lora, weight) for lora, weight in selection.loras]
        pipeline = self.pipeline
        pipeline.scheduler = make_scheduler(selection.sampler, parts[0].noise)
        applied = loras.Applied()
        module = selection.motion_module.model.name
        try:
            warnings = loras.apply(added, pipeline.unet, pipeline.text_encoder, module, applied)
            yield Ready(pipeline, selection.made_with(), warnings)
        finally:
            _undo(applied)

    def control(self, name: str) -> Any:
        """A ControlNet or SparseCtrl network on the device, for one generation. Raises EngineError."""
        part, _ = self._load(self._chosen("controlnet", name), lambda model: load_control(model, self.dtype))
        return make_control(part, self.dtype, self._settings.device)

    def _chosen(self, kind: Kind, name: str) -> Chosen:
        model = self._library.find(kind, name)
        return Chosen(model, self._library.checksum(model))

    def _activate(self, selection: Selection) -> Parts:
        if self._parts is not None and self._current == selection.pipeline_key:
            return self._parts
        started, first = time.monotonic(), self.pipeline is None
        parts, cached = self._take(selection)
        self._put_on_device(parts)
        self._parts, self._current = parts, selection.pipeline_key
        seconds = time.monotonic() - started
        name = selection.checkpoint.model.name
        self._loads.append(Load(name, "cold" if first else "cached" if cached else "switched", seconds))
        log.info("models loaded: %s", name, extra={"event": "models_loaded", "seconds": round(seconds, 3)})
        return parts

    def _take(self, selection: Selection) -> tuple[Parts, bool]:
        """Read before the device is touched: a broken file leaves the pipeline there as it is."""
        models_dir = Path(self._settings.models_dir)
        checkpoint, had_checkpoint = self._load(
            selection.checkpoint, lambda model: load_checkpoint(model, self.dtype, models_dir)
        )
        motion, had_motion = self._load(selection.motion_module, lambda model: load_motion_module(model, self.dtype))
        vae, had_vae = None, True
        if selection.vae is not None:
            vae, had_vae = self._load(selection.vae, lambda model: load_vae(model, self.dtype))
        return (checkpoint, motion, vae), had_checkpoint and had_motion and had_vae

    def _load(self, chosen: Chosen, load: Callable[[Model], Any]) -> tuple[Any, bool]:
        return self._shelf.take(chosen.key, chosen.model.size(), lambda: load(chosen.model))

    def _lora(self, chosen: Chosen, weight: float) -> loras.Lora:
        def load(model: Model) -> Part:
            paths = weight_files(model.path) if model.is_folder else [model.path]
            return Part({}, {name: tensor for path in paths for name, tensor in read_tensors(path).items()})

        part, _ = self._load(chosen, load)
        return loras.Lora(chosen.model.name, weight, part.state)

    def _put_on_device(self, parts: Parts) -> None:
        """What was there goes first, for two may not fit; it comes back if the new parts do not belong together."""
        before, pipeline, self.pipeline = self._parts, self.pipeline, None
        reuse = pipeline if before is not None and same_build(before, parts) else None
        del pipeline
        try:
            self.pipeline = self._assemble(parts, reuse)
        except Exception as error:
            if before is None:
                raise
            del reuse
            try:
                self.pipeline = self._assemble(before, None)
            except Exception as second:
                raise EngineError("CUDA_ERROR", f"the models before cannot be put back: {second}") from error
            raise

    def _assemble(self, parts: Parts, reuse: Any) -> Any:
        gc.collect()
        if self._settings.device == "cuda":
            torch.cuda.empty_cache()
        pipeline = assemble(*parts, self.dtype, self._settings.device, reuse)
        if self._settings.compile and reuse is None and _has_compiler():
            torch._dynamo.config.cache_size_limit = COMPILED_SHAPES
            pipeline.unet.compile(dynamic=False)
        return pipeline


def _controls(request: VideoRequest) -> list[str]:
    names = [control.model for control in request.controlnets]
    return names + ([request.sparse_control.model] if request.sparse_control else [])


def _undo(applied: loras.Applied) -> None:
    """Weights that cannot be put right must serve nobody: the process ends, and its successor reads them anew."""
    try:
        applied.undo()
    except Exception as error:
        raise EngineError("CUDA_ERROR", f"the LoRAs cannot be taken out again: {error}") from error


def _has_compiler() -> bool:
    found = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if not found:
        log.warning("APPLIANCE_COMPILE is set, but there is no C compiler here: models run uncompiled")
    return found


def way_of_computing(settings: EngineSettings) -> str:
    """What decides, beside code and models, which bits come out."""
    return " ".join([settings.device, dtype_name(settings), *(["compiled"] if settings.compile else [])])


def dtype_name(settings: EngineSettings) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "fp16" if settings.device == "cuda" else "fp32"
