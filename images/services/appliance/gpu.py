"""What is worth knowing of the GPU that an attempt ran on, as one short text in the attempt's record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

NAME_CHARS: Final = 48  # "NVIDIA RTX PRO 6000 Blackwell Workstation Edition" is one more, and still itself
_LABEL = re.compile(r"(?P<model>.{1,48}), (?P<mib>[0-9]{1,8}) MiB")


@dataclass(frozen=True)
class Gpu:
    model: str
    memory_mib: int

    @classmethod
    def of_ping(cls, told: Mapping[str, Any] | None) -> Gpu | None:
        """From what a webui tells about itself; None where it has no GPU, or tells it in an unknown way."""
        name, memory = (told or {}).get("name"), (told or {}).get("memory_total_mib")
        if not isinstance(name, str) or not isinstance(memory, int) or not 0 < memory < 10**8:
            return None
        plain = " ".join("".join(char if char.isprintable() else " " for char in name).split())
        return cls(plain[:NAME_CHARS].strip(), memory) if plain else None

    @classmethod
    def parse(cls, label: object) -> Gpu | None:
        found = _LABEL.fullmatch(label) if isinstance(label, str) else None
        return cls(found["model"], int(found["mib"])) if found else None

    @property
    def label(self) -> str:
        return f"{self.model}, {self.memory_mib} MiB"
