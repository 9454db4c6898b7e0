"""Pictures and clips that travel inside a request as base64: checked from their headers first, then decoded in bounds.

Nothing here follows a reference to another file: the containers are opened by the one demuxer their first bytes name.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import av

TEXT_LIMIT = 15 << 20
SIDE_LIMIT = 4096
PIXELS_LIMIT = 20 * SIDE_LIMIT**2  # of all pictures of a request together
FRAMES_LIMIT = 128
PACKETS_LIMIT = 8192
TELL_FRAMES = 16
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
DATA_URI = re.compile(r"data:[\w.+/-]{1,100}(;[\w.=+-]{1,100}){0,4},")
TOO_LARGE = f"must not have more than {SIDE_LIMIT} x {SIDE_LIMIT} pixels"

Pixels = NDArray[np.uint8]


class MediaError(Exception):
    """What is wrong with a picture or a clip; reads as the end of a sentence about it."""


def decode_base64(text: str) -> bytes:
    """With or without a data-URI prefix; white space is passed over. Raises MediaError."""
    prefix = DATA_URI.match(text)
    try:
        return base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("is not base64") from error


def image_size(text: str) -> tuple[int, int]:
    """(width, height) by the header alone. Raises MediaError."""
    with _opened(decode_base64(text)) as image:
        width, height = image.size
        return width, height


def read_image(text: str, size: tuple[int, int] | None = None) -> Pixels:
    """(height, width, 3) RGB, upright, transparent parts white; stretched to (width, height) `size` if one is given.

    Raises MediaError, also for a picture that ends too soon.
    """
    with _opened(decode_base64(text)) as image:
        try:
            picture: Image.Image = ImageOps.exif_transpose(image)
            if picture.has_transparency_data:
                above = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
            picture = picture.convert("RGB")
            if size is not None and picture.size != size:
                picture = picture.resize(size, Image.Resampling.LANCZOS)
        except Exception as error:  # decoders of three formats, each with its own
            raise MediaError(f"is damaged: {type(error).__name__}") from error
        return np.asarray(picture)


def _opened(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise MediaError("is not a PNG, JPEG or WebP image") from error
    except Exception as error:
        raise MediaError(f"is damaged: {type(error).__name__}") from error
    if max(image.size) > SIDE_LIMIT:
        image.close()
        raise MediaError(TOO_LARGE)
    return image


def probe_video(text: str) -> None:
    """Raises MediaError unless this is an MP4, WebM or GIF whose first frame can be decoded."""
    if next(_frames(decode_base64(text), None), None) is None:
        raise MediaError("holds no frames")


def read_video(
    text: str, frames: int, size: tuple[int, int], told: Callable[[int, int], None] = lambda done, parts: None
) -> Pixels:
    """The first `frames` (≤ FRAMES_LIMIT) frames as (frames, height, width, 3) RGB, upright, stretched to (width,
    height).

    A shorter clip is slowed down: its frames repeat evenly. `told` hears now and then of how many of them are read.
    Raises MediaError, and what `told` does.
    """
    pictures: list[Pixels] = []
    for picture in _frames(decode_base64(text), size):
        pictures.append(picture)
        if len(pictures) == min(frames, FRAMES_LIMIT):
            break
        if len(pictures) % TELL_FRAMES == 0:
            told(len(pictures), frames)
    if not pictures:
        raise MediaError("holds no frames")
    return np.stack([pictures[index * len(pictures) // frames] for index in range(frames)])


def _frames(content: bytes, size: tuple[int, int] | None) -> Iterator[Pixels]:
    """(height, width, 3) RGB in the order they are shown; at most PACKETS_LIMIT packets are looked at."""
    import av  # only once there is a clip: FFmpeg's libraries are large, and the server must start fast

    try:
        # Decoders refuse larger pictures before they make room for them, as the container's first look does.
        bound = {"max_pixels": str(SIDE_LIMIT**2)}
        with av.open(io.BytesIO(content), format=_container(content), options=bound) as container:
            if not container.streams.video:
                raise MediaError("holds no pictures")
            stream = container.streams.video[0]
            context = stream.codec_context
            if max(context.width, context.height) > SIDE_LIMIT:
                raise MediaError(TOO_LARGE)
            context.thread_count = 1
            context.options = bound
            for number, packet in enumerate(container.demux(stream)):
                if number >= PACKETS_LIMIT:
                    break
                for frame in packet.decode():
                    if max(frame.width, frame.height) > SIDE_LIMIT:
                        raise MediaError(TOO_LARGE)
                    yield _upright(frame, size)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(f"is damaged: {type(error).__name__}") from error


def _upright(frame: av.VideoFrame, size: tuple[int, int] | None) -> Pixels:
    """Telephones film lying, and write down by how many degrees a player has to turn it."""
    turns = round(frame.rotation / 90) % 4  # anticlockwise
    width, height = size or (None, None)
    if turns % 2:
        width, height = height, width
    pixels = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray().astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _container(content: bytes) -> str:
    if content[4:8] == b"ftyp":
        return "mp4"
    if content.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    raise MediaError("is not an MP4, WebM or GIF clip")
