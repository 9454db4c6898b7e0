"""Frames to pictures of their own, without loss."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from webui.video.film import Film, Pixels

COMPRESSION = 4


def encode_pngs(frames: Iterable[Pixels], film: Film) -> Iterator[bytes]:
    info = PngInfo()
    info.add_text("parameters", film.note.lines)
    info.add_itxt("comment", film.note.json)
    for pixels in frames:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", pnginfo=info, compress_level=COMPRESSION)
        yield file.getvalue()
