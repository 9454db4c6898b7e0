"""What this machine has and lacks, and what to do about each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from generator.docker import Engine, Version
from generator.errors import ToolError
from generator.ops.engine import MINIMUM

Verdict = Literal["ok", "warn", "fail"]

GIB = 1 << 30
DISK_GIB = 15
MEMORY_GIB = 4
MINIMUM_PYTHON = (3, 10)
INSTALL_HINT = "`python -m generator doctor --install` as root puts it right"


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    found: str
    hint: str = ""
    """What to do; empty when all is well."""


def run_checks(engine: Engine | None = None, *, ports: Sequence[int] = (80, 443), gpus: bool = True) -> list[Check]:
    """Everything, in the order in which one would put it right. `ports` are those the gateway is to bind."""
    engine = engine or Engine()
    return [
        check_python(sys.version_info[:3]),
        *_engine_checks(engine),
        check_disk(_free_bytes(engine)),
        check_memory(_memory_bytes()),
        check_cpus(len(os.sched_getaffinity(0))),
        check_base_source(shutil.which("debootstrap") is not None, shutil.which("apt-get") is not None),
        *(check_port(port, _port_free(port)) for port in ports),
        *(_gpu_checks(engine) if gpus else ()),
        check_clock(_clock_synchronised()),
    ]


def table(checks: Sequence[Check]) -> Table:
    shown = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
    for check in checks:
        shown.add_row(marks[check.verdict], *(escape(text) for text in (check.name, check.found, check.hint)))
    return shown


def check_python(version: Version) -> Check:
    found = ".".join(str(part) for part in version)
    if version < MINIMUM_PYTHON:
        return Check("python", "fail", found, "run the generator with Python 3.10 or newer")
    return Check("python", "ok", found)


def _engine_checks(engine: Engine) -> Iterator[Check]:
    why_not = engine.why_not()
    if why_not is None:
        yield Check("engine", "ok", f"answers at {engine.host or os.environ.get('DOCKER_HOST') or 'the local socket'}")
    else:
        yield Check("engine", "fail", why_not.splitlines()[0], INSTALL_HINT)
    versions = engine.versions()
    if why_not is None:
        yield check_version("engine version", versions.engine, MINIMUM["engine"])
    yield check_version("compose", versions.compose, MINIMUM["compose"])
    yield check_version("buildx", versions.buildx, MINIMUM["buildx"])


def check_version(name: str, found: Version | None, least: Version) -> Check:
    needed = ".".join(str(part) for part in least)
    if found is None:
        return Check(name, "fail", "missing", f"{needed} or newer is needed; {INSTALL_HINT}")
    text = ".".join(str(part) for part in found)
    if found < least:
        return Check(name, "fail", text, f"{needed} or newer is needed; {INSTALL_HINT}")
    return Check(name, "ok", text)


def check_disk(free_bytes: int) -> Check:
    found = f"{free_bytes / GIB:.0f} GiB free"
    if free_bytes < DISK_GIB * GIB:
        return Check("disk", "fail", found, f"images and models need {DISK_GIB} GiB where the engine keeps its data")
    return Check("disk", "ok", found)


def check_memory(total_bytes: int) -> Check:
    found = f"{total_bytes / GIB:.0f} GiB"
    if total_bytes < MEMORY_GIB * GIB:
        return Check(
            "memory", "warn", found, f"the demo wants {MEMORY_GIB} GiB; GPU hosts need what worker.memory_gib says"
        )
    return Check("memory", "ok", found)


def check_cpus(count: int) -> Check:
    if count < 2:
        return Check("cpus", "fail", str(count), "two or more are needed: the limits of some services")
    return Check("cpus", "ok", str(count))


def check_base_source(debootstrap: bool, apt_get: bool) -> Check:
    if debootstrap:
        return Check("debootstrap", "ok", "installed")
    if apt_get:
        return Check("debootstrap", "ok", "not installed; apt-get can, if no registry answers")
    return Check("debootstrap", "warn", "neither it nor apt-get", "images can only be built where a registry answers")


def check_port(port: int, free: bool | None) -> Check:
    name = f"port {port}"
    if free is None:
        return Check(name, "warn", "may not be tried by this user", "run this as root to know")
    if not free:
        return Check(
            name, "warn", "in use", "stop what listens there (`ss -ltnp`), or choose gateway.http_port/https_port"
        )
    return Check(name, "ok", "free")


def _gpu_checks(engine: Engine) -> Iterator[Check]:
    if shutil.which("nvidia-smi") is None:
        yield Check("gpu", "ok", "no NVIDIA driver; fine for the demo and for hosts without GPUs")
        return
    argv = ["nvidia-smi", "--query-gpu=index,name,uuid,driver_version", "--format=csv,noheader"]
    listing = _output(argv)
    if not listing:
        yield Check("gpu", "fail", "nvidia-smi fails", "run it by hand; a driver update wants a reboot")
        return
    yield from (Check("gpu", "ok", line.strip()) for line in listing.splitlines())
    yield check_toolkit(_runtimes(engine))


def check_toolkit(runtimes: frozenset[str] | None) -> Check:
    if runtimes is None:
        return Check("nvidia container toolkit", "warn", "unknown: the engine does not answer", INSTALL_HINT)
    # Without a registered runtime, device reservations still work through the hook on the engine's PATH.
    if "nvidia" in runtimes or shutil.which("nvidia-container-runtime-hook"):
        return Check("nvidia container toolkit", "ok", "installed")
    hint = "install nvidia-container-toolkit, then `nvidia-ctk runtime configure` and restart the engine"
    return Check("nvidia container toolkit", "fail", "missing", hint)


def check_clock(synchronised: bool | None) -> Check:
    if synchronised is None:
        return Check("clock", "ok", "no timedatectl here to ask")
    if not synchronised:
        return Check(
            "clock", "warn", "not synchronised", "`timedatectl set-ntp true`; leases and certificates rely on it"
        )
    return Check("clock", "ok", "synchronised")


def _free_bytes(engine: Engine) -> int:
    folder = Path("/var/lib/docker")
    if engine.host is None and engine.why_not() is None:
        folder = Path(str(engine.info()["DockerRootDir"]))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _port_free(port: int) -> bool | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            return None
        except OSError:
            return False
    return True


def _runtimes(engine: Engine) -> frozenset[str] | None:
    try:
        return frozenset(engine.info().get("Runtimes") or {})
    except ToolError:
        return None


def _clock_synchronised() -> bool | None:
    answer = _output(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    return None if not answer else answer.strip() == "yes"


def _output(argv: Sequence[str]) -> str:
    """Empty when the program is missing, fails or hangs: a check then says so."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
