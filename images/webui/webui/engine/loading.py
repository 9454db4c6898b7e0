"""From model files to a pipeline, and what it is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import diffusers

from webui import __version__
from webui.engine.base import EngineError

MODEL_FILES = (".safetensors", ".json", ".txt")


def model_folder(root: str, kind: str, name: str) -> Path:
    folder = Path(root, kind, name)
    if not folder.is_dir():
        raise EngineError("MODEL_LOAD_FAIL", f"{folder} does not exist; it must be a folder in diffusers' layout")
    return folder


def fingerprint(*folders: Path) -> str:
    """Code version and the content of every model file; equal fingerprints make equal pictures."""
    digest = hashlib.sha256(f"diffusers {__version__} {diffusers.__version__}".encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file()):
            digest.update(f"\n{path.relative_to(folder)} ".encode())
            digest.update(file_checksum(path))
    return digest.hexdigest()


def file_checksum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
