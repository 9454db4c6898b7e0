"""A clip written to a folder in every format that was asked for: all of the files, or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from webui.durable import sync, write_file
from webui.engine.base import Clip, EngineError, StorageError, Told, nobody
from webui.request import FORMATS, VideoRequest
from webui.video.film import Film, Pixels
from webui.video.gif import encode_gif
from webui.video.note import make_note
from webui.video.png import encode_pngs
from webui.video.stream import encode_mp4, encode_webm
from webui.video.webp import encode_webp

TELL_FRAMES, TELL_SECONDS = 8, 1.0
MEDIA_TYPES = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "webp": "image/webp",
    "webm": "video/webm",
    "frames": "image/png",
}
PASSES = {"gif": 2}  # how often a format looks at every frame, where it is not once
STORAGE_FAULTS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
        *(errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM),
    }
)
"""What a result may meet through no fault of its own."""


@dataclass(frozen=True)
class ResultFile:
    name: str
    media_type: str
    size_bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_result(
    clip: Clip,
    request: VideoRequest,
    folder: Path,
    told: Told = nobody,
    wait: Callable[[int], None] = lambda frames: None,
    prepare: Callable[[], object] = lambda: None,
) -> list[ResultFile]:
    """The files in the order of FORMATS, on disk when this returns; after an error none of them is left.

    `told` hears now and then how much is done of how much. `wait` returns when the clip has so many frames, and
    `prepare` is called before the folder is needed. What they raise ends the work. Raises EngineError when the disk
    refuses.
    """
    frames, height, width, _ = clip.frames.shape
    film = Film(frames, width, height, request.fps, request.loop_number, make_note(clip.parameters))
    kinds = [kind for kind in FORMATS if kind in request.format]
    count = _Count(told, wait, len(clip.frames) * sum(PASSES.get(kind, 1) for kind in kinds))
    written: list[ResultFile] = []
    try:
        for kind in kinds:
            for name, content in _contents(kind, lambda: count.over(clip.frames), film):
                if not written:
                    prepare()
                written.append(ResultFile(name, MEDIA_TYPES[kind], len(content), hashlib.sha256(content).hexdigest()))
                write_file(folder / name, content)
        sync(folder)
    except BaseException as error:
        for file in written:
            with contextlib.suppress(OSError):
                (folder / file.name).unlink()
        if isinstance(error, OSError):
            message = f"the result cannot be written: {error}"
            raise StorageError(message) if error.errno in STORAGE_FAULTS else EngineError("UNKNOWN", message) from error
        raise
    return written


class _Count:
    """How much of the frames has been looked at, over all formats."""

    def __init__(self, told: Told, wait: Callable[[int], None], total: int) -> None:
        self._told, self._wait = told, wait
        self._done, self._total = 0, total
        self._told_at = time.monotonic()

    def over(self, frames: Iterable[Pixels]) -> Iterator[Pixels]:
        for number, pixels in enumerate(frames, start=1):
            self._wait(number)
            yield pixels
            self._done += 1
            late = time.monotonic() - self._told_at >= TELL_SECONDS
            if late or self._done % TELL_FRAMES == 0 or self._done == self._total:
                self._told_at = time.monotonic()
                self._told(self._done, self._total)


def _contents(kind: str, frames: Callable[[], Iterable[Pixels]], film: Film) -> Iterator[tuple[str, bytes]]:
    if kind == "mp4":
        yield "video.mp4", encode_mp4(frames(), film)
    elif kind == "gif":
        yield "video.gif", encode_gif(frames, film)
    elif kind == "webp":
        yield "video.webp", encode_webp(frames(), film)
    elif kind == "webm":
        yield "video.webm", encode_webm(frames(), film)
    else:
        for number, content in enumerate(encode_pngs(frames(), film)):
            yield f"frame-{number:04}.png", content
