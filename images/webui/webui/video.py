"""Frames to an MP4 file that every browser plays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from webui.engine.base import Clip, Frames

# One thread and no look-ahead make the same frames the same bytes. With x264's look-ahead, which chooses B-frames,
# about one run in thirty came out differently.
X264 = {"crf": "18", "preset": "veryfast", "threads": "1", "bf": "0", "x264-params": "rc-lookahead=0:mbtree=0"}
TELL_FRAMES = 8
Encoded = Callable[[int], None]


@dataclass(frozen=True)
class ResultFile:
    name: str
    media_type: str
    size_bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_mp4(clip: Clip, fps: int, path: Path, encoded: Encoded = lambda _: None) -> ResultFile:
    """Writes H.264 to `path`, complete and on disk or not at all; raises OSError when the disk refuses.

    `encoded` is told now and then how many frames are done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _encode(even_sized(clip.frames), fps, temporary, json.dumps(clip.parameters, ensure_ascii=False), encoded)
        content = temporary.read_bytes()
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return ResultFile(path.name, "video/mp4", len(content), hashlib.sha256(content).hexdigest())


def _encode(frames: Frames, fps: int, path: Path, comment: str, encoded: Encoded) -> None:
    # faststart moves the index to the front so that playback starts before the download ends; it needs a real file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = X264
        for count, frame in enumerate(frames, start=1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if count % TELL_FRAMES == 0:
                encoded(count)
        container.mux(stream.encode(None))


def even_sized(frames: Frames) -> Frames:
    """yuv420p halves the colour planes, so x264 refuses odd sizes: repeat the last row or column."""
    _, height, width, _ = frames.shape
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
