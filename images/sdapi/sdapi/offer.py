"""What a node, or a whole cluster, can be asked for, and by which names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

HASH = re.compile(r"\s*\[[0-9a-fA-F]{6,64}\]$")
WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth")
SAME_MODULES = {"mm_sd_v15_v3": "mm_sd15_v3"}
UPSTREAM_MODULE = "mm_sd15_v3"  # what clients send who have not chosen
NAMES_TOLD = 20
AUTOMATIC = ("automatic", "none", "")


@dataclass(frozen=True)
class Offer:
    """Names; the first checkpoint and motion module are the defaults. None: not known, so anything may be asked for."""

    models: tuple[str, ...] | None = None
    motion_modules: tuple[str, ...] | None = None
    loras: tuple[str, ...] | None = None
    vaes: tuple[str, ...] | None = None
    controlnets: tuple[str, ...] | None = None
    samplers: tuple[str, ...] | None = None
    schedulers: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Offer:
        """From what a node says it can do; what is no list of names is not known."""
        return cls(**{item.name: _names(raw.get(item.name)) for item in fields(cls)})

    @classmethod
    def union(cls, offers: Sequence[Offer]) -> Offer:
        """What at least one of them can do. One that does not tell, because it is just starting, adds nothing."""

        def merged(name: str) -> tuple[str, ...] | None:
            lists = [names for offer in offers if (names := getattr(offer, name)) is not None]
            return tuple(dict.fromkeys(item for names in lists for item in names)) if lists else None

        return cls(**{item.name: merged(item.name) for item in fields(cls)})


def _names(value: object) -> tuple[str, ...] | None:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else None


def stem(name: str) -> str:
    """A model's name without the short hash of a title and without a file's ending."""
    name = HASH.sub("", name.strip())
    for ending in WEIGHT_FILES:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def find(name: str, offered: Sequence[str] | None) -> str | None:
    """The offered name that is meant, in whatever case; None where there is none. Where nothing is known, any."""
    wanted = stem(name)
    if offered is None:
        return SAME_MODULES.get(wanted, wanted)
    for same in (wanted, SAME_MODULES.get(wanted), _turned(wanted)):
        for item in offered:
            if same is not None and stem(item).lower() == same.lower():
                return item
    return None


def some(names: Sequence[str]) -> str:
    """For an error: the first names, and how many more there are."""
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


def _turned(name: str) -> str | None:
    return next((other for other, known in SAME_MODULES.items() if known == name), None)
