"""Frames to a GIF with one palette for all of them, so that still parts do not flicker."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import count, pairwise
from typing import Any

import av
from av.filter import Graph

from webui.video.film import Film, Pixels, video_frame

TICK = Fraction(1, 100)  # GIF counts in hundredths of a second
SHORTEST = 2  # browsers take anything faster for 10
LOOP_BYTES = 19  # of the extension that says how often to play
# FFmpeg's time for the palette grows with the square of how many colours it looks at: seconds for a usual clip. The
# palette of so many of the pixels shows the clip as well as that of all of them.
PALETTE_PIXELS = 1 << 18
PALETTE = "stats_mode=full:reserve_transparent=0"
# Ordered dithering stays where it is from frame to frame.
USE = "dither=bayer:bayer_scale=3"


def encode_gif(frames: Callable[[], Iterable[Pixels]], film: Film) -> bytes:
    """`frames` is asked twice: for the palette, then for the picture. Above 50 frames a second it plays slower."""
    palette = _choose_palette(frames(), film)
    options = {"loop": str(film.loops), "final_delay": str(max(SHORTEST, round(100 / film.fps)))}
    file = io.BytesIO()
    with av.open(file, "w", format="gif", options=options) as container:
        stream: Any = container.add_stream("gif", rate=Fraction(100))
        stream.width, stream.height, stream.pix_fmt = film.width, film.height, "pal8"
        stream.codec_context.time_base = TICK
        for frame, start in zip(_with_palette(frames(), palette, film), starts(film.fps), strict=False):
            frame.pts, frame.time_base = start, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return with_comment(file.getvalue(), film.note.json.encode())


def starts(fps: int) -> Iterator[int]:
    """When each frame begins, in hundredths of a second."""
    time = 0
    for index in count(1):
        yield time
        time = max(time + SHORTEST, round(index * 100 / fps))


def with_comment(gif: bytes, comment: bytes) -> bytes:
    """GIF89a, 24: behind the extension that says how often to play, where readers expect it."""
    found = gif.find(b"\x21\xff\x0bNETSCAPE2.0")
    if found < 0:
        raise ValueError("the GIF does not say how often to play")
    place = found + LOOP_BYTES
    blocks = (comment[start : start + 255] for start in range(0, len(comment), 255))
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    whole = memoryview(gif)  # which may be hundreds of megabytes: parts of it are not copied on the way
    return b"".join((whole[:place], extension, whole[place:]))


def _choose_palette(frames: Iterable[Pixels], film: Film) -> Any:
    """From every so many rows and columns of all frames."""
    every = max(1, math.ceil(math.sqrt(film.count * film.width * film.height / PALETTE_PIXELS)))
    graph = Graph()
    source = _source(graph, math.ceil(film.width / every), math.ceil(film.height / every))
    _chain(source, graph.add("palettegen", PALETTE), graph.add("buffersink"))
    graph.configure()
    for index, pixels in enumerate(frames):
        source.push(video_frame(pixels[::every, ::every], pts=index, time_base=TICK))
    source.push(None)
    return graph.pull()


def _with_palette(frames: Iterable[Pixels], palette: Any, film: Film) -> Iterator[Any]:
    graph = Graph()
    source = _source(graph, film.width, film.height)
    colours = graph.add_buffer(width=palette.width, height=palette.height, format=palette.format, time_base=TICK)
    use = graph.add("paletteuse", USE)
    source.link_to(use, 0, 0)
    colours.link_to(use, 0, 1)
    _chain(use, graph.add("buffersink"))
    graph.configure()
    palette.pts, palette.time_base = 0, TICK
    colours.push(palette)
    colours.push(None)
    for index, pixels in enumerate(frames):
        source.push(video_frame(pixels, pts=index, time_base=TICK))
        yield from _pulled(graph)
    source.push(None)
    yield from _pulled(graph)


def _source(graph: Any, width: int, height: int) -> Any:
    return graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=TICK)


def _chain(*filters: Any) -> None:
    for before, after in pairwise(filters):
        before.link_to(after)


def _pulled(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
