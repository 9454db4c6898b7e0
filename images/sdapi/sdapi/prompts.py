"""Extra networks in prompts: `<lora:name:weight>`."""

from __future__ import annotations

import re

# As the engine reads it: a line that begins with a frame's number and a colon.
TRAVEL_LINE = re.compile(r"[ \t]*(\d{1,9})[ \t]*:[ \t]*(\S.*)")
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


def hold_ends(prompt: str, frames: int) -> str:
    """A prompt that travels, with its first and its last text at the clip's ends too: then nothing is left of the way
    back to the first one, which a closed loop of windows would else go. What is no travel stays as it is."""
    lines = prompt.splitlines()
    found = [(int(match[1]), at, match[2]) for at, line in enumerate(lines) if (match := TRAVEL_LINE.fullmatch(line))]
    if not found:
        return prompt
    last, at, text = max(found)
    if last < frames - 1:
        lines.insert(at + 1, f"{frames - 1}: {text}")
    first, at, text = min(found)
    if first > 0:
        lines.insert(at, f"0: {text}")
    return "\n".join(lines)


def _weight(tag: str, arguments: list[str]) -> float:
    """Upstream has one weight for the text encoder, then one for the UNet; here they must be one."""
    texts = [text.partition("=")[2] if text.startswith(("te=", "unet=")) else text for text in arguments]
    try:
        weights = [float(text) for text in texts]
    except ValueError as error:
        raise TagError(f"{tag}: its weight is not a number") from error
    if weights and all(text.startswith("unet=") for text in arguments):
        weights.append(1.0)  # the text encoder's, where only the UNet's is said
    if len(set(weights)) > 1:
        raise TagError(f"{tag}: two different weights are not supported")
    if weights and not -4 <= weights[0] <= 4:
        raise TagError(f"{tag}: its weight is not from -4 to 4")
    return weights[0] if weights else 1.0
