"""What can be said about a picture or clip sent as text, without decoding it: its kind and its size. Pure, stdlib."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Final

TEXT_LIMIT_CHARS: Final = 15 * 1024 * 1024
SIDE_LIMIT_PIXELS: Final = 4096
DATA_URI = re.compile(r"data:[\w.+/-]{1,100}(;[\w.=+-]{1,100}){0,4},")
JPEG_SIZES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def decode_base64(text: str) -> bytes:
    """With or without a data-URI prefix; line breaks are passed over. Raises ValueError."""
    prefix = DATA_URI.match(text)
    try:
        return base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is not base64") from error


def require_image(text: str) -> str:
    """A PNG, JPEG or WebP of at most 4096 x 4096 pixels by its own header; the text as it was. Raises ValueError."""
    size = image_size(decode_base64(text))
    if size is None:
        raise ValueError("is not a PNG, JPEG or WebP image")
    if not all(0 < side <= SIDE_LIMIT_PIXELS for side in size):
        raise ValueError(f"is {size[0]} x {size[1]} pixels; at most {SIDE_LIMIT_PIXELS} x {SIDE_LIMIT_PIXELS} are read")
    return text


def require_clip(text: str) -> str:
    """An MP4, WebM or GIF by its first bytes; the text as it was. Raises ValueError."""
    head = decode_base64(text)[:16]
    if head[4:8] != b"ftyp" and not head.startswith((b"\x1aE\xdf\xa3", b"GIF87a", b"GIF89a")):
        raise ValueError("is not an MP4, WebM or GIF clip")
    return text


def image_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) by the header; None for what is none of PNG, JPEG, WebP, or ends too soon."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR":
            return struct.unpack(">II", content[16:24])
        if content.startswith(b"\xff\xd8\xff"):
            return _jpeg_size(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _webp_size(content)
    except (struct.error, IndexError):
        return None
    return None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Goes from marker to marker until the frame header (ITU T.81, B.2.2)."""
    at = 2
    while at < len(content):
        while content[at] == 0xFF and content[at + 1] == 0xFF:
            at += 1
        marker, length = struct.unpack(">xBH", content[at : at + 4])
        if marker in JPEG_SIZES:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        at += 2 + max(2, length)
    return None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """https://developers.google.com/speed/webp/docs/riff_container: three kinds of first chunk."""
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
