"""What each field of a request may hold. Problems are told by the field's name, all of them at once. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from webui import media
from webui.checks import (
    UNKNOWN_TOLD,
    Check,
    Problems,
    list_of,
    name,
    name_or_null,
    number,
    object_of,
    one_of,
    or_null,
    problems_of,
    text,
    true_or_false,
    whole,
)
from webui.prompt import travel_problem

PRIORITIES = ("high", "normal", "low")
FORMATS = ("mp4", "gif", "webp", "webm", "frames")  # in the order of a result's files
FILTERS = ("butterworth", "gaussian", "ideal")
METADATA_BYTES = 4096
FRAMES = 16  # unless a request says otherwise
FRAMES_LIMIT = 128


def _picture(value: Any) -> str | None:
    """By its header; `_damaged_media` looks further when nothing else is wrong."""
    if problem := _media_text(value):
        return problem
    try:
        media.image_size(value)
    except media.MediaError as error:
        return str(error)
    return None


def _clip(value: Any) -> str | None:
    return _media_text(value)


def _media_text(value: Any) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= media.TEXT_LIMIT:
        return None
    return f"must be base64 text of 1 to {media.TEXT_LIMIT} characters"


def _controlnet(value: Any) -> str | Problems | None:
    if problems := CONTROLNET(value):
        return problems
    if (value.get("image") is None) == (value.get("images") is None):
        return "needs image or images, and not both"
    if value.get("start", 0) > value.get("end", 1):
        return [(".start", "must not be after end")]
    return None


def _format(value: Any) -> str | None:
    if not isinstance(value, list) or not 0 < len(value) <= len(FORMATS) or any(item not in FORMATS for item in value):
        return f"must be a list of {', '.join(FORMATS)}"
    return None


def _metadata(value: Any) -> str | None:
    if not isinstance(value, dict | None):
        return "must be an object"
    return None if len(json.dumps(value)) <= METADATA_BYTES else f"must not exceed {METADATA_BYTES} bytes"


LORA = object_of({"name": name(200), "weight": number(-4, 4)}, needed=("name",))
FREE_INIT = object_of(
    {
        "iterations": whole(1, 5),
        "filter": one_of(FILTERS),
        "spatial_stop_frequency": number(0, 1),
        "temporal_stop_frequency": number(0, 1),
    }
)
CONTROLNET = object_of(
    {
        "model": name(200),
        "image": or_null(_picture),
        "images": or_null(list_of(_picture, 1, FRAMES_LIMIT)),
        "weight": number(0, 2),
        "start": number(0, 1),
        "end": number(0, 1),
    },
    needed=("model",),
)
KEY_IMAGE = object_of({"frame": whole(0, FRAMES_LIMIT - 1), "image": _picture}, needed=("frame", "image"))
SPARSE_CONTROL = object_of(
    {"model": name(200), "images": list_of(KEY_IMAGE, 1, FRAMES_LIMIT), "weight": number(0, 2)},
    needed=("model", "images"),
)

CHECKS: dict[str, Check] = {
    "prompt": text(4000),
    "negative_prompt": text(4000),
    "width": whole(64, 1024, 8),
    "height": whole(64, 1024, 8),
    "frames": whole(1, FRAMES_LIMIT),
    "fps": whole(1, 60),
    "steps": whole(1, 150),
    "cfg_scale": number(0, 30),
    "seed": whole(-1, 2**63 - 1),
    "sampler": name_or_null(64),
    "scheduler": name_or_null(64),
    "model": name_or_null(200),
    "motion_module": name_or_null(200),
    "vae": name_or_null(200),
    "clip_skip": whole(1, 4),
    "loras": or_null(list_of(LORA, 0, 8)),
    "init_image": or_null(_picture),
    "last_frame": or_null(_picture),
    "init_video": or_null(_clip),
    "denoising_strength": number(0, 1),
    "latent_power": number(0.1, 10),
    "latent_scale": number(1, 128),
    "latent_power_last": number(0.1, 10),
    "latent_scale_last": number(1, 128),
    "free_init": or_null(FREE_INIT),
    "controlnets": list_of(_controlnet, 0, 2),
    "sparse_control": or_null(SPARSE_CONTROL),
    "format": _format,
    "loop_number": whole(0, 65535),
    "priority": one_of(PRIORITIES),
    "deadline_seconds": or_null(number(0, 10**9)),
    "context_batch_size": or_null(whole(1, FRAMES_LIMIT)),
    "context_overlap": or_null(whole(-1, FRAMES_LIMIT - 1)),
    "context_stride": or_null(whole(1, 8)),
    "closed_loop": or_null(true_or_false),
    "metadata": _metadata,
}

MEMORY_CHECKS: dict[str, Check] = {
    "context_batch_size": or_null(whole(1, FRAMES_LIMIT)),
    "vae_tiling": true_or_false,
    "cpu_offload": true_or_false,
}


def memory_problems(memory: Mapping[str, Any]) -> Problems:
    return sorted(_field_problems(memory, MEMORY_CHECKS))


def request_problems(request: Mapping[str, Any]) -> Problems:
    """May take seconds where there are pictures or clips: these are decoded once everything else is right."""
    problems = _field_problems(request, CHECKS)
    if "prompt" not in request:
        problems.append(("prompt", "is missing"))
    if not problems:
        problems = _contradictions(request) or _media_problems(request)
    return sorted(problems)


def _field_problems(value: Mapping[str, Any], checks: Mapping[str, Check]) -> Problems:
    unknown = sorted(value.keys() - checks.keys(), key=str)[:UNKNOWN_TOLD]
    problems = [(str(field), "is not a known field") for field in unknown]
    for field in checks.keys() & value.keys():
        problems += problems_of(field, value[field], checks[field])
    return problems


def _contradictions(request: Mapping[str, Any]) -> Problems:
    """Between fields that are each right by themselves."""
    frames = request.get("frames", FRAMES)
    problems: Problems = []
    if problem := travel_problem(request["prompt"], frames):
        problems.append(("prompt", problem))
    if request.get("init_video"):
        problems += [
            (field, "cannot be given together with init_video")
            for field in ("init_image", "last_frame")
            if request.get(field)
        ]
    for at, control in enumerate(request.get("controlnets") or ()):
        if len(control.get("images") or ()) > frames:
            problems.append((f"controlnets[{at}].images", f"are more than the {frames} frames"))
    keys = [item["frame"] for item in (request.get("sparse_control") or {}).get("images", ())]
    for at, key in enumerate(keys):
        if key >= frames:
            problems.append((f"sparse_control.images[{at}].frame", f"there are only {frames}, numbered from 0"))
        elif key in keys[:at]:
            problems.append((f"sparse_control.images[{at}].frame", "is there twice"))
    return problems


def _media_problems(request: Mapping[str, Any]) -> Problems:
    pictures = list(_pictures(request))
    if sum(math.prod(media.image_size(value)) for _, value in pictures) > media.PIXELS_LIMIT:
        return [
            (pictures[-1][0], f"all pictures together must not have more than {media.PIXELS_LIMIT >> 20} Mi pixels")
        ]
    problems: Problems = []
    for field, value in pictures:
        try:
            media.read_image(value)
        except media.MediaError as error:
            problems.append((field, str(error)))
    if clip := request.get("init_video"):
        try:
            media.probe_video(clip)
        except media.MediaError as error:
            problems.append(("init_video", str(error)))
    return problems


def _pictures(request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in ("init_image", "last_frame"):
        if value := request.get(field):
            yield field, value
    for at, control in enumerate(request.get("controlnets") or ()):
        if control.get("image"):
            yield f"controlnets[{at}].image", control["image"]
        for number_, value in enumerate(control.get("images") or ()):
            yield f"controlnets[{at}].images[{number_}]", value
    for at, item in enumerate((request.get("sparse_control") or {}).get("images", ())):
        yield f"sparse_control.images[{at}].image", item["image"]
