"""Extra networks in prompts: `<lora:name:weight>`."""

from __future__ import annotations

import re

TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)


class TagError(ValueError):
    """Says which tag is wrong, and how."""


def take_loras(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its tags, and (name, weight) in their order; weight 1 where none is said. Raises TagError."""
    found: list[tuple[str, float]] = []
    for match in TAG.finditer(prompt):
        kind, arguments = match[1].lower(), match[2].split(":")
        if kind == "hypernet":
            raise TagError(f"{match[0]}: hypernetworks are not supported")
        if not arguments[0].strip():
            raise TagError(f"{match[0]}: there is no name")
        found.append((arguments[0].strip(), _weight(match[0], arguments[1:])))
    return TAG.sub("", prompt), found


def _weight(tag: str, arguments: list[str]) -> float:
    """Upstream has one weight for the text encoder, then one for the UNet; here they must be one."""
    texts = [text.partition("=")[2] if text.startswith(("te=", "unet=")) else text for text in arguments]
    try:
        weights = [float(text) for text in texts]
    except ValueError as error:
        raise TagError(f"{tag}: its weight is not a number") from error
    if len(set(weights)) > 1:
        raise TagError(f"{tag}: two different weights are not supported")
    if weights and not -4 <= weights[0] <= 4:
        raise TagError(f"{tag}: its weight is not from -4 to 4")
    return weights[0] if weights else 1.0
