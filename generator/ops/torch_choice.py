"""Where the CPU image's torch comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from generator.errors import UserError

# A wheel is for one Python; this is the Debian suite that has it.
SUITE_OF_PYTHON = {"cp313": "trixie", "cp311": "bookworm"}
WHEEL_NAME = re.compile(
    r"torch-(?P<version>\d[\w.]*\+cpu)-(?P<python>cp\d+)-(?P=python)-\w*linux\w*_(?P<machine>x86_64|aarch64)\.whl"
)
MACHINE_OF_ARCHITECTURE = {"amd64": "x86_64", "arm64": "aarch64"}
OPTIONS = ("auto", "wheel", "index", "debian")


@dataclass(frozen=True)
class TorchChoice:
    source: str
    """wheel, index or debian; the argument TORCH_SOURCE of images/webui/Dockerfile"""
    suite: str = "trixie"
    wheel: Path | None = None
    index: str = ""
    cuda_index: str = ""
    notice: str = ""


def choose_torch(option: str, index: str | None, wheels: Sequence[Path], machine: str) -> TorchChoice:
    """A wheel at hand wins, then a named index; Debian's own torch always works and is slow."""
    if option not in OPTIONS:
        raise UserError(f'--torch: "{option}" is none of {", ".join(OPTIONS)}')
    wheel = newest_wheel(wheels, machine)
    if option == "wheel" and wheel is None:
        raise UserError(
            f"--torch wheel: PIP_FIND_LINKS names no folder with a torch CPU wheel for {machine} and "
            f"{' or '.join(SUITE_OF_PYTHON)}; put one there, or use --torch index or --torch debian"
        )
    if option == "index" and not index:
        raise UserError("--torch index: name PyTorch's CPU package index with --torch-index URL")
    if index:
        _refuse_password(index)
    if wheel is not None and option in ("auto", "wheel"):
        return TorchChoice("wheel", suite=_suite(wheel), wheel=wheel, notice=f"webui-cpu: torch from {wheel.name}")
    if index and option in ("auto", "index"):
        return TorchChoice("index", index=index, notice=f"webui-cpu: torch from {index}")
    return TorchChoice(
        "debian",
        notice="webui-cpu: Debian's own torch, which works but is about five times slower; "
        "a torch CPU wheel in PIP_FIND_LINKS or --torch-index URL makes it fast",
    )


def choose_cuda(index: str | None) -> TorchChoice:
    """webui-cuda's torch is always from an index: PyTorch's for the CUDA of its base image, or a mirror of that."""
    if not index:
        raise UserError("webui-cuda: name PyTorch's package index for CUDA 11.8 (…/cu118) with --torch-index URL")
    _refuse_password(index)
    return TorchChoice("index", cuda_index=index, notice=f"webui-cuda: torch from {index}")


def _refuse_password(index: str) -> None:
    parts = urlsplit(index)
    if parts.username or parts.password:
        raise UserError(
            "--torch-index: a URL with a login or token would stay readable in the image; "
            "put it into a pip.conf and name that in BUILD_PIP_CONF"
        )


def newest_wheel(wheels: Sequence[Path], machine: str) -> Path | None:
    fitting = []
    for wheel in wheels:
        name = WHEEL_NAME.fullmatch(wheel.name)
        if name and name["machine"] == machine and name["python"] in SUITE_OF_PYTHON:
            version = tuple(int(part) for part in re.findall(r"\d+", name["version"].split("+")[0]))
            fitting.append((version, name["python"], wheel))
    return max(fitting)[2] if fitting else None


def _suite(wheel: Path) -> str:
    return next(suite for python, suite in SUITE_OF_PYTHON.items() if f"-{python}-" in wheel.name)


def find_wheels(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Wheels in the folders of PIP_FIND_LINKS, which pip allows to hold URLs and missing folders too."""
    places = [place.removeprefix("file://") for place in environment.get("PIP_FIND_LINKS", "").split()]
    return sorted(wheel for place in places if "://" not in place for wheel in Path(place).glob("torch-*.whl"))
