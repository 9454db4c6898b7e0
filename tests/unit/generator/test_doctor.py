from __future__ import annotations

import io
import json
import socket
from dataclasses import asdict

import pytest
from rich.console import Console

from generator.ops import doctor
from generator.ops.doctor import Check

GIB = 1 << 30


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (doctor.check_python((3, 10, 0)), "ok"),
        (doctor.check_python((3, 9, 18)), "fail"),
        (doctor.check_version("compose", (2, 26, 1), (2, 20)), "ok"),
        (doctor.check_version("compose", (2, 19, 9), (2, 20)), "fail"),
        (doctor.check_version("compose", None, (2, 20)), "fail"),
        (doctor.check_disk(15 * GIB), "ok"),
        (doctor.check_disk(15 * GIB - 1), "fail"),
        (doctor.check_memory(3 * GIB), "warn"),
        (doctor.check_memory(8 * GIB), "ok"),
        (doctor.check_cpus(1), "fail"),
        (doctor.check_cpus(2), "ok"),
        (doctor.check_base_source(debootstrap=True, apt_get=False), "ok"),
        (doctor.check_base_source(debootstrap=False, apt_get=True), "ok"),
        (doctor.check_base_source(debootstrap=False, apt_get=False), "warn"),
        (doctor.check_port(80, True), "ok"),
        (doctor.check_port(80, False), "warn"),
        (doctor.check_port(80, None), "warn"),
        (doctor.check_clock(True), "ok"),
        (doctor.check_clock(False), "warn"),
        (doctor.check_clock(None), "ok"),
        (doctor.check_toolkit(frozenset({"runc", "nvidia"})), "ok"),
        (doctor.check_toolkit(None), "warn"),
    ],
)
def test_verdicts(check: Check, verdict: str) -> None:
    assert check.verdict == verdict
    assert bool(check.hint) == (verdict != "ok")


def test_a_gpu_host_without_the_toolkit_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.check_toolkit(frozenset({"runc"}))
    assert check.verdict == "fail"
    assert "nvidia-ctk" in check.hint


def test_a_port_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert doctor._port_free(port) is False
    assert doctor._port_free(port) is True


def test_checks_print_as_a_table_and_as_json() -> None:
    checks = [Check("disk", "fail", "3 GiB free", "make [room]")]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(doctor.table(checks))
    assert "make [room]" in console.export_text()
    assert json.loads(json.dumps([asdict(one) for one in checks]))[0]["verdict"] == "fail"
