from __future__ import annotations

import pytest

from webui.engine_environment import engine_environment
from webui.settings import EngineSettings


def test_no_network_and_as_many_threads_as_were_set() -> None:
    environ = engine_environment(EngineSettings(threads=3), {"PATH": "/bin", "OMP_NUM_THREADS": "64"})
    assert environ["PATH"] == "/bin"
    assert {environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert environ["HF_HUB_OFFLINE"] == "1"


def test_the_package_is_found_wherever_it_lies() -> None:
    own = engine_environment(EngineSettings(), {})["PYTHONPATH"]
    assert own.endswith("images/webui")
    assert engine_environment(EngineSettings(), {"PYTHONPATH": "/else"})["PYTHONPATH"] == f"{own}:/else"


@pytest.mark.parametrize(
    ("device", "environ", "kept"),
    [("cpu", {}, True), ("cuda", {}, False), ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, False)],
)
def test_only_what_computes_on_the_cpu_keeps_its_memory(device: str, environ: dict[str, str], kept: bool) -> None:
    tunables = engine_environment(EngineSettings(device=device), environ).get("GLIBC_TUNABLES", "")
    assert ("trim_threshold" in tunables) is kept
    assert environ.items() <= engine_environment(EngineSettings(device=device), environ).items()
