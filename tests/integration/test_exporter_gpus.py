"""The exporter's GPUs through NVIDIA's own bindings, with a library in NVML's place that obeys a text file."""

from __future__ import annotations

import ctypes
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from appliance.exporter.gpu import GpuState, GpuWatch, nvml, watch, xids
from appliance.exporter.gpu import readings as rules
from appliance.exporter.gpu.nvml import LostGpuError, find_gpus, read_facts, read_gpu
from appliance.exporter.gpu.readings import GpuFacts, GpuReading
from tests import nvml as stub
from tests.nvml import State, uuid_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nvml")


def _use(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    state = State(tmp_path / "nvml.txt")
    state.write()
    monkeypatch.setenv("NVML_STUB_STATE", str(state.path))
    own = shutil.copy(library / stub.SONAME, tmp_path)  # loaded anew, whatever the test before has left open
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(own)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return state


@pytest.fixture
def gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    library = folder / "new"
    return _use(library if library.exists() else stub.build(library), monkeypatch, tmp_path)


@pytest.fixture
def old_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    return _use(stub.build(folder / "old", old=True), monkeypatch, tmp_path)


@pytest.fixture
def is_open() -> Iterator[None]:
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


def read(state: State) -> GpuReading:
    state.write()
    return read_gpu(find_gpus().found[0].handle)


# --- one reading -----------------------------------------------------------------------------------------------------


def test_all_that_a_gpu_tells(gpus: State, is_open: None) -> None:
    gpus.add(0)
    assert read(gpus) == GpuReading(
        utilization_ratio=0.37,
        memory_utilization_ratio=0.12,
        memory_used_bytes=8000 * MIB,
        memory_total_bytes=24000 * MIB,
        temperature_celsius=61,
        power_watts=150.25,
        energy_joules=9000.5,
        sm_clock_hz=1.71e9,
        throttled={
            "sw_power_cap": True,
            "sw_thermal_slowdown": False,
            "hw_slowdown": False,
            "hw_thermal_slowdown": False,
            "hw_power_brake_slowdown": False,
            "sync_boost": False,
        },
        ecc_errors={"corrected": 3, "uncorrected": 0},
    )
    assert read_facts(find_gpus().found[0].handle) == GpuFacts("NVIDIA A10G", "550.54.15", "00000000:01:00.0")


def test_an_old_driver_is_asked_as_it_knows(old_driver: State, is_open: None) -> None:
    """Its memory call counts what the driver keeps for itself as used: there is no other."""
    old_driver.add(0)
    reading = read(old_driver)
    assert (reading.temperature_celsius, reading.throttled["sw_power_cap"]) == (61, True)
    assert reading.memory_used_bytes == (8000 + 400) * MIB


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("power", None, "power_watts"),
        ("power", "E999", "power_watts"),  # "Unknown Error", as some boards have it for one reading alone
        ("energy", None, "energy_joules"),
        ("temp", None, "temperature_celsius"),
        ("util", None, "utilization_ratio"),
        ("used", None, "memory_used_bytes"),
        ("sm", "E4", "sm_clock_hz"),
    ],
)
def test_what_is_not_told_is_none_and_costs_nothing_else(
    gpus: State, is_open: None, key: str, value: str | None, field: str
) -> None:
    gpus.add(0, **{key: value})
    reading = read(gpus)
    assert getattr(reading, field) is None
    assert reading.memory_total_bytes == (None if key == "used" else 24000 * MIB)
    assert reading.ecc_errors == {"corrected": 3, "uncorrected": 0}


def test_without_ecc_there_are_no_errors_rather_than_none(gpus: State, is_open: None) -> None:
    gpus.add(0, ecc_corrected=None, ecc_uncorrected=None)
    assert read(gpus).ecc_errors == {}


@pytest.mark.parametrize("error", [15, 16, 28], ids=["is lost", "reset required", "not found"])
def test_a_lost_gpu(gpus: State, is_open: None, error: int) -> None:
    gpus.add(0, error=error)
    with pytest.raises(LostGpuError):
        read(gpus)


def test_a_gpu_that_tells_nothing_at_all_is_lost(gpus: State, is_open: None) -> None:
    """Fallen out of the container's reach, as after a reload of systemd: every call is an "Unknown Error"."""
    gpus.add(0, error=999)
    with pytest.raises(LostGpuError):
        read(gpus)


def test_one_that_cannot_be_found_does_not_hide_the_others(gpus: State, is_open: None) -> None:
    gpus.add(0, enum_error=15)
    gpus.add(1)
    gpus.write()
    listed = find_gpus()
    assert [(found.index, found.uuid) for found in listed.found] == [(1, uuid_of(1))]
    assert (listed.silent, listed.is_whole) == (1, False)


# --- life ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life in seconds instead of minutes."""
    monkeypatch.setattr(watch, "READ_SECONDS", 0.1)
    monkeypatch.setattr(watch, "SURVEY_SECONDS", 0.1)
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(watch, "LONGEST_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(rules, "FRESH_SECONDS", 1.0)
    monkeypatch.setattr(rules, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(xids, "LISTEN_MS", 100)
    monkeypatch.setattr(xids, "REST_SECONDS", 0.05)


class Watched:
    def __init__(self, state: State, workers: list[str]) -> None:
        self.state = state
        self.watch = GpuWatch(workers)
        state.write()
        self.watch.start()

    def now(self) -> dict[str, GpuState]:
        return {gpu.gpu_id: gpu for gpu in self.watch.states()}

    def until(self, wanted: Callable[[dict[str, GpuState]], bool], seconds: float = 5.0) -> dict[str, GpuState]:
        deadline = time.monotonic() + seconds
        while not wanted(now := self.now()):
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        return now

    def until_ups(self, **wanted: bool | None) -> dict[str, GpuState]:
        ids = {name.removeprefix("gpu").replace("_", "-"): up for name, up in wanted.items()}
        return self.until(lambda now: {gpu_id: gpu.up for gpu_id, gpu in now.items()} == ids)


@pytest.fixture
def watched(gpus: State, quick: None) -> Iterator[Watched]:
    """Worker 0 has the GPU with index 1, worker 1 the one with index 0, and nobody the third."""
    for number in range(3):
        gpus.add(number)
    watched = Watched(gpus, [uuid_of(1), uuid_of(0)])
    watched.until_ups(gpu0=True, gpu1=True, gpunvml_2=True)
    yield watched
    for values in gpus.gpus.values():
        values.pop("hang", None)
    gpus.write()
    watched.watch.stop()
    time.sleep(0.3)  # its threads are inside no more when the next test replaces the library


def test_a_gpus_id_is_its_workers_number(watched: Watched) -> None:
    now = watched.now()
    assert {gpu_id: gpu.uuid.lower() for gpu_id, gpu in now.items()} == {
        "0": uuid_of(1).lower(),
        "1": uuid_of(0).lower(),
        "nvml-2": uuid_of(2).lower(),
    }
    assert all(gpu.reading is not None and gpu.facts is not None for gpu in now.values())


def test_a_gpu_gets_lost_and_comes_back(watched: Watched) -> None:
    watched.state.gpus[uuid_of(1)]["error"] = 15
    watched.state.write()
    now = watched.until_ups(gpu0=False, gpu1=True, gpunvml_2=True)
    assert (now["0"].reading, now["0"].facts) == (None, None)
    del watched.state.gpus[uuid_of(1)]["error"]
    watched.state.write()
    watched.until_ups(gpu0=True, gpu1=True, gpunvml_2=True)

    def is_heard(now: dict[str, GpuState]) -> bool:
        watched.state.xids.append((uuid_of(1), 31))
        watched.state.write()
        return bool(now["0"].xids)

    watched.until(is_heard)


def test_a_gpu_disappears_altogether_and_another_one_appears(watched: Watched) -> None:
    gone = watched.state.gpus.pop(uuid_of(1))
    watched.state.add(7)
    watched.state.write()
    now = watched.until_ups(gpu0=False, gpu1=True, gpunvml_2=True, gpunvml_3=True)
    assert now["nvml-2"].uuid == uuid_of(2), "its index is 1 now, and its name what it was"
    watched.state.gpus[uuid_of(1)] = gone
    watched.state.write()
    watched.until(lambda now: now["0"].up is True)


def test_a_gpu_that_hangs_holds_up_nobody(watched: Watched) -> None:
    watched.state.gpus[uuid_of(1)]["hang"] = 1
    watched.state.write()
    watched.until_ups(gpu0=False, gpu1=True, gpunvml_2=True)
    watched.state.gpus[uuid_of(0)]["util"] = 99
    watched.state.write()
    watched.until(lambda now: now["1"].reading is not None and now["1"].reading.utilization_ratio == 0.99)
    begin = time.monotonic()
    watched.now()
    assert time.monotonic() - begin < 0.05
    del watched.state.gpus[uuid_of(1)]["hang"]
    watched.state.write()
    watched.until_ups(gpu0=True, gpu1=True, gpunvml_2=True)


def test_xids_are_counted_by_gpu(watched: Watched) -> None:
    watched.until(lambda now: all(gpu.xids is not None for gpu in now.values()))
    watched.state.xids += [(uuid_of(1), 79), (uuid_of(1), 79), (uuid_of(0), 43), (uuid_of(0), 123456)]
    watched.state.write()
    now = watched.until(lambda now: (now["1"].xids or {}).get("other") == 1)
    assert now["0"].xids == {"79": 2}
    assert now["1"].xids == {"43": 1, "other": 1}
    assert now["nvml-2"].xids == {}


def test_a_gpu_that_is_lost_for_an_xid_keeps_it(watched: Watched) -> None:
    """XID 79 is the last thing that is heard of a GPU that has fallen off the bus."""
    watched.until(lambda now: now["0"].xids is not None)
    watched.state.xids.append((uuid_of(1), 79))
    watched.state.gpus[uuid_of(1)]["error"] = 15
    watched.state.write()
    now = watched.until(lambda now: now["0"].up is False and (now["0"].xids or {}).get("79") == 1)
    assert now["0"].reading is None


def test_a_driver_that_is_not_there_yet(gpus: State, quick: None) -> None:
    gpus.init_error = 9
    gpus.add(0)
    watched = Watched(gpus, [uuid_of(0)])
    watched.until_ups(gpu0=False)
    gpus.init_error = 0
    gpus.write()
    watched.until_ups(gpu0=True)
    watched.watch.stop()
    time.sleep(0.3)


def test_a_gpu_that_was_never_here_is_lost_only_where_nvml_does_not_know_its_own(gpus: State, quick: None) -> None:
    gpus.add(0)
    watched = Watched(gpus, [uuid_of(0), uuid_of(5)])
    watched.until_ups(gpu0=True, gpu1=None)
    time.sleep(2 * rules.HUNG_SECONDS)
    assert watched.now()["1"].up is None, "there is one in its stead, or none: nothing was lost"
    gpus.add(2, enum_error=15)
    gpus.write()
    watched.until_ups(gpu0=True, gpu1=False)  # it may be the one that NVML counts and cannot name
    del gpus.gpus[uuid_of(2)]["enum_error"]
    gpus.write()
    watched.until_ups(gpu0=True, gpu1=None, gpunvml_1=True)
    gpus.gpus.clear()
    gpus.write()
    watched.until_ups(gpu0=False, gpu1=False, gpunvml_1=False)  # a host whose last GPU is gone is not well
    gpus.add(5)
    gpus.write()
    watched.until(lambda now: now["1"].up is True)
    del gpus.gpus[uuid_of(5)]
    gpus.add(0)
    gpus.write()
    watched.until(lambda now: (now["0"].up, now["1"].up) == (True, False))  # now it has been met
    watched.watch.stop()
    time.sleep(0.3)


def test_a_host_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml.pynvml, "nvmlInit", missing)
    watched = Watched(State(tmp_path / "unused"), [uuid_of(0)])
    watched.until_ups(gpu0=False)
    watched.watch.stop()
