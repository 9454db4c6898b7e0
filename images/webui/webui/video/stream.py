"""Frames to video: MP4 (H.264) that every browser plays, and WebM (VP9)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av

from webui.video.film import Film, Pixels, even_sized, video_frame

# One thread and no look-ahead make the same frames the same bytes. With x264's look-ahead, which chooses B-frames,
# about one run in thirty came out differently.
X264 = {"crf": "18", "preset": "veryfast", "threads": "1", "bf": "0", "x264-params": "rc-lookahead=0:mbtree=0"}
VP9 = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "threads": "1", "row-mt": "0"}
VP9 |= {"lag-in-frames": "0", "auto-alt-ref": "0"}
# What the colours mean, as ITU-T H.273 numbers it: BT.601's matrix, which the conversion from RGB uses, in the limited
# range, and sRGB's primaries and curve. Untold, browsers take it for BT.709 from 720 lines on: other colours.
COLOURS = {"colorspace": 6, "color_range": 1, "color_primaries": 1, "color_trc": 13}


def encode_mp4(frames: Iterable[Pixels], film: Film) -> bytes:
    # faststart moves the index to the front so that playback starts before the download ends.
    return _encode(frames, film, "mp4", {"movflags": "+faststart"}, "libx264", X264)


def encode_webm(frames: Iterable[Pixels], film: Film) -> bytes:
    # Otherwise every file gets a random number of its own.
    return _encode(frames, film, "webm", {"fflags": "+bitexact"}, "libvpx-vp9", VP9)


def _encode(
    frames: Iterable[Pixels],
    film: Film,
    kind: str,
    options: dict[str, str],
    codec: str,
    codec_options: dict[str, str],
) -> bytes:
    # In memory: FFmpeg does not tell when a disk is full while it closes a file. With a name, because faststart opens
    # the file a second time.
    descriptor = os.memfd_create(kind, os.MFD_CLOEXEC)
    try:
        with av.open(f"/proc/self/fd/{descriptor}", "w", format=kind, options=options) as container:
            container.metadata["comment"] = film.note.json
            stream: Any = container.add_stream(codec, rate=Fraction(film.fps))
            stream.height, stream.width = film.height + film.height % 2, film.width + film.width % 2
            stream.pix_fmt = "yuv420p"
            stream.options = codec_options
            for name, value in COLOURS.items():
                setattr(stream.codec_context, name, value)
            for pixels in frames:
                container.mux(stream.encode(video_frame(even_sized(pixels))))
            container.mux(stream.encode(None))
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()
    finally:
        os.close(descriptor)
