"""The agent's order in the words of A1111's API and the AnimateDiff extension's arguments. Pure.

What A1111 would drop without a word (an unknown checkpoint in override_settings, an unknown LoRA in the prompt) or
cannot do at all is refused here: a job must never come back as another video than the one that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from appliance.job import JobRequest
from appliance.job_fields import frames_named, model_stem

FORMATS = {"mp4": "MP4", "gif": "GIF", "webp": "WEBP", "webm": "WEBM", "frames": "Frame"}
"""In the order in which the extension answers them."""
MODULE_ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt")
TASK_PREFIX = "animatediff-ha"
_CANNOT = {
    "init_video": "a video to start from (it takes paths on its own disk only)",
    "controlnets": "ControlNet",
    "sparse_control": "SparseCtrl",
}


class InvalidOrderError(Exception):
    """The job asks for what this engine cannot do; the message is for its owner."""


@dataclass(frozen=True)
class Known:
    """What the A1111 has, by the names that its API takes. Empty: it did not say."""

    checkpoints: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    vaes: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """One POST. `formats`: what its answer holds, in that order; `rounds`: how often all steps are made (FreeInit)."""

    path: str
    body: bytes
    steps: int
    rounds: int
    formats: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    job: str
    fence: int
    request: JobRequest
    context_batch_size: int | None

    @classmethod
    def parse(cls, body: bytes) -> Order:
        try:
            raw = json.loads(body)
            memory = raw.get("memory") or {}
            return cls(
                raw["job"], raw["fence"], JobRequest.model_validate(raw["request"]), memory.get("context_batch_size")
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise InvalidOrderError(f"{where}: {first['msg']}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidOrderError(f"the order cannot be read: {error!r}") from None


def make_call(order: Order, known: Known, motion_module: str) -> Call:
    """Raises InvalidOrderError. `motion_module` is what is taken when the job names none."""
    request = order.request
    _refuse(request, known)
    formats = tuple(name for name in FORMATS if name in {item.value for item in request.format})
    body: dict[str, Any] = {
        "prompt": _with_loras(request, known),
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "cfg_scale": request.cfg_scale,
        "seed": request.seed,
        "batch_size": 1,
        "n_iter": 1,
        "send_images": True,
        "save_images": False,
        "do_not_save_grid": True,
        "do_not_save_samples": True,
        "override_settings": _settings(request, known),
        "override_settings_restore_afterwards": True,
        "force_task_id": f"task({TASK_PREFIX}-{order.job}-{order.fence})",
        "alwayson_scripts": {"AnimateDiff": {"args": [_arguments(order, motion_module, formats)]}},
    }
    if request.sampler is not None:
        body["sampler_name"] = _known_name("sampler", request.sampler, known.samplers)
    if request.scheduler is not None:
        body["scheduler"] = _known_name("scheduler", request.scheduler, known.schedulers)
    path = "/sdapi/v1/txt2img"
    if request.init_image is not None:
        path = "/sdapi/v1/img2img"
        body |= {"init_images": [request.init_image], "denoising_strength": request.denoising_strength}
    rounds = request.free_init.iterations if request.free_init else 1
    return Call(path, json.dumps(body).encode(), request.steps, rounds, formats)


def trial_call(motion_module: str) -> Call:
    """The smallest video: what loads every part, and shows that the extension takes part at all."""
    smallest = {"prompt": "a ball", "width": 64, "height": 64, "frames": 2, "steps": 1, "seed": 1, "format": ["gif"]}
    request = JobRequest.model_validate(smallest)
    return make_call(Order("trial", 0, request, None), Known(), motion_module)


def _refuse(request: JobRequest, known: Known) -> None:
    for field, what in _CANNOT.items():
        if getattr(request, field):
            raise InvalidOrderError(f"{field}: this worker's engine is an A1111, which is not given {what}")
    late = [number for number in frames_named(request.prompt) if number >= request.frames]
    if late:
        raise InvalidOrderError(f"prompt: it travels to frame {late[0]}, and there are only {request.frames}")


def _settings(request: JobRequest, known: Known) -> dict[str, Any]:
    settings: dict[str, Any] = {"CLIP_stop_at_last_layers": request.clip_skip}
    if request.model is not None:
        settings["sd_model_checkpoint"] = _known_name("model", request.model, known.checkpoints)
    if request.vae is not None:
        settings["sd_vae"] = _known_name("vae", request.vae, known.vaes)
    return settings


def _arguments(order: Order, motion_module: str, formats: Collection[str]) -> dict[str, Any]:
    request = order.request
    module = request.motion_module or motion_module
    context = order.context_batch_size or request.context_batch_size or 16
    arguments: dict[str, Any] = {
        "model": module if module.lower().endswith(MODULE_ENDINGS) else f"{module}.safetensors",
        "enable": True,
        "video_length": request.frames,
        "fps": request.fps,
        "loop_number": request.loop_number,
        "closed_loop": "A" if request.closed_loop else "N",
        "batch_size": min(context, request.frames),
        "stride": request.context_stride or 1,
        "overlap": -1 if request.context_overlap is None else request.context_overlap,
        "format": [FORMATS[name] for name in formats],
        "interp": "Off",
        "latent_power": request.latent_power,
        "latent_scale": request.latent_scale,
        "latent_power_last": request.latent_power_last,
        "latent_scale_last": request.latent_scale_last,
        "freeinit_enable": request.free_init is not None,
    }
    if request.last_frame is not None:
        arguments["last_frame"] = request.last_frame
    if request.free_init is not None:
        free = request.free_init
        arguments |= {
            "freeinit_filter": free.filter.value,
            "freeinit_ds": free.spatial_stop_frequency,
            "freeinit_dt": free.temporal_stop_frequency,
            "freeinit_iters": free.iterations,
        }
    return arguments


def _with_loras(request: JobRequest, known: Known) -> str:
    """A1111 takes LoRAs out of the prompt. Behind the lines of a travelling prompt they are its tail."""
    tags = [f"<lora:{_known_name('loras', lora.name, known.loras)}:{lora.weight:g}>" for lora in request.loras]
    if not tags:
        return request.prompt
    return request.prompt + ("\n" if frames_named(request.prompt) else " ") + " ".join(tags)


def _known_name(field: str, wanted: str, known: tuple[str, ...]) -> str:
    """The A1111's own spelling of `wanted`; names of files are compared without their ending."""
    if not known:
        return wanted
    spellings: Mapping[str, str] = {model_stem(name).lower(): name for name in reversed(known)}
    found = spellings.get(model_stem(wanted).lower())
    # "DPM++ 2M Karras" is split into sampler and scheduler by A1111 itself.
    if found is None and field == "sampler" and any(wanted.lower().startswith(f"{name.lower()} ") for name in known):
        return wanted
    if found is None:
        raise InvalidOrderError(f"{field}: {wanted!r} is not known to this worker's A1111")
    return found
