"""A look at a generation under way, for whoever watches it: one frame from the latents, without the autoencoder."""

from __future__ import annotations

import logging
import time
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from webui.engine.base import Snapshot

SECONDS = 0.5  # between two looks: nobody sees more, and each costs a few milliseconds of the engine's thread
LARGEST = 256  # pixels on the longer side

# How Stable Diffusion 1's four latent channels show as red, green and blue: a least-squares fit that every diffusion
# user interface carries in about this form. For other latents it gives false colours, which is still a picture.
RED_GREEN_BLUE = np.array(
    [[0.350, 0.230, 0.320], [0.316, 0.490, 0.170], [-0.189, 0.180, 0.260], [-0.180, -0.270, -0.720]], np.float32
)

log = logging.getLogger(__name__)


class Previewer:
    """For one generation; a preview that fails costs the generation nothing."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._broken = False

    def look(self, snapshot: Snapshot) -> bytes | None:
        """A JPEG, or None: it is too early for the next one, or there is nothing to see."""
        now = time.monotonic()
        if self._broken or now < self._next_at:
            return None
        try:
            picture = snapshot.picture() if snapshot.picture is not None else picture_of(snapshot)
            self._next_at = now + SECONDS
            return None if picture is None else encode_jpeg(picture)
        except Exception:
            log.exception("no preview")
            self._broken = True
            return None


def picture_of(snapshot: Snapshot) -> NDArray[np.uint8] | None:
    """The middle frame of (1, channels, frames, h, w) latents as (h, w, 3)."""
    latents = snapshot.tensors.get("latents")
    if latents is None or latents.ndim != 5 or latents.shape[1] < 3:
        return None
    frame = np.nan_to_num(latents[0, :, latents.shape[2] // 2].astype(np.float32))
    frame /= max(1.0, float(frame.std()))  # some samplers begin with noise a dozen times as strong
    colours = RED_GREEN_BLUE if frame.shape[0] == 4 else np.eye(frame.shape[0], 3, dtype=np.float32)
    pixels = np.einsum("chw,cr->hwr", frame, colours) / 2 + 0.5
    picture: NDArray[np.uint8] = (pixels.clip(0, 1) * 255).astype(np.uint8)
    return picture


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    step = -(-max(picture.shape[:2]) // LARGEST)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[::step, ::step]), format="rgb24")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuvj420p"
    codec.time_base = Fraction(1)
    codec.options = {"qmin": "4", "qmax": "4"}
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
