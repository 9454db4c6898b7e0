"""Two threads for each GPU, which read it and listen for its XIDs, and one that looks which GPUs there are. Nobody ever
waits for them: NVML's calls hang with the driver, and cannot be interrupted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from appliance.exporter.gpu import nvml
from appliance.exporter.gpu.door import Door, DoorClosedError
from appliance.exporter.gpu.nvml import Found, Handle, Listing, LostGpuError, NvmlError
from appliance.exporter.gpu.readings import READ_SECONDS, GpuState, Seen, Track, gpu_id_of
from appliance.exporter.gpu.xids import XidListener
from appliance.logs import OnceUntilChanged

log = logging.getLogger(__name__)
SURVEY_SECONDS = 10.0
PATIENCE_SECONDS = 3.0
# To open NVML anew takes it seconds on some machines, and its XIDs meanwhile are lost: rarer and rarer.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 3600.0


class GpuReader:
    """Reads one GPU on a thread of its own, which alone writes `track`."""

    def __init__(self, uuid: str, gpu_id: str, door: Door, stop: threading.Event) -> None:
        self.uuid, self.gpu_id = uuid, gpu_id
        self.track = Track(time.monotonic())
        self.was_met = False
        self._door, self._stop = door, stop
        self._place: tuple[int, Handle] | None = None
        self._moved = threading.Event()
        self.xids = XidListener(uuid, gpu_id, door, stop)
        threading.Thread(target=self._run, name=f"gpu-{gpu_id}", daemon=True).start()

    def meet(self, generation: int, handle: Handle) -> None:
        self.was_met = True
        if self._place is None or self._place[0] != generation:
            self._move((generation, handle))

    def miss(self) -> None:
        """It was looked for and is not there."""
        self._move(None)

    def _move(self, place: tuple[int, Handle] | None) -> None:
        self._place = place
        self.xids.meet(place)
        self._moved.set()

    def _run(self) -> None:
        self._moved.wait()
        while not self._stop.is_set():
            self._moved.clear()
            try:
                self._read()
            except Exception:  # a thread that ends would leave its GPU unwatched for good
                log.exception("reading GPU %s failed", self.gpu_id)
                self.track = replace(self.track, ended=time.monotonic(), is_lost=True)
            self._moved.wait(READ_SECONDS)

    def _read(self) -> None:
        place = self._place
        self.track = replace(self.track, began=time.monotonic())
        seen, is_lost = self.track.seen, place is None
        try:
            if place is not None:
                with self._door.inside(place[0]):
                    facts = nvml.read_facts(place[1])
                    reading = nvml.read_gpu(place[1])
                seen = Seen(time.monotonic(), facts, reading)
        except LostGpuError:
            is_lost = True
        except DoorClosedError:
            pass  # the next survey brings a new handle
        self.track = replace(self.track, ended=time.monotonic(), is_lost=is_lost, seen=seen)


class GpuWatch:
    """`workers`: the UUIDs of the workers' GPUs in their order."""

    def __init__(self, workers: Sequence[str]) -> None:
        self._workers = tuple(workers)
        self._stop = threading.Event()
        self._door = nvml.make_door()
        self._readers: dict[str, GpuReader] = {}
        self._listing = Listing([])
        self._condition = OnceUntilChanged(log)
        self._pause = FIRST_PAUSE_SECONDS
        self._tried_at = time.monotonic()

    def start(self) -> None:
        for number, uuid in enumerate(self._workers):
            self._readers[uuid.casefold()] = GpuReader(uuid, str(number), self._door, self._stop)
        threading.Thread(target=self._survey, name="gpus", daemon=True).start()

    def stop(self) -> None:
        """Does not wait: a thread that hangs ends with the process."""
        self._stop.set()
        for reader in list(self._readers.values()):
            reader.miss()

    def states(self) -> list[GpuState]:
        """At once, whatever NVML is doing."""
        now = time.monotonic()
        return [self._state(reader, now) for reader in list(self._readers.values())]

    def _state(self, reader: GpuReader, now: float) -> GpuState:
        track = reader.track
        up = track.is_up(now)
        if not reader.was_met and self._listing.is_whole:
            up = None  # was taken out, or never was: GpuUnseen, which sees that it is not told, knows what to do
        facts, reading = (track.seen.facts, track.seen.reading) if up and track.seen else (None, None)
        return GpuState(reader.gpu_id, reader.uuid, up, facts, reading, reader.xids.counts())

    def _survey(self) -> None:
        while not self._stop.is_set():
            try:
                self._listing = self._look_around()
            except (NvmlError, DoorClosedError) as error:
                self._listing = Listing([])
                self._condition.failing(f"NVML does not work: {error}", event="nvml_failed")
                self._miss_others(set())
            except Exception:
                log.exception("looking for GPUs failed")
            self._stop.wait(SURVEY_SECONDS)

    def _look_around(self) -> Listing:
        if not self._door.is_open or self._should_open_anew(time.monotonic()):
            self._door.open_anew(PATIENCE_SECONDS)
        with self._door.inside() as generation:
            listing = nvml.find_gpus()
        self._meet(generation, listing.found)
        self._condition.fine("NVML works again", event="nvml_works")
        return listing

    def _should_open_anew(self, now: float) -> bool:
        """A GPU that came back is seen only then. Not while one hangs: the door would stay shut to the others."""
        tracks = [reader.track for reader in self._readers.values()]
        if all(track.is_up(now) is not False for track in tracks):
            self._pause, self._tried_at = FIRST_PAUSE_SECONDS, now
            return False
        if now - self._tried_at < self._pause or any(track.is_hung(now) for track in tracks):
            return False
        self._pause, self._tried_at = min(LONGEST_PAUSE_SECONDS, 2 * self._pause), now
        return True

    def _meet(self, generation: int, found: list[Found]) -> None:
        for gpu in found:
            key = gpu.uuid.casefold()
            if key not in self._readers:
                taken = {reader.gpu_id for reader in self._readers.values()}
                gpu_id = gpu_id_of(gpu.uuid, gpu.index, self._workers, taken)
                self._readers[key] = GpuReader(gpu.uuid, gpu_id, self._door, self._stop)
            self._readers[key].meet(generation, gpu.handle)
        self._miss_others({gpu.uuid.casefold() for gpu in found})

    def _miss_others(self, found: set[str]) -> None:
        for key, reader in self._readers.items():
            if key not in found:
                reader.miss()
