"""What made a clip, as text inside its files: JSON, and the lines that tools for AUTOMATIC1111 read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A picture that the clip was made from may be 15 MiB of text; prompts have at most 4000 characters.
LONGEST_TEXT = 8000
NOTE_BYTES = 48 << 10
# How the files were asked for: it says nothing about the picture.
CONTAINER_FIELDS = ("format", "loop_number")

LABELS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "motion_module": "Motion module",
    "vae": "VAE",
    "clip_skip": "Clip skip",
    "denoising_strength": "Denoising strength",
    "frames": "Frames",
    "fps": "FPS",
    "fingerprint": "Fingerprint",
}


@dataclass(frozen=True)
class Note:
    """`json` holds every parameter, `lines` the prompt and what is commonly told about it."""

    json: str
    lines: str


def make_note(parameters: Mapping[str, Any]) -> Note:
    kept = without_pictures(parameters)
    for name in CONTAINER_FIELDS:
        kept.pop(name, None)
    text = json.dumps(kept, ensure_ascii=False)
    for _ in range(len(kept)):
        if len(text.encode()) <= NOTE_BYTES:
            break
        longest = max(kept, key=lambda name: len(json.dumps(kept[name])))
        kept[longest] = _left_out(json.dumps(kept[longest]))
        text = json.dumps(kept, ensure_ascii=False)
    return Note(text, _lines(kept))


def without_pictures(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same with every text that is too long for words replaced by its length."""
    return {name: _shortened(value) for name, value in parameters.items()}


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return _left_out(value)
    if isinstance(value, Mapping):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(item) for item in value]
    return value


def _left_out(text: str) -> str:
    return f"({len(text)} characters left out)"


def _lines(parameters: Mapping[str, Any]) -> str:
    """Prompt, negative prompt and one line of `Label: value` pairs, as AUTOMATIC1111 shows them below a picture."""
    told = dict(parameters)
    if "width" in told and "height" in told:
        told["size"] = f"{told['width']}x{told['height']}"
    pairs = ", ".join(f"{label}: {_value(told[name])}" for name, label in LABELS.items() if told.get(name) is not None)
    negative = told.get("negative_prompt")
    lines = [str(told.get("prompt") or ""), f"Negative prompt: {negative}" if negative else "", pairs]
    return "\n".join(line for line in lines if line).replace("\0", "")


def _value(value: Any) -> str:
    """Quoted where it would be taken for several pairs."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
