"""Results to the answers of txt2img and img2img: `images`, `parameters`, `info`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdapi import VERSION
from sdapi.generation import Generation

# In the order in which one result's videos are told.
VIDEO_TYPES = {"gif": "image/gif", "mp4": "video/mp4", "webp": "image/webp", "webm": "video/webm"}
FRAME_TYPE = "image/png"


@dataclass(frozen=True)
class ResultFile:
    name: str
    media_type: str
    size_bytes: int


def choose_files(generation: Generation, files: Sequence[Sequence[ResultFile]]) -> list[tuple[int, int]]:
    """Which files go into `images`, as (job, index among its files): each job's videos, then all the frames."""
    wanted = [VIDEO_TYPES[kind] for kind in VIDEO_TYPES if kind in generation.videos]
    videos = [
        (job, index)
        for job, listed in enumerate(files)
        for media_type in wanted
        for index, file in enumerate(listed)
        if file.media_type == media_type
    ]
    if not generation.frames:
        return videos
    frames = [(job, index) for job, listed in enumerate(files) for index, file in enumerate(listed) if _is_frame(file)]
    return videos + frames


def _is_frame(file: ResultFile) -> bool:
    return file.media_type == FRAME_TYPE


Parameters = Mapping[str, Any]


def build(generation: Generation, images: Sequence[bytes], made: Sequence[Parameters], at: str) -> dict[str, Any]:
    """`made`: what each job was really made with; `at`: when it began, as YYYYmmddHHMMSS."""
    encoded = [base64.b64encode(image).decode("ascii") for image in images] if generation.send_images else []
    return {"images": encoded, "parameters": dict(generation.echo), "info": json.dumps(info(generation, made, at))}


def around_images(generation: Generation, made: Sequence[Parameters], at: str) -> tuple[bytes, bytes]:
    """The answer's text before and after its images, for one too large to be put together in memory; between them
    belong the images in base64, each in quotes, separated by commas."""
    rest = {"parameters": dict(generation.echo), "info": json.dumps(info(generation, made, at))}
    return b'{"images":[', b"]," + json.dumps(rest).encode("ascii")[1:]


def encoded_size(sizes: Sequence[int]) -> int:
    """Bytes of the images between the two, of files of these sizes."""
    return sum((size + 2) // 3 * 4 + 2 for size in sizes) + max(0, len(sizes) - 1)


def info(generation: Generation, made: Sequence[Parameters], at: str) -> dict[str, Any]:
    job, count = generation.jobs[0], len(generation.jobs)
    model = _said(made, "checkpoint") or _said(made, "model") or job.get("model") or generation.default_model
    texts = [infotext(generation, job, model) for job in generation.jobs]
    negative = str(generation.echo.get("negative_prompt") or "")
    return {
        "prompt": generation.prompt,
        "all_prompts": [generation.prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": generation.seeds[0],
        "all_seeds": generation.seeds,
        "subseed": generation.seeds[0],
        "all_subseeds": generation.seeds,
        "subseed_strength": 0,
        "width": job["width"],
        "height": job["height"],
        "sampler_name": generation.sampler_name or _said(made, "sampler") or "",
        "cfg_scale": job["cfg_scale"],
        "steps": job["steps"],
        "batch_size": job["frames"] if generation.animated else int(generation.echo.get("batch_size") or 1),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": "",
        "sd_vae_name": job.get("vae"),
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": job.get("denoising_strength"),
        "extra_generation_params": extra_params(generation, made),
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": generation.echo.get("styles") or [],
        "job_timestamp": at,
        "clip_skip": job.get("clip_skip", 1),
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    }


def _said(made: Sequence[Parameters], name: str) -> str:
    return next((str(parameters[name]) for parameters in made if parameters.get(name)), "")


def extra_params(generation: Generation, made: Sequence[Parameters]) -> dict[str, Any]:
    job = generation.jobs[0]
    params: dict[str, Any] = {"Schedule type": str(job.get("scheduler") or "automatic").capitalize()}
    if generation.animated:
        module = _said(made, "motion_module") or job.get("motion_module") or generation.default_module
        told = {"enable": True, "model": module, "video_length": job["frames"], "fps": job["fps"]}
        told |= {"loop_number": job["loop_number"], "format": "+".join(name.upper() for name in job["format"])}
        told |= {"request_id": generation.request_id} if generation.request_id else {}
        params["AnimateDiff"] = ", ".join(f"{name}: {value}" for name, value in told.items())
    return params


def infotext(generation: Generation, job: Mapping[str, Any], model: str) -> str:
    """As upstream writes it into its files: the prompt, the negative prompt, then everything else in one line."""
    told: dict[str, Any] = {"Steps": job["steps"], "Sampler": generation.sampler_name}
    told |= {
        "Schedule type": str(job.get("scheduler") or "automatic").capitalize(),
        "CFG scale": f"{job['cfg_scale']:g}",
    }
    told |= {"Seed": job["seed"], "Size": f"{job['width']}x{job['height']}", "Model": model}
    told |= {"Denoising strength": f"{job['denoising_strength']:g}"} if "denoising_strength" in job else {}
    told |= {"Clip skip": job["clip_skip"]} if "clip_skip" in job else {}
    told |= {"Version": VERSION}
    negative = generation.echo.get("negative_prompt")
    lines = [generation.prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in told.items() if value != "")])
