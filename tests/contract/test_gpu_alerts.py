"""What the rules make of a GPU that is missing: the exporter's own series before promtool."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from appliance.exporter.families import write
from appliance.exporter.gpu import GpuWatch
from appliance.exporter.gpu.readings import HUNG_SECONDS
from appliance.exporter.gpu.samples import gpu_families
from tests import nvml as stub
from tests.contract.test_alerts import Story, rules, run_stories
from tests.nvml import State, uuid_of

pytestmark = pytest.mark.docker
HERE, WANTED = uuid_of(0), uuid_of(5)
LOST = {"node_name": "a", "gpu_id": "1", "uuid": WANTED, "severity": "critical"}
UNSEEN = {"node_name": "a", "worker": "a/1", "uuid": WANTED, "severity": "warning"}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A host with another GPU than `WANTED`."""
    library = stub.build(tmp_path / "nvml")
    state = State(tmp_path / "nvml.txt")
    state.add(0)
    monkeypatch.setenv("NVML_STUB_STATE", str(state.path))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library / stub.SONAME)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return state


@pytest.fixture
def watch(gpus: State) -> Iterator[GpuWatch]:
    """Of an exporter that has just begun; workers 0 and 1 shall have `HERE` and `WANTED`."""
    gpus.write()
    watch = GpuWatch([HERE, WANTED])
    yield watch
    watch.stop()
    time.sleep(0.3)  # its threads are inside no more when the library is replaced


def told(watch: GpuWatch) -> list[str]:
    """The lines of `nvidia_smi_gpu_up` once it is clear what there is."""
    watch.start()
    time.sleep(HUNG_SECONDS + 0.5)
    text = write(gpu_families(watch.states()), {"node_name": "a"}).decode()
    return [line for line in text.splitlines() if line.startswith("nvidia_smi_gpu_up{")]


def tell(tag: str, folder: Path, lines: list[str], **fires: dict[str, str]) -> str:
    """What promtool has against it that exactly these alerts fire."""
    series = {name: f"{value}x40" for name, _, value in (line.rpartition(" ") for line in lines)}
    for number, uuid in enumerate((HERE, WANTED)):
        series[f'up{{job="webui", node_name="a", worker="a/{number}", uuid="{uuid}"}}'] = "1x40"
    series['up{job="exporter", node_name="a", instance="a:9400"}'] = "1x40"
    names = ("GpuLost", "GpuUnseen")
    stories = [Story(name, _told(series, fires.get(name)), "15s") for name in names]
    return run_stories(tag, folder, stories, {"gpu.yml": rules()["gpu.yml"]})


def _told(series: dict[str, str], one: dict[str, str] | None) -> dict[str, Any]:
    return {"story": "", "series": series, **({"fires": {"8m": [one]}} if one else {"silent": ["8m"]})}


def test_a_gpu_that_was_replaced_is_unseen_and_not_lost(images: str, tmp_path: Path, watch: GpuWatch) -> None:
    lines = told(watch)
    assert tell(images, tmp_path, lines, GpuUnseen=UNSEEN) == ""
    assert tell(images, tmp_path, lines, GpuLost=LOST) != "", "proof that this can fail"


@pytest.mark.parametrize(
    "spoil",
    [lambda state: state.add(5, enum_error=15), lambda state: setattr(state, "init_error", 9)],
    ids=["the exporter began anew, and the driver still counts the lost one", "there is no driver"],
)
def test_what_may_be_lost_stays_lost(
    images: str, tmp_path: Path, gpus: State, watch: GpuWatch, spoil: Callable[[State], object]
) -> None:
    spoil(gpus)
    gpus.write()
    lines = [line for line in told(watch) if WANTED in line]
    assert tell(images, tmp_path, [*lines, f'nvidia_smi_gpu_up{{node_name="a",gpu_id="0",uuid="{HERE}"}} 1'],
                GpuLost=LOST) == ""  # fmt: skip


def test_a_lost_gpu_that_the_driver_no_longer_counts_is_unseen_to_an_exporter_that_begins_anew(
    images: str, tmp_path: Path, gpus: State, watch: GpuWatch
) -> None:
    """Nobody can tell it from one that was taken out. WorkerSilent and NodeDown tell of its worker."""
    gpus.add(5, error=15)  # fell off the bus
    gpus.write()
    assert tell(images, tmp_path, told(watch), GpuLost=LOST) == ""
    del gpus.gpus[WANTED]
    gpus.write()
    anew = GpuWatch([HERE, WANTED])
    try:
        assert tell(images, tmp_path, told(anew), GpuUnseen=UNSEEN) == ""
    finally:
        anew.stop()
