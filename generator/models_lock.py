"""models.lock.yaml: which model files the cluster uses, where they come from, and what they must be byte for byte.

    mirrors:                                   # asked before the sources; files lie there as KIND/NAME.safetensors
      - https://models.example.net/animatediff
    models:
      - name: realistic_vision_v51             # lands in models/checkpoint/realistic_vision_v51.safetensors
        kind: checkpoint                       # checkpoint | motion_module | lora | vae | controlnet
        size: 2132625612                       # bytes
        sha256: 0f4c…                          # of the whole file
        source: https://…                      # may be left out: then the file is put there by hand or by a mirror
        mirrors: [https://…]                   # more addresses of this very file
        license: CreativeML Open RAIL-M        # a note for people

The checksum is what counts: whoever serves the bytes, nothing else is ever put in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field

from generator.errors import Problem, UserError
from generator.load import Loaded, by_line, parse_as, problem_at, read_as
from generator.marks import FileKind, Mark
from generator.marks import Path as KeyPath
from generator.model import SHA256, FileName, ModelKind, Part

SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
"""What is loaded by running code that stands in the file."""
CONVERT = "a pickle, which can run code of its own when it is loaded; convert it to .safetensors, or find it as such"
DEMO_SOURCE = "demo"
MAX_BYTES = 1 << 40
URL = r"^https?://[!-~]{1,2000}$"
Url = Annotated[str, Field(pattern=URL)]


class LockedModel(Part):
    """One file, told byte for byte."""

    name: FileName
    kind: ModelKind
    size: Annotated[int, Field(ge=10, le=MAX_BYTES)]
    sha256: Annotated[str, Field(pattern=SHA256)]
    source: Url | None = None
    mirrors: Annotated[tuple[Url, ...], Field(max_length=20)] = ()
    license: Annotated[str, Field(max_length=300)] | None = None

    @property
    def stem(self) -> str:
        """A name with `.safetensors` means the same as one without."""
        return self.name.removesuffix(SUFFIX)

    @property
    def place(self) -> str:
        """Where it lies, relative to the models folder."""
        return f"{self.kind.value}/{self.stem}{SUFFIX}"


class ModelsLock(Part):
    """A whole models.lock.yaml."""

    mirrors: Annotated[tuple[Url, ...], Field(max_length=20)] = ()
    models: Annotated[tuple[LockedModel, ...], Field(max_length=2000)]


KIND = FileKind(
    "models.lock.yaml",
    start="add a model with: python -m generator models add FILE-OR-URL --kind KIND",
    example="config/models.lock.example.yaml",
    keys="models:, mirrors:",
    root=ModelsLock,
    patterns={URL: "not an address; write it like https://example.net/model.safetensors, without spaces"},
)


@dataclass(frozen=True)
class LoadedLock:
    """A models.lock.yaml without fault, and where each of its parts stands."""

    lock: ModelsLock
    marks: Mapping[KeyPath, Mark]
    file: str

    def problem(self, path: KeyPath, hint: str) -> Problem:
        return problem_at(path, hint, self.marks, self.file)


def load_lock(path: Path) -> LoadedLock:
    """Raises UserError with every problem, each with its line."""
    lock, marks = read_as(path, ModelsLock, KIND)
    return _checked(LoadedLock(lock, marks, str(path)))


def parse_lock(text: str, file: str) -> LoadedLock:
    lock, marks = parse_as(text, file, ModelsLock, KIND)
    return _checked(LoadedLock(lock, marks, file))


def _checked(loaded: LoadedLock) -> LoadedLock:
    problems = by_line([*_names(loaded), *_addresses(loaded)])
    if problems:
        raise UserError(problems)
    return loaded


def _names(loaded: LoadedLock) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, model in enumerate(loaded.lock.models):
        path: KeyPath = ("models", index, "name")
        if is_pickle(model.name):
            yield loaded.problem(path, CONVERT)
        # Some file systems keep one file for names that differ in case only.
        seen = first.setdefault(model.place.lower(), index)
        if seen != index:
            line = loaded.marks["models", seen, "name"].line
            hint = f"this {model.kind.value} is listed twice (line {line}); remove one, or give one another name"
            yield loaded.problem(path, hint)


def _addresses(loaded: LoadedLock) -> Iterator[Problem]:
    lock = loaded.lock
    found: list[tuple[KeyPath, str]] = [(("mirrors", index), url) for index, url in enumerate(lock.mirrors)]
    for number, model in enumerate(lock.models):
        if model.source is not None:
            found.append((("models", number, "source"), model.source))
        found += [(("models", number, "mirrors", index), url) for index, url in enumerate(model.mirrors)]
    for path, url in found:
        if hint := wrong_address(url):
            # What stands there is not shown: it may be a password.
            yield Problem(hint, loaded.file, loaded.marks[path].line, loaded.problem(path, hint).path)


def wrong_address(url: str) -> str:
    """What is wrong with an address of a model file; empty: nothing."""
    if not url.startswith(("http://", "https://")):
        return "not an address; write it like https://example.net/model.safetensors"
    try:
        parts = urlsplit(url)
        if parts.port == 0 or not parts.hostname:
            return "an address without a host; write it like https://example.net/model.safetensors"
    except ValueError:
        return "not an address; write it like https://example.net/model.safetensors"
    if parts.username or parts.password:
        return "holds a user name or password, which everybody who sees this file could read; remove it"
    if is_pickle(unquote(parts.path)):
        return CONVERT
    return ""


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def name_of(file_or_url: str) -> str:
    """A model's name from where it is: the last part of the path, without the suffix and what a name cannot hold."""
    parts = urlsplit(file_or_url)
    path = unquote(parts.path) if parts.scheme in ("http", "https") else file_or_url
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(path).name.removesuffix(SUFFIX))
    return plain.lstrip("._-")[:120]


def used_places(cluster: Loaded) -> set[str]:
    """Where the models of cluster.yaml lie in the models folder, be it as a file or as a folder."""
    models = cluster.cluster.models.available
    return {f"{one.kind.value}/{one.name.removesuffix(SUFFIX)}{suffix}" for one in models for suffix in ("", SUFFIX)}


def mismatches(cluster: Loaded, lock: LoadedLock) -> list[Problem]:
    """Where cluster.yaml and the lock say different things about the same models."""
    locked = {(model.kind, model.stem): model for model in lock.lock.models}
    problems = []
    for index, model in enumerate(cluster.cluster.models.available):
        if model.source == DEMO_SOURCE:
            continue
        path: KeyPath = ("models", "available", index)
        twin = locked.get((model.kind, model.name.removesuffix(SUFFIX)))
        if twin is None:
            hint = f"not in {lock.file}; add it with: python -m generator models add"
            problems.append(cluster.problem((*path, "name"), hint))
        elif model.sha256 not in (None, twin.sha256):
            problems.append(
                cluster.problem((*path, "sha256"), f"{lock.file} has {twin.sha256}; correct one of the two")
            )
    return by_line(problems)
