"""Whether a file is what its name says: a whole safetensors file, told without loading any of it.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little endian N, N bytes of JSON, the data. The JSON
maps tensor names to {dtype, shape, data_offsets: [begin, end)}; the data has neither holes nor overlaps.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
HEAD_BYTES = 16
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class NotTensorsError(Exception):
    """The file is something else than a whole safetensors file; the message says what."""


def check_head(head: bytes) -> None:
    """Judge the first HEAD_BYTES: enough to tell a pickle or a web page, long before gigabytes of it have come."""
    if head.startswith(b"PK\x03\x04") or (
        head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[8:9] != b"{"
    ):
        raise NotTensorsError("a pickle (an older PyTorch file), which can run code when it is loaded")
    if head.lstrip()[:1] == b"<":
        raise NotTensorsError("a web page, not a model; is a login or a licence asked for there?")
    if head.startswith(b"version https://"):
        raise NotTensorsError("a Git LFS pointer, not the file itself; use the address of the file's raw content")
    if len(head) < 9 or head[8:9] != b"{" or struct.unpack("<Q", head[:8])[0] > MAX_HEADER_BYTES:
        raise NotTensorsError("not a safetensors file")


def check_file(path: Path) -> None:
    """NotTensorsError unless header and size fit together; OSError when it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        check_head(head)
        length = struct.unpack("<Q", head[:8])[0]
        if 8 + length > size:
            raise NotTensorsError("cut off within its header")
        file.seek(8)
        header = _parse(file.read(length))
    _check_tensors(header, size - 8 - length)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise NotTensorsError(f"its header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise NotTensorsError("its header is no table of tensors")
    header.pop("__metadata__", None)
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _check_tensors(header: dict[str, Any], data_bytes: int) -> None:
    spans = [(0, 0), *sorted(_span(name, tensor) for name, tensor in header.items())]
    for (_, end), (begin, _) in pairwise(spans):
        if begin != end:
            raise NotTensorsError("its header tells of data with holes or overlaps")
    if spans[-1][1] != data_bytes:
        raise NotTensorsError(f"its header tells of {spans[-1][1]} bytes of data, there are {data_bytes}")


def _span(name: str, tensor: Any) -> tuple[int, int]:
    try:
        begin, end = (_whole(offset) for offset in tensor["data_offsets"])
        count = _product(tensor["shape"])
        bits = _BITS.get(tensor["dtype"])
    except (KeyError, TypeError, ValueError):
        raise NotTensorsError(f"its header does not describe {name[:60]!r} as a tensor") from None
    # A kind of number that is not known here is for the engine to judge.
    if end < begin or (bits is not None and count * bits != (end - begin) * 8):
        raise NotTensorsError(f"its header gives {name[:60]!r} a wrong size")
    return begin, end


def _product(shape: list[object]) -> int:
    """Small at every moment: a hostile shape would otherwise be multiplied for hours."""
    count = 1
    for length in shape:
        count = _whole(count * _whole(length))
    return count


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError
    return value
