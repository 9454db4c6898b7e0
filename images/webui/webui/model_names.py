"""What a model is called: by its file's stem or its folder's name, with or without an ending, also by a known alias."""

from __future__ import annotations

from collections.abc import Iterable

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# The module's file has two names in the wild: its author's, and the one that AnimateDiff's own page uses.
ALIASES = (frozenset({"mm_sd15_v3", "mm_sd_v15_v3"}),)


def plain_name(name: str) -> str:
    """Without a file's ending and the hash in brackets that AUTOMATIC1111's titles end with: `x.ckpt [0123abcdef]`."""
    head, bracket, tail = name.strip().rpartition(" [")
    if bracket and tail.endswith("]") and all(letter in "0123456789abcdef" for letter in tail[:-1].lower()):
        name = head
    name = name.strip()
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def find_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is meant: itself, or else an alias of it, or else the only one that differs in case."""
    wanted, known = plain_name(name), list(names)
    for same in (name, wanted):  # a name may itself end as files do: x.ckpt.safetensors
        if same in known:
            return same
    for group in ALIASES:
        if wanted.lower() in group:
            known_alias = next((candidate for candidate in known if candidate.lower() in group), None)
            if known_alias:
                return known_alias
    alike = [candidate for candidate in known if candidate.lower() == wanted.lower()]
    return alike[0] if len(alike) == 1 else None
