"""What of a job's parameters is compared: numbers, of which ranges are looked at, and names. Pure.

The parameters are a client's words, so whatever is odd counts as not set, and numbers keep three digits: nobody's
thousand different values make a thousand different ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

NUMBERS: Final = (
    *("context_batch_size", "frames", "width", "height", "steps", "cfg_scale", "fps", "denoising_strength"),
    *("clip_skip", "context_overlap", "free_init", "pixel_frames"),
)
"""In the order in which equally good explanations are preferred."""
NAMES: Final = (
    *("model", "motion_module", "vae", "loras", "controlnets", "sparse_control", "sampler", "scheduler", "format"),
    *("pictures", "closed_loop", "worker", "host"),
)
ASKED_NAMES: Final = NAMES[:-2]
"""Those that the client chooses; the worker and its host are not among them."""
PREFERENCE: Final = {name: rank for rank, name in enumerate((*NUMBERS, *NAMES))}
NAME_CHARS: Final = 100
MOST_NAMES: Final = 8


@dataclass(frozen=True)
class Features:
    """`numbers` in the order of NUMBERS, None for what is not set; `names` in that of ASKED_NAMES."""

    numbers: tuple[float | None, ...]
    names: tuple[tuple[str, ...], ...]


def features_of(parameters: Mapping[str, Any], context: int | None) -> Features:
    """`context` is the limit of the frames looked at together that the attempt ran with, if it had one."""
    get = parameters.get
    numbers = {name: _number(get(name)) for name in NUMBERS}
    numbers["context_batch_size"] = _together(numbers["frames"], numbers["context_batch_size"], context)
    width, height, frames = numbers["width"], numbers["height"], numbers["frames"]
    if width and height and frames:
        numbers["pixel_frames"] = _short(width * height * frames)
    return Features(tuple(numbers.values()), tuple([_names(get(name)) for name in ASKED_NAMES]))


def _together(frames: float | None, asked: float | None, limit: int | None) -> float | None:
    """Without a context of its own a request is denoised all frames together."""
    known = [value for value in (frames, asked, limit) if value]
    return min(known) if known else None


def _number(value: object) -> float | None:
    if type(value) is int and -4096 <= value <= 4096:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        return None
    return _short(value)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _names(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if value is True:
        return ("true",)
    items = value if isinstance(value, list) else [value]
    return tuple(item[:NAME_CHARS] for item in items[:MOST_NAMES] if isinstance(item, str) and item)
