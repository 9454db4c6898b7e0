"""Small pictures and clips as requests carry them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "gif": "gif"}
PIXELS = {"mp4": "yuv420p", "webm": "yuv420p", "gif": "rgb8"}


def pixels(seed: int = 0, width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """A picture of large coloured squares."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture: NDArray[np.uint8] = np.kron(small, np.ones((height // 4, width // 4, 1), np.uint8))
    return picture


def image(picture: NDArray[np.uint8], kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def clip(pictures: Sequence[NDArray[np.uint8]], kind: str = "mp4") -> str:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(CODECS[kind], rate=8)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = PIXELS[kind]
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(file.getvalue()).decode()
