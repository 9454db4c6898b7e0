"""Which models lie on the models volume, and what each one is made of. Loads none, and needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from webui.engine.base import EngineError
from webui.model_names import find_name

Kind = Literal["checkpoint", "motion_module", "lora", "vae", "controlnet"]
KINDS: tuple[Kind, ...] = ("checkpoint", "motion_module", "lora", "vae", "controlnet")
SAFE = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
MODEL_FILES = (SAFE, ".json", ".txt")
NAMES_TOLD = 20
HEADER_LIMIT = 100 << 20  # as safetensors itself sets it
CHECKSUMS = "checksums.json"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Model:
    """A single file, or a folder in diffusers' layout."""

    kind: Kind
    name: str
    path: Path

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    def files(self) -> list[Path]:
        """All that makes it what it is; for a single file also the `<name>.json` that may lie beside it."""
        if self.is_folder:
            return sorted(path for path in self.path.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
        return [self.path, *(path for path in [self.sidecar] if path.is_file())]

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(f"{self.name}.json")

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files())


class Library:
    """`root` is the models volume, `scratch` a local folder where checksums are kept from one start to the next."""

    def __init__(self, root: str | Path, scratch: str | Path) -> None:
        self._root = Path(root)
        self._scratch = Path(scratch)
        self._checksums: dict[str, str] = {}

    def models(self, kind: Kind) -> dict[str, Model]:
        """By name, as they lie there now. A folder comes before a file of the same name."""
        found = {model.name: model for model in self._files(kind)}
        return found | {model.name: model for model in self._folders(kind)}

    def names(self, kind: Kind) -> list[str]:
        return sorted(self.models(kind), key=str.lower)

    def offers(self) -> dict[str, Any]:
        """The names of everything, as the fields of Capabilities are called."""
        modules = {name: self.max_frames(module) for name, module in self.models("motion_module").items()}
        return {
            "checkpoints": tuple(self.names("checkpoint")),
            "motion_modules": tuple(self.names("motion_module")),
            "loras": tuple(self.names("lora")),
            "vaes": tuple(self.names("vae")),
            "controlnets": tuple(self.names("controlnet")),
            "refused": tuple(name for kind in KINDS for name in self.refused(kind)),
            "motion_frames": {name: frames for name, frames in modules.items() if frames},
        }

    def find(self, kind: Kind, name: str) -> Model:
        """Raises EngineError MODEL_LOAD_FAIL, which says what lies there instead."""
        models = self.models(kind)
        if found := find_name(name, models):
            return models[found]
        folder = self._root / kind
        if pickle := self._pickle(folder, name):
            raise EngineError(
                "MODEL_LOAD_FAIL",
                f"{pickle} is a pickle, which can run any code when it is read; convert it to {SAFE}",
            )
        names = self.names(kind)
        there = ", ".join(names[:NAMES_TOLD]) + (", and more" if len(names) > NAMES_TOLD else "") or "nothing"
        raise EngineError("MODEL_LOAD_FAIL", f"{folder / name} does not exist, nor with {SAFE}; there is {there}")

    def refused(self, kind: Kind) -> list[str]:
        """File names of pickles, which are never loaded."""
        return sorted(entry.name for entry in _entries(self._root / kind) if entry.name.lower().endswith(PICKLES))

    def checksum(self, model: Model) -> str:
        """SHA-256 in hex: of the file, as AUTOMATIC1111 tells it, or of a folder's names and files.

        A file's is remembered until its size or its times change. Raises OSError."""
        if not model.is_folder and not model.sidecar.is_file():
            return self._file_checksum(model.path)
        digest = hashlib.sha256()
        base = model.path if model.is_folder else model.path.parent
        for path in model.files():
            digest.update(f"\n{path.relative_to(base)} {self._file_checksum(path)}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def max_frames(self, model: Model) -> int | None:
        """How many frames a motion module knows positions for; None if its file does not tell."""
        with contextlib.suppress(OSError, ValueError, EngineError, LookupError, TypeError):
            if model.is_folder:
                config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
                return int(config["motion_max_seq_length"])
            for name, tensor in read_header(model.path).items():
                if name.endswith((".pos_encoder.pe", ".pos_embed.pe")):
                    return int(tensor["shape"][1])
        return None

    def metadata(self, model: Model) -> dict[str, str]:
        """What trainers write into a file's header, such as `ss_output_name`; empty if there is nothing to read."""
        with contextlib.suppress(OSError, EngineError):
            facts = read_header(model.path).get("__metadata__") if not model.is_folder else None
            return facts if isinstance(facts, dict) else {}
        return {}

    def _files(self, kind: Kind) -> Iterator[Model]:
        for entry in _entries(self._root / kind):
            if entry.name.endswith(SAFE) and _is(entry.is_file):
                yield Model(kind, entry.name.removesuffix(SAFE), Path(entry.path))

    def _folders(self, kind: Kind) -> Iterator[Model]:
        for entry in _entries(self._root / kind):
            if _is(entry.is_dir) and _is(partial(_holds_model, kind, Path(entry.path))):
                yield Model(kind, entry.name, Path(entry.path))

    def _pickle(self, folder: Path, name: str) -> Path | None:
        for entry in _entries(folder):
            if entry.name == name and entry.is_dir():
                return next((path for path in sorted(Path(entry.path).rglob("*")) if path.suffix in PICKLES), None)
            if entry.name.lower().endswith(PICKLES) and find_name(name, [entry.name.rpartition(".")[0]]):
                return Path(entry.path)
        return None

    def _file_checksum(self, path: Path) -> str:
        facts = path.stat()
        key = f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
        if not self._checksums:
            self._checksums = self._remembered()
        if key not in self._checksums:
            self._checksums[key] = file_checksum(path)
            self._remember()
        return self._checksums[key]

    def _remembered(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self._scratch / CHECKSUMS).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return {str(key): str(value) for key, value in found.items()}
        return {}

    def _remember(self) -> None:
        """Only saves time at the next start, so a disk that refuses changes nothing."""
        with contextlib.suppress(OSError):
            self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=self._scratch, encoding="utf-8", delete=False) as file:
                json.dump(self._checksums, file)
            os.replace(file.name, self._scratch / CHECKSUMS)


def read_header(path: Path) -> dict[str, Any]:
    """Names, shapes and metadata of a safetensors file (https://github.com/huggingface/safetensors#format).

    Raises OSError, or EngineError MODEL_LOAD_FAIL for a file of another kind."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise EngineError("MODEL_LOAD_FAIL", f"{path} is no safetensors file: its header is too long")
        content = file.read(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineError("MODEL_LOAD_FAIL", f"{path} is no safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise EngineError("MODEL_LOAD_FAIL", f"{path} is no safetensors file: its header is no object")
    return header


def file_checksum(path: Path) -> str:
    """SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(filter(_is_named, entries), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_named(entry: os.DirEntry[str]) -> bool:
    """Bytes that are no UTF-8 cannot be told to anybody, nor asked for."""
    return not entry.name.startswith(".") and _is_text(entry.name)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is(question: Callable[[], bool]) -> bool:
    """What cannot be looked at, a link in a circle or somebody else's folder, is no model; the others are."""
    try:
        return question()
    except OSError:
        return False


def _holds_model(kind: Kind, folder: Path) -> bool:
    if kind == "checkpoint":
        return (folder / "unet" / "config.json").is_file() and any((folder / "unet").glob(f"*{SAFE}"))
    return any(folder.glob(f"*{SAFE}")) and (kind == "lora" or (folder / "config.json").is_file())
