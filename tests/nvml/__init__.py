"""NVIDIA's library without a GPU: `stub.c`, compiled by the tests, and the text file that says what it answers."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("stub.c")
SONAME = "libnvidia-ml.so.1"
FULL = {
    "name": "NVIDIA_A10G", "util": 37, "mem_util": 12, "total": 24000, "reserved": 400, "used": 8000, "temp": 61,
    "power": 150250, "energy": 9000500, "sm": 1710, "reasons": 4, "ecc_corrected": 3, "ecc_uncorrected": 0,
}  # fmt: skip
"""All that a GPU can be asked."""


def build(folder: Path, *, old: bool = False) -> Path:
    """The folder of the library, for LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{SONAME}"]
    command += ["-DOLD"] if old else []
    subprocess.run([*command, "-o", str(folder / SONAME), str(SOURCE)], check=True, timeout=60)
    return folder


def uuid_of(number: int) -> str:
    return f"GPU-{number:08x}-0000-4000-8000-{number:012x}"


@dataclass
class State:
    """What the stub answers from the next call on; `write` after each change."""

    path: Path
    gpus: dict[str, dict[str, object]] = field(default_factory=dict)
    xids: list[tuple[str, int]] = field(default_factory=list)
    init_error: int = 0
    driver: str = "550.54.15"

    def add(self, number: int, **changes: object) -> str:
        """A GPU; a change to None takes the reading away."""
        uuid = uuid_of(number)
        self.gpus[uuid] = {**FULL, **changes}
        return uuid

    def write(self) -> None:
        lines = [f"driver {self.driver}"] + ([f"init {self.init_error}"] if self.init_error else [])
        for uuid, values in self.gpus.items():
            told = (f"{key}={value}" for key, value in values.items() if value is not None)
            lines.append(f"gpu {uuid} {' '.join(told)}")
        lines += [f"xid {uuid} {xid}" for uuid, xid in self.xids]
        temporary = self.path.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")
        os.replace(temporary, self.path)
