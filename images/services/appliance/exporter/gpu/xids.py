"""The driver's own error reports (XIDs), which NVML hands out once and keeps nowhere: listened for all the time."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pynvml

from appliance.exporter.gpu.door import Door, DoorClosedError
from appliance.exporter.gpu.nvml import Handle, NvmlError
from appliance.logs import fields

log = logging.getLogger(__name__)
LISTEN_MS = 1000
REST_SECONDS = 5.0
HIGHEST_XID = 999


class XidListener:
    """Listens to one GPU on a thread of its own: another one may hang already while it is registered."""

    def __init__(self, uuid: str, gpu_id: str, door: Door, stop: threading.Event) -> None:
        self._uuid, self._gpu_id = uuid, gpu_id
        self._door, self._stop = door, stop
        self._place: tuple[int, Handle] | None = None
        self._counts: Counter[str] | None = None
        threading.Thread(target=self._run, name=f"xids-{gpu_id}", daemon=True).start()

    def meet(self, place: tuple[int, Handle] | None) -> None:
        """Where it is now: the door's generation and a handle; takes effect within `REST_SECONDS`."""
        self._place = place

    def counts(self) -> Mapping[str, int] | None:
        """None until NVML has once agreed to tell XIDs."""
        return None if self._counts is None else dict(self._counts)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if (place := self._place) is not None:
                    self._listen(place)
            except (NvmlError, DoorClosedError) as error:
                log.debug("GPU %s: not listening for XIDs: %s", self._gpu_id, error)
            except Exception:
                log.exception("GPU %s: listening for XIDs failed", self._gpu_id)
            self._stop.wait(REST_SECONDS)

    def _listen(self, place: tuple[int, Handle]) -> None:
        """Until it is elsewhere, or NVML fails."""
        generation, handle = place
        with self._door.inside(generation):
            events = pynvml.nvmlEventSetCreate()
        try:
            with self._door.inside(generation):
                pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
            if self._counts is None:
                self._counts = Counter()
            while not self._stop.is_set() and self._place == place:
                with self._door.inside(generation):
                    event = _next_event(events)
                if event is not None:
                    self._note(self._counts, int(event.eventData))
        finally:
            with contextlib.suppress(NvmlError, DoorClosedError), self._door.inside(generation):
                pynvml.nvmlEventSetFree(events)

    def _note(self, counts: Counter[str], xid: int) -> None:
        counts[str(xid) if 0 < xid <= HIGHEST_XID else "other"] += 1
        about = fields(gpu_id=self._gpu_id, uuid=self._uuid, event="xid", xid=xid)
        log.warning("GPU %s: the driver reports XID %d", self._gpu_id, xid, extra=about)


def _next_event(events: object) -> Any:
    try:
        return pynvml.nvmlEventSetWait_v2(events, LISTEN_MS)
    except NvmlError as error:
        if error.value != pynvml.NVML_ERROR_TIMEOUT:
            raise
        return None
