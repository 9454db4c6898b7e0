"""Frames to an animated WebP."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av

from webui.video.film import Film, Pixels, video_frame

TICK = Fraction(1, 1000)
WEBP = {"quality": "90", "compression_level": "2", "threads": "1"}
HAS_EXIF = 0x08
USER_COMMENT, EXIF_FOLDER, LONG, UNDEFINED = 0x9286, 0x8769, 4, 7


def encode_webp(frames: Iterable[Pixels], film: Film) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="webp", options={"loop": str(film.loops)}) as container:
        stream: Any = container.add_stream("libwebp_anim", rate=Fraction(1000), options=WEBP)
        stream.width, stream.height, stream.pix_fmt = film.width, film.height, "bgra"
        stream.codec_context.time_base = TICK
        for index, pixels in enumerate(frames):
            frame = video_frame(pixels, pts=round(index * 1000 / film.fps), time_base=TICK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return with_exif(file.getvalue(), film.width, film.height, exif(film.note.lines))


def with_exif(webp: bytes, width: int, height: int, content: bytes) -> bytes:
    """The file with one chunk more (RFC 9649); a still picture first gets the header that such chunks need."""
    whole = memoryview(webp)  # parts of it are not copied on the way
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    header, rest = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size, whole[12:]
    if bytes(rest[:4]) == b"VP8X":
        header, rest = bytes(rest[: len(header)]), rest[len(header) :]
    header = header[:8] + bytes([header[8] | HAS_EXIF]) + header[9:]
    more = b"EXIF" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    length = struct.pack("<I", 4 + len(header) + len(rest) + len(more))
    return b"".join((b"RIFF", length, b"WEBP", header, rest, more))


def exif(text: str) -> bytes:
    """A TIFF with nothing but the user's comment, which is where tools for AUTOMATIC1111 look."""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    folder = struct.pack(">HHHII", 1, EXIF_FOLDER, LONG, 1, 26) + bytes(4)
    inner = struct.pack(">HHHII", 1, USER_COMMENT, UNDEFINED, len(comment), 44) + bytes(4)
    return b"MM\0*" + struct.pack(">I", 8) + folder + inner + comment
