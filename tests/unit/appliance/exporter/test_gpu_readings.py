from __future__ import annotations

import threading
import time

import pytest

from appliance.exporter.families import write
from appliance.exporter.gpu.door import Door, DoorClosedError
from appliance.exporter.gpu.readings import (
    FRESH_SECONDS,
    HUNG_SECONDS,
    GpuFacts,
    GpuReading,
    GpuState,
    Seen,
    Track,
    gpu_id_of,
)
from appliance.exporter.gpu.samples import gpu_families

FACTS = GpuFacts("NVIDIA A10G", "550", "0:1")
SEEN = Seen(100.0, FACTS, GpuReading(utilization_ratio=0.5))


@pytest.mark.parametrize(
    ("track", "now", "up"),
    [
        (Track(100), 100.1, None),
        (Track(100), 100 + HUNG_SECONDS, False),
        (Track(100, began=100), 100 + HUNG_SECONDS - 0.1, None),
        (Track(100, began=100), 100 + HUNG_SECONDS, False),
        (Track(0, began=99, ended=100, seen=SEEN), 101, True),
        (Track(0, began=101, ended=100, seen=SEEN), 101 + HUNG_SECONDS - 0.1, True),
        (Track(0, began=101, ended=100, seen=SEEN), 101 + HUNG_SECONDS, False),
        (Track(0, began=99, ended=100, seen=SEEN), 100 + FRESH_SECONDS + 0.1, False),
        (Track(0, began=103, ended=104, is_lost=True, seen=SEEN), 104, False),
        (Track(103, began=103, ended=103.1, is_lost=True), 103.2, False),
    ],
    ids=[
        *("just begun", "never read", "first reading", "first reading hangs", "up", "reads", "hangs", "too old"),
        *("lost", "never there"),
    ],
)
def test_whether_a_gpu_is_up(track: Track, now: float, up: bool | None) -> None:
    assert track.is_up(now) is up


def test_gpu_ids() -> None:
    workers = ("GPU-AB", "GPU-CD")
    assert gpu_id_of("gpu-ab", 5, workers, ()) == "0"
    assert gpu_id_of("GPU-CD", 0, workers, ()) == "1"
    assert gpu_id_of("GPU-EF", 0, workers, ("0", "1")) == "nvml-0"
    assert gpu_id_of("GPU-EF", 0, workers, ("nvml-0", "nvml-1")) == "nvml-2"


def text_of(*gpus: GpuState) -> str:
    return write(gpu_families(gpus), {"node_name": "a"}).decode()


def test_a_reading_that_is_none_is_no_series() -> None:
    text = text_of(GpuState("0", "u", True, FACTS, GpuReading(temperature_celsius=0), {"79": 0}))
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert names == {
        *("nvidia_smi_gpu_up", "nvidia_smi_temperature_gpu_celsius", "nvidia_smi_gpu_info"),
        "nvidia_smi_xid_errors_total",
    }
    assert 'nvidia_smi_temperature_gpu_celsius{gpu_id="0",node_name="a",uuid="u"} 0.0' in text
    assert "nvidia_smi_power" not in text, "a family without samples is not even named"


def test_a_gpu_of_which_nothing_is_known_yet_is_not_told() -> None:
    assert text_of(GpuState("0", "u", None, None, None)) == ""
    assert 'nvidia_smi_gpu_up{gpu_id="0",node_name="a",uuid="u"} 0.0' in text_of(GpuState("0", "u", False, None, None))


def test_a_name_that_is_hostile() -> None:
    facts = GpuFacts('x"}\n evil 1\\', "", "")
    text = text_of(GpuState("0", "u", True, facts, GpuReading()))
    (line,) = (line for line in text.splitlines() if line.startswith("nvidia_smi_gpu_info"))
    assert r'name="x\"}\n evil 1\\"' in line


class Library:
    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.problem: Exception | None = None

    def open(self) -> None:
        if self.problem:
            raise self.problem
        self.opened += 1

    def close(self) -> None:
        self.closed += 1


def test_a_door_opens_anew_only_when_nobody_is_inside() -> None:
    library = Library()
    door = Door(library.open, library.close)
    with pytest.raises(DoorClosedError), door.inside():
        pass
    assert door.open_anew(1)
    with door.inside() as generation:
        assert not door.open_anew(0.05)
        assert (library.opened, library.closed) == (1, 0)
    assert door.open_anew(1)
    assert (library.opened, library.closed) == (2, 1)
    with pytest.raises(DoorClosedError), door.inside(generation):
        pass
    with door.inside(generation + 1):
        pass


def test_who_comes_while_it_opens_waits() -> None:
    library = Library()
    door = Door(library.open, library.close)
    door.open_anew(1)
    leave, order = threading.Event(), []

    def stay() -> None:
        with door.inside():
            leave.wait(5)
            order.append("left")

    def come_later() -> None:
        with door.inside() as generation:
            order.append(f"came to {generation}")

    first = threading.Thread(target=stay)
    first.start()
    time.sleep(0.05)
    opening = threading.Thread(target=door.open_anew, args=(5,))
    opening.start()
    time.sleep(0.05)
    late = threading.Thread(target=come_later)
    late.start()
    time.sleep(0.05)
    assert order == []
    leave.set()
    for thread in (first, opening, late):
        thread.join(5)
    assert order == ["left", "came to 2"]


def test_a_door_that_does_not_open_is_closed_to_all() -> None:
    library = Library()
    door = Door(library.open, library.close)
    door.open_anew(1)
    library.problem = OSError("no driver")
    with pytest.raises(OSError, match="no driver"):
        door.open_anew(1)
    assert not door.is_open
    with pytest.raises(DoorClosedError), door.inside():
        pass
    library.problem = None
    assert door.open_anew(1)
    assert library.closed == 1, "what was closed is not closed again"
