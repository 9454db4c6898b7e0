"""A clip is encoded while its last frames are still being decoded: the one is the CPU's work, the other the GPU's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from webui.engine.base import Clip, StoppedError, Told
from webui.request import VideoRequest
from webui.video.result import ResultFile, write_result


class Ahead:
    """For one clip. `decoded` is told how many frames there are; `result` gives the files, `abandon` leaves none.

    `prepare` makes the folder, when there is something to write. `told` hears of progress once all frames are there.
    """

    def __init__(
        self, clip: Clip, request: VideoRequest, folder: Path, told: Told, prepare: Callable[[], object]
    ) -> None:
        self._clip, self._request, self._folder = clip, request, folder
        self._told, self._prepare = told, prepare
        self._ready = 0
        self._abandoned = False
        self._changed = threading.Condition()
        self._files: list[ResultFile] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self._thread.start()

    def decoded(self, ready: int) -> None:
        with self._changed:
            self._ready = ready
            self._changed.notify()

    def result(self) -> list[ResultFile]:
        """Raises what `write_result` raises. Nobody else may still be telling of frames."""
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._files

    def abandon(self) -> None:
        """No file is left, unless all were written already."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._files = write_result(self._clip, self._request, self._folder, self._tell, self._wait, self._prepare)
        except BaseException as error:  # its reader is in another thread
            self._error = error

    def _wait(self, frames: int) -> None:
        """Until so many are there."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._ready >= frames)
            if self._abandoned:
                raise StoppedError

    def _tell(self, done: int, total: int) -> None:
        if self._ready == len(self._clip.frames):
            self._told(done, total)
