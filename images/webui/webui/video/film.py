"""What every kind of file is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from webui.video.note import Note

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Film:
    """`count` frames, `width` and `height` in pixels, `fps` frames a second; `loops` of GIF and WebP, 0: endless."""

    count: int
    width: int
    height: int
    fps: int
    loops: int
    note: Note


def even_sized(frames: Pixels) -> Pixels:
    """(…, height, width, 3): yuv420p halves the colour planes, so odd sizes get their last row or column twice."""
    *before, height, width, _ = frames.shape
    if height % 2 == 0 and width % 2 == 0:
        return frames
    around: list[tuple[int, int]] = [(0, 0)] * len(before)
    return np.pad(frames, [*around, (0, height % 2), (0, width % 2), (0, 0)], mode="edge")


def video_frame(pixels: Pixels, **times: Any) -> Any:
    """(height, width, 3) RGB as PyAV's frame; `times` are `pts` and `time_base`."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    for name, value in times.items():
        setattr(frame, name, value)
    return frame
