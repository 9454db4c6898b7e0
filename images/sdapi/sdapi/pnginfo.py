"""`/sdapi/v1/png-info`: the texts in a PNG, without decoding its picture."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from sdapi.errors import Problem, http_error, invalid_body
from sdapi.reader import Reader

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LIMIT = 15 << 20
KEYWORD_LIMIT = 79  # the specification's
TEXTS_LIMIT = 1 << 20  # of all a picture's texts together: a kilobyte can be a megabyte, compressed
CHUNKS_LIMIT = 1000
LINE_LIMIT = 8192
PREFIX = re.compile(r"data:[\w.+/-]{1,100}(;[\w.=+-]{1,100}){0,4},")
# Every part is bounded, so that a text that is no list of pairs is not gone through from each of its letters.
PAIR = re.compile(r'\s{0,8}(\w[\w \-/]{0,63}):\s{0,8}("(?:\\.|[^\\"]){1,2000}"|[^,]*)(?:,|$)')


def read(body: object) -> dict[str, Any]:
    """The answer for a request's body. Raises ApiError: 422 without an image, 500-free for a broken one."""
    problems: list[Problem] = []
    reader = Reader(body if isinstance(body, dict) else {}, problems)
    image = reader.text("image", "", LIMIT)
    if problems:
        raise invalid_body(problems)
    if not image.strip():
        raise invalid_body([Problem(("image",), "field required", "value_error.missing")])
    prefix = PREFIX.match(image)
    try:
        content = base64.b64decode("".join(image[prefix.end() if prefix else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise http_error(422, "Invalid encoded image") from error
    if not content.startswith(SIGNATURE):
        raise http_error(422, "Invalid encoded image")
    items = texts(content)
    info = items.pop("parameters", "")
    return {"info": info, "items": items, "parameters": parameters(info)}


def texts(png: bytes) -> dict[str, str]:
    """tEXt, zTXt and iTXt chunks (PNG specification, 11.3.4); what is broken or too long is left out."""
    found: dict[str, str] = {}
    left = TEXTS_LIMIT
    for kind, data in _chunks(png):
        keyword, _, rest = data.partition(b"\0")
        text = _text(kind, rest, left)
        if text is not None:
            found[keyword[:KEYWORD_LIMIT].decode("latin-1")] = text
            left -= len(keyword) + len(text)
        if left <= 0:
            break
    return found


def _text(kind: bytes, content: bytes, limit: int) -> str | None:
    if kind == b"tEXt":
        return content[:limit].decode("latin-1")
    if kind == b"zTXt" and content[:1] == b"\0":
        return _inflated(content[1:], limit).decode("latin-1")
    if kind == b"iTXt" and len(content) >= 2:
        _, _, text = content[2:].partition(b"\0")
        _, _, text = text.partition(b"\0")
        return (_inflated(text, limit) if content[0] else text[:limit]).decode("utf-8", "replace")
    return None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    for _ in range(CHUNKS_LIMIT):
        if at + 8 > len(png):
            return
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        yield kind, png[at + 8 : at + 8 + length]
        at += 12 + length


def _inflated(data: bytes, limit: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error:
        return b""


def parameters(info: str) -> dict[str, str]:
    """An infotext taken apart; empty for a text that is none."""
    *lines, last = info.strip().split("\n") if info.strip() else [""]
    pairs = {key.strip(): value.strip('"') for key, value in PAIR.findall(last)} if len(last) <= LINE_LIMIT else {}
    if len(pairs) < 3:
        return {}
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **pairs}
