"""The AnimateDiff extension's arguments: an object, the old row of values, or `[false]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdapi.errors import PROBLEMS_TOLD, Problem
from sdapi.offer import UPSTREAM_MODULE, Offer, find, some, stem
from sdapi.reader import Reader

SCRIPT = "animatediff"
# The order of the first releases, whose callers still send a row: [true, 0, 24, 6, "mm_sd_v15.ckpt"].
ROW = ("enable", "loop_number", "video_length", "fps", "model")
VIDEOS = {"GIF": "gif", "MP4": "mp4", "WEBP": "webp", "WEBM": "webm"}
OTHERS = ("PNG", "TXT", "FRAME")
LOOPS = ("N", "R-P", "R+P", "A")
LOOP = "R-P"
FILTERS = ("butterworth", "gaussian", "ideal")
SERVER_PATHS = ("video_source", "video_path", "mask_path")
FIELDS = (
    *("model", "enable", "video_length", "fps", "loop_number", "closed_loop", "batch_size", "stride", "overlap"),
    *("format", "interp", "interp_x", *SERVER_PATHS, "freeinit_enable", "freeinit_filter", "freeinit_ds"),
    *("freeinit_dt", "freeinit_iters", "latent_power", "latent_scale", "last_frame", "latent_power_last"),
    *("latent_scale_last", "request_id"),
)
MAX_FRAMES = 128


@dataclass(frozen=True)
class AnimateDiff:
    """`fields` are those of a job request; `videos` are wanted in this order, and `frames` after them. `holds_prompt`:
    the loop is closed, but not for a prompt that travels."""

    fields: Mapping[str, Any]
    videos: tuple[str, ...]
    frames: bool
    request_id: str
    holds_prompt: bool = False


def read_script(scripts: Mapping[str, Any], offer: Offer, problems: list[Problem]) -> AnimateDiff | None:
    """None where it is not asked for, or not enabled."""
    for key, script in scripts.items():
        if key.lower() == SCRIPT:
            where = ("alwayson_scripts", key, "args")
            arguments = _as_object(script, where, problems)
            return None if arguments is None else _read(arguments, where, offer, problems)
    return None


def _as_object(script: object, where: tuple[str, ...], problems: list[Problem]) -> Mapping[str, Any] | None:
    arguments = script.get("args") if isinstance(script, Mapping) else script
    if arguments is None or arguments == []:
        return None
    if isinstance(arguments, Mapping):
        return arguments
    if isinstance(arguments, list):
        first = arguments[0]
        if isinstance(first, Mapping) and len(arguments) == 1:
            return first
        if first is False:
            return None
        if first is True and len(arguments) <= len(ROW):
            return dict(zip(ROW, arguments, strict=False))
    problems.append(Problem(where, "is neither [{…}], nor [false], nor [true, loop_number, video_length, fps, model]"))
    return None


def _read(
    arguments: Mapping[str, Any], where: tuple[str, ...], offer: Offer, problems: list[Problem]
) -> AnimateDiff | None:
    reader = Reader(arguments, problems, *where)
    if not reader.flag("enable"):
        return None
    for name in sorted(arguments.keys() - set(FIELDS), key=str)[:PROBLEMS_TOLD]:
        reader.refuse(str(name), "extra fields not permitted", "value_error.extra")
    for name in SERVER_PATHS:
        if arguments.get(name):
            reader.refuse(name, "files of the server cannot be read by clients; send pictures inside the request")
    if reader.text("interp", "Off", 20).lower() != "off":
        reader.refuse("interp", "frame interpolation is not supported; use Off")
    context = reader.whole("batch_size", 16, 1, 32)
    frames = reader.whole("video_length", 0, 0, MAX_FRAMES) or context
    fields: dict[str, Any] = {"frames": frames, "fps": reader.whole("fps", 8, 1, 60)}
    fields |= {"loop_number": reader.whole("loop_number", 0, 0, 65535)}
    fields |= _context(reader, frames, context) | _free_init(reader) | _module(reader, offer)
    videos, wants_frames = _formats(reader)
    fields["format"] = [*videos, *(["frames"] if wants_frames else [])]
    holds_prompt = "closed_loop" in fields and reader.text("closed_loop", LOOP, 8).upper() == LOOP
    return AnimateDiff(fields, videos, wants_frames, reader.text("request_id", "", 200), holds_prompt)


def latent_fields(scripts: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """How a picture fades out over the frames; img2img only."""
    key = next(key for key in scripts if key.lower() == SCRIPT)
    where = ("alwayson_scripts", key, "args")
    arguments = _as_object(scripts[key], where, [])
    reader = Reader(arguments or {}, problems, *where)
    fields: dict[str, Any] = {}
    for name, default, low, high in (("latent_power", 1.0, 0.1, 10), ("latent_scale", 32.0, 1, 128)):
        for full in (name, f"{name}_last"):
            fields[full] = reader.number(full, default, low, high)
    if last := reader.text("last_frame", "", 15 << 20):
        fields["last_frame"] = last
    return fields


def _context(reader: Reader, frames: int, context: int) -> dict[str, Any]:
    loop = reader.text("closed_loop", LOOP, 8).upper()
    if loop not in LOOPS:
        reader.refuse("closed_loop", f"must be one of {', '.join(LOOPS)}")
    fields = {
        "context_batch_size": context,
        "context_stride": reader.whole("stride", 1, 1, 8),
        "context_overlap": reader.whole("overlap", -1, -1, context - 1),
        "closed_loop": loop != "N",
    }
    # A clip that fits into one context has no windows to slide.
    return fields if frames > context else {}


def _free_init(reader: Reader) -> dict[str, Any]:
    kind = reader.text("freeinit_filter", "butterworth", 20).lower()
    if kind not in FILTERS:
        reader.refuse("freeinit_filter", f"must be one of {', '.join(FILTERS)}")
    free_init = {
        "iterations": reader.whole("freeinit_iters", 3, 1, 5),
        "filter": kind,
        "spatial_stop_frequency": reader.number("freeinit_ds", 0.25, 0, 1),
        "temporal_stop_frequency": reader.number("freeinit_dt", 0.25, 0, 1),
    }
    return {"free_init": free_init} if reader.flag("freeinit_enable") else {}


def _module(reader: Reader, offer: Offer) -> dict[str, Any]:
    name = reader.text("model", "", 200)
    if not name:
        return {}
    found = find(name, offer.motion_modules)
    if found is not None:
        return {"motion_module": found}
    # Clients fill in upstream's default for users who have chosen nothing; then the node's default is meant.
    if stem(name) != UPSTREAM_MODULE:
        reader.refuse("model", f"motion module {name!r} not found; there are: {some(offer.motion_modules or ())}")
    return {}


def _formats(reader: Reader) -> tuple[tuple[str, ...], bool]:
    """PNG and TXT are files for upstream's own disk; PNG alone gives the frames, as upstream does."""
    given = reader.raw("format", ["GIF", "PNG"])
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        reader.refuse("format", "value is not a valid list of texts", "type_error.list")
        return (), True
    asked = {item.upper() for item in given}
    if unknown := sorted(asked - set(VIDEOS) - set(OTHERS)):
        reader.refuse("format", f"{', '.join(unknown)}: must be of {', '.join((*VIDEOS, 'PNG', 'TXT', 'Frame'))}")
    videos = tuple(kind for name, kind in VIDEOS.items() if name in asked)
    return videos, "FRAME" in asked or not videos
