"""Bodies of txt2img and img2img to job requests, everything checked before an engine is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdapi import animatediff, controlnet
from sdapi.echo import echo
from sdapi.errors import Problem, http_error, invalid_body, script_not_found
from sdapi.offer import Offer, find, some
from sdapi.options import Chosen, change
from sdapi.prompts import TagError, hold_ends, take_loras
from sdapi.reader import PROMPT_LIMIT, Reader, is_nested_too_deeply
from sdapi.samplers import choose_sampler

Kind = Literal["txt2img", "img2img"]

SEEDS = 2**32  # upstream draws from so many
SEED_LIMIT = 2**63
JOBS_LIMIT = 32
LORAS_LIMIT = 8
IMAGE_LIMIT = 15 << 20
SCRIPTS = (animatediff.SCRIPT, controlnet.SCRIPT)
PICTURES = ("init_image", "last_frame", "controlnets")
# What would change the picture, and cannot be done here: refused when it asks for something.
UNSUPPORTED = (
    *("enable_hr", "restore_faces", "tiling", "mask", "latent_mask", "refiner_checkpoint", "firstpass_image"),
    "infotext",
)
NEUTRAL = {"subseed_strength": 0.0, "s_churn": 0.0, "s_noise": 1.0, "initial_noise_multiplier": 1.0}
ANY_NUMBER = (-1e9, 1e9)
SIDE_LIMIT = 1 << 20


@dataclass(frozen=True)
class Generation:
    """One call: its `jobs` are job requests, in the order of their results. `videos` is empty for still images."""

    kind: Kind
    jobs: tuple[Mapping[str, Any], ...]
    echo: Mapping[str, Any]
    prompt: str
    animated: bool
    videos: tuple[str, ...]
    frames: bool
    chosen: Chosen
    sampler_name: str
    task_id: str | None
    request_id: str
    send_images: bool
    default_model: str = ""
    default_module: str = ""

    @property
    def seeds(self) -> list[int]:
        return [job["seed"] for job in self.jobs]

    @property
    def steps(self) -> int:
        """Of each job, as far as the request alone tells."""
        return int(self.jobs[0]["steps"])

    def without_pictures(self) -> Generation:
        """All that an answer is made of, for a call that waits for long: its jobs have their pictures already."""
        kept = [{name: value for name, value in job.items() if name not in PICTURES} for job in self.jobs]
        return replace(self, jobs=tuple(kept))


def read(kind: Kind, body: object, offer: Offer, chosen: Chosen, seed: int) -> Generation:
    """`chosen`: what the caller's options say; `seed`: the one for a request that leaves it open.

    Raises ApiError with everything that is wrong."""
    if not isinstance(body, Mapping):
        raise invalid_body([Problem((), "value is not a valid dict", "type_error.dict")])
    if is_nested_too_deeply(body):
        raise invalid_body([Problem((), "is nested too deeply")])
    problems: list[Problem] = []
    reader = Reader(body, problems)
    scripts = _scripts(reader)
    overrides = body.get("override_settings")
    chosen = change(chosen, overrides, offer, "override_settings") if overrides else chosen
    animated = animatediff.read_script(scripts, offer, problems)
    fields = _plain_fields(reader) | _models(chosen) | (dict(animated.fields) if animated else {})
    if animated is None:
        fields |= {"frames": 1, "format": ["frames"]}
    fields |= _texts(reader, offer)
    if animated and animated.holds_prompt:
        fields["prompt"] = _held(reader, fields["prompt"], animated.fields["frames"])
    name = reader.text("sampler_name", "", 64) or reader.text("sampler_index", "", 64)
    sampler, scheduler = choose_sampler(name, reader.text("scheduler", "", 64), offer)
    fields |= {key: value for key, value in (("sampler", sampler), ("scheduler", scheduler)) if value is not None}
    if units := controlnet.read_units(scripts, offer, problems):
        fields["controlnets"] = units
    fields |= _pictures(kind, reader, scripts, animated is not None)
    seeds = _seeds(reader, seed, animated is not None)
    task_id = reader.text("force_task_id", "", 200)
    send_images = reader.flag("send_images", True)
    if problems:
        raise invalid_body(problems)
    return Generation(
        kind=kind,
        jobs=tuple({**fields, "seed": one} for one in seeds),
        echo=echo(kind, body),
        prompt=reader.text("prompt"),
        animated=animated is not None,
        videos=animated.videos if animated else (),
        frames=animated.frames if animated else True,
        chosen=chosen,
        sampler_name=sampler or name or "",
        task_id=task_id or None,
        request_id=animated.request_id if animated else "",
        send_images=send_images,
        default_model=(offer.models or ("",))[0],
        default_module=(offer.motion_modules or ("",))[0],
    )


def _scripts(reader: Reader) -> Mapping[str, Any]:
    """Raises ApiError for one that is not installed here, even when it is switched off: upstream does so too."""
    asked = reader.text("script_name", "", 200)
    if asked and asked.lower() != "none":
        raise script_not_found(asked)
    scripts = reader.object("alwayson_scripts")
    for name in scripts:
        if not isinstance(name, str) or name.lower() not in SCRIPTS:
            raise script_not_found(str(name))
    return scripts


def _plain_fields(reader: Reader) -> dict[str, Any]:
    for name in UNSUPPORTED:
        if reader.raw(name) not in (None, False, "", 0, "None"):
            reader.refuse(name, "is not supported here")
    for name, without_effect in NEUTRAL.items():
        if reader.number(name, without_effect, *ANY_NUMBER) != without_effect:
            reader.refuse(name, "is not supported here")
    for name in ("seed_resize_from_h", "seed_resize_from_w"):
        if reader.whole(name, 0, -1, SIDE_LIMIT) > 0:
            reader.refuse(name, "is not supported here")
    return {
        "width": reader.whole("width", 512, 64, 1024, 8),
        "height": reader.whole("height", 512, 64, 1024, 8),
        "steps": reader.whole("steps", 50, 1, 150),
        "cfg_scale": reader.number("cfg_scale", 7.0, 0, 30),
    }


def _models(chosen: Chosen) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": chosen.model, "vae": chosen.vae}
    fields = {name: value for name, value in fields.items() if value is not None}
    return fields | ({"clip_skip": chosen.clip_skip} if chosen.clip_skip != 1 else {})


def _held(reader: Reader, prompt: str, frames: int) -> str:
    held = hold_ends(prompt, frames)
    if len(held) > PROMPT_LIMIT >= len(prompt):
        reader.refuse(
            "prompt",
            f"is {len(held) - PROMPT_LIMIT} characters too long with its first and last text repeated for frames 0 and "
            f"{frames - 1}, which closed_loop R-P asks for; shorten it, or choose another closed_loop",
        )
    return held


def _texts(reader: Reader, offer: Offer) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": "", "negative_prompt": reader.text("negative_prompt")}
    try:
        fields["prompt"], tags = take_loras(reader.text("prompt"))
    except TagError as error:
        reader.refuse("prompt", str(error))
        return fields
    # Nothing but tags, or nothing at all: upstream generates from it, a job's prompt must not be empty.
    fields["prompt"] = fields["prompt"] or " "
    if reader.flag("disable_extra_networks"):
        tags = []
    if len(tags) > LORAS_LIMIT:
        reader.refuse("prompt", f"names {len(tags)} LoRAs; at most {LORAS_LIMIT} can be loaded")
        return fields
    loras = []
    for name, weight in tags:
        found = find(name, offer.loras)
        if found is None:
            reader.refuse("prompt", f"LoRA {name!r} not found; there are: {some(offer.loras or ())}")
        else:
            loras.append({"name": found, "weight": weight})
    return fields | ({"loras": loras} if loras else {})


def _pictures(kind: Kind, reader: Reader, scripts: Mapping[str, Any], animated: bool) -> dict[str, Any]:
    latent = animatediff.latent_fields(scripts, reader.problems) if animated else {}
    if kind == "txt2img":
        if "last_frame" in latent:
            reader.refuse("alwayson_scripts", "last_frame needs img2img")
        return {}
    images = reader.list("init_images")
    if not images:
        raise http_error(404, "Init image not found")
    if len(images) > 1:
        reader.refuse("init_images", "only one picture can be started from")
    if not isinstance(images[0], str) or not 0 < len(images[0]) <= IMAGE_LIMIT:
        reader.refuse("init_images", f"is not a text of at most {IMAGE_LIMIT} characters")
    if reader.whole("resize_mode", 0, 0, 3) != 0:
        reader.refuse("resize_mode", "only 0, just resize, is supported")
    strength = reader.number("denoising_strength", 0.75, 0, 1)
    return latent | {"init_image": images[0], "denoising_strength": strength}


def _seeds(reader: Reader, drawn: int, animated: bool) -> list[int]:
    """One for each job. With AnimateDiff the batch is the clip's length, whatever the request says."""
    rounds = reader.whole("n_iter", 1, 1, JOBS_LIMIT)
    batch = 1 if animated else reader.whole("batch_size", 1, 1, JOBS_LIMIT)
    if rounds * batch > JOBS_LIMIT:
        reader.refuse("n_iter", f"{rounds} x {batch} results; at most {JOBS_LIMIT} can be made at once")
    first = reader.whole("seed", -1, -1, SEED_LIMIT - 1 - rounds * batch)
    first = drawn % SEEDS if first == -1 else first
    return [first + number for number in range(rounds * batch)]
