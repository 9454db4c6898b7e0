from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from generator.tensor_file import NotTensorsError, check_file, check_head


def written(header: object, data: int, path: Path, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def tensor(begin: int, end: int, dtype: str = "F16", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_taken(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.uint8), "c": np.zeros((0, 2), np.float16)}
    (tmp_path / "m").write_bytes(save(arrays, metadata={"format": "pt"}))
    check_file(tmp_path / "m")
    (tmp_path / "m").write_bytes(save({}))
    check_file(tmp_path / "m")


def test_a_kind_of_number_of_the_future_is_taken(tmp_path: Path) -> None:
    check_file(written({"a": tensor(0, 10, "F4", [20])}, 10, tmp_path / "m"))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": tensor(0, 10)}, 9),
        ({"a": tensor(0, 10)}, 11),
        ({"a": tensor(0, 10), "b": tensor(12, 14)}, 14),
        ({"a": tensor(0, 10), "b": tensor(8, 12)}, 12),
        ({"a": tensor(2, 10)}, 10),
        ({"a": tensor(0, 10, shape=[6])}, 10),
        ({"a": {**tensor(0, 10), "data_offsets": [10, 0]}}, 10),
        ({"a": {**tensor(0, 10), "data_offsets": [0]}}, 10),
        ({"a": {**tensor(0, 10), "data_offsets": [0, True]}}, 1),
        ({"a": {**tensor(0, 10), "shape": [-5]}}, 10),
        ({"a": {**tensor(0, 10), "shape": [1 << 70]}}, 10),
        ({"a": {**tensor(0, 10), "dtype": ["F16"]}}, 10),
        ({"a": 5}, 0),
        ({"a": {}}, 0),
        (b'{"a":', 0),
        (b"{" + b'"a":[' * 100_000, 0),
        (b'{"a":1,"a":2}', 0),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, header: object, data: int) -> None:
    with pytest.raises(NotTensorsError):
        check_file(written(header, data, tmp_path / "m"))


def test_a_shape_that_would_be_multiplied_for_hours_is_refused(tmp_path: Path) -> None:
    wide = {"a": tensor(0, 10, shape=[(1 << 61) + 1] * 200_000)}
    began = time.monotonic()
    with pytest.raises(NotTensorsError):
        check_file(written(wide, 10, tmp_path / "m"))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("length", [0, 1 << 40, 200, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(NotTensorsError):
        check_file(written({"a": tensor(0, 10)}, 10, tmp_path / "m", length=length))


@pytest.mark.parametrize("head", [b"", b"x", b"\x80", b"\x80\x04", b"  <html>", b"PK\x03\x04", b"{}", bytes(16)])
def test_the_first_bytes_say_enough(head: bytes) -> None:
    with pytest.raises(NotTensorsError):
        check_head(head)


def test_a_header_of_the_length_of_a_pickles_mark_is_none() -> None:
    check_head(struct.pack("<Q", 0x280) + b'{"a": {"')
