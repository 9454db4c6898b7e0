"""Checkpoint files: `<fence>-<step>.safetensors`, written by one attempt and read by the next, on any equal worker.

A file appears complete or not at all, and what a reader finds is only believed if its checksum, its fingerprint and
its request are right. No attempt ever removes or replaces what a newer attempt has written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from webui.durable import sync
from webui.engine.base import EngineError, Snapshot
from webui.folders import refuse_links
from webui.request import MemorySettings, VideoRequest, context_of

NAME = re.compile(r"(?P<fence>\d{1,20})-(?P<step>\d{1,6})\.safetensors")
TEMPORARY = re.compile(r"\.(?P<fence>\d{1,20})-\d{1,6}\.safetensors\.\d+\.tmp")
# The largest request, 128 frames of 1024 x 1024, is 34 MB of latents in single precision.
SIZE_LIMIT = 256 << 20
COMMIT = "COMMIT"

log = logging.getLogger(__name__)


class UnusableError(Exception):
    """Why a file is no checkpoint for this attempt."""


@dataclass(frozen=True)
class Identity:
    """What must be equal for one attempt's state to be another's."""

    fingerprint: str
    request: str
    models: str = ""
    """Of the request's own models: two files of the same name must not go on from one another."""


def request_hash(request: VideoRequest, memory: MemorySettings) -> str:
    """Covers what shapes the latents; how they are decoded and played is no part of it."""
    fields = asdict(request) | {"context_batch_size": context_of(request, memory)}
    for name in ("fps", "format", "loop_number"):
        del fields[name]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def write(
    folder: Path, fence: int, snapshot: Snapshot, identity: Identity, wanted: Callable[[], bool] = lambda: True
) -> bool:
    """Durable when it returns True; False if it is not `wanted` any more. Raises OSError when the disk refuses."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in snapshot.tensors.items()}
    facts = asdict(identity) | {"step": str(snapshot.step), "seed": str(snapshot.seed)}
    content = save(tensors, facts | {"sha256": checksum(facts, tensors)})
    path = folder / f"{fence}-{snapshot.step}.safetensors"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A job whose result is committed is cleaned up: only a zombie still writes, and must leave nothing.
        if not wanted() or (folder.parent / COMMIT).exists():
            return False
        temporary.replace(path)
        sync(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def prune(folder: Path, fence: int, step: int) -> None:
    """After `<fence>-<step>` is durable: removes what it makes useless, but nothing of a newer attempt."""
    for entry in os.scandir(folder):
        if match := NAME.fullmatch(entry.name):
            useless = int(match["step"]) < step if int(match["fence"]) == fence else (
                int(match["fence"]) < fence and int(match["step"]) <= step
            )  # fmt: skip
        elif match := TEMPORARY.fullmatch(entry.name):
            useless = int(match["fence"]) < fence
        else:
            continue
        if useless:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)


def readable(root: Path, relative: str, identity: Identity, steps: int) -> Iterator[Snapshot]:
    """The usable ones, the most advanced first. Never raises: the worst case is to start from nothing."""
    folder = root / relative
    try:
        refuse_links(root, relative)
        names = [name for name in os.listdir(folder) if NAME.fullmatch(name)]
    except FileNotFoundError:
        return
    except (OSError, EngineError) as error:
        log.warning("no checkpoint can be read from %s: %s", folder, error, extra={"event": "checkpoint_unusable"})
        return
    for name in sorted(names, key=_progress, reverse=True):
        try:
            yield read(folder / name, identity, steps)
        except (OSError, UnusableError, MemoryError) as error:
            log.warning("checkpoint %s ignored: %s", name, error, extra={"event": "checkpoint_unusable"})


def read(path: Path, identity: Identity, steps: int) -> Snapshot:
    """Raises OSError or UnusableError."""
    content = _read_file(path)
    facts = _metadata(content)
    for name, mine in asdict(identity).items():
        if facts.get(name) != mine:
            raise UnusableError(f"made for another {name}")
    try:
        tensors = load(content)
        step, seed = int(facts["step"]), int(facts["seed"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnusableError(f"damaged: {type(error).__name__}: {error}") from error
    if facts.pop("sha256", None) != checksum(facts, tensors):
        raise UnusableError("damaged: its checksum is wrong")
    if not 1 <= step <= steps or not 0 <= seed < 2**63:
        raise UnusableError(f"step {step} or seed {seed} is out of range")
    return Snapshot(step, seed, tensors)


def checksum(facts: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _read_file(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO must not block
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UnusableError("not a regular file")
        if facts.st_size > SIZE_LIMIT:
            raise UnusableError(f"{facts.st_size} bytes are too many")
        return file.read(SIZE_LIMIT)


def _metadata(content: bytes) -> dict[str, str]:
    """From the header: eight bytes of length, then JSON (https://github.com/huggingface/safetensors#format)."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"damaged: its header is no JSON: {type(error).__name__}") from error
    facts = header.get("__metadata__") if isinstance(header, dict) else None
    return facts if isinstance(facts, dict) else {}


def _progress(name: str) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    assert match is not None  # noqa: S101
    return int(match["step"]), int(match["fence"])
