"""Gives this machine a Docker engine from its own distribution's packages, and starts it.

The plan is a list of steps: shown before anything is done, and printed as commands where nothing may be done.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from generator import processes
from generator.docker import Engine, Version, Versions
from generator.errors import ToolError, UserError, tail
from generator.ops import apt
from generator.progress import Progress

# A health check's start_interval came with engine 25; compose 2.20 is the oldest the rendered files were tried with.
MINIMUM = {"engine": (25,), "compose": (2, 20), "buildx": (0, 10)}
START_SECONDS = 60.0
INSTALL_TIMEOUT = 1800.0
LOG_FILE = Path("/var/log/animatediff-ha-dockerd.log")
LOCK_FILE = Path("/run/animatediff-ha-engine.lock")
PID_FILES = {Path("/run/docker.pid"): "dockerd", Path("/run/docker/containerd/containerd.pid"): "containerd"}
APT_SOURCES = Path("/etc/apt/sources.list.d/animatediff-ha-engine.sources")
APT_PREFERENCES = Path("/etc/apt/preferences.d/animatediff-ha-engine")
NEWER_SUITE = "trixie"
DOCKER_HINT = "install Docker Engine 25 or newer with its compose and buildx plugins yourself, then run this again"

# Debian 12's own engine is too old; these few come from the next release, all else stays.
DEBIAN_12_FROM_NEWER = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
DEBIAN_12_OWN = ("runc", "iptables")
DEBIAN = ("docker.io", "docker-cli", "docker-compose", "docker-buildx")
UBUNTU = ("docker.io", "docker-compose-v2", "docker-buildx")
# Where the vendor's engine is installed it is kept, and put right from where it came.
VENDOR = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin", "docker-buildx-plugin")


@dataclass(frozen=True)
class WriteFile:
    path: Path
    content: str

    def shell(self) -> str:
        return f"cat > {shlex.quote(str(self.path))} <<'EOF'\n{self.content}EOF"


@dataclass(frozen=True)
class RunCommand:
    argv: tuple[str, ...]

    def shell(self) -> str:
        return shlex.join(self.argv)


Step = WriteFile | RunCommand


def ensure_engine(*, install: bool, progress: Progress) -> Engine:
    """A running engine of this machine, new enough. A stopped one is started; a missing one installed if `install`."""
    engine = Engine()
    why_not = engine.why_not()
    if why_not is None and not lacking(engine.versions()):
        return engine
    if os.environ.get("DOCKER_HOST"):
        raise UserError(f"DOCKER_HOST names another machine's engine: {why_not or _lack(engine)}; put it right there")
    if why_not and "permission denied" in why_not.lower():
        raise UserError(f"{why_not.splitlines()[0]}: run this as root, or join the `docker` group and log in again")
    missing = lacking(engine.versions()) if why_not is None else set() if engine_is_installed() else set(MINIMUM)
    sources = apt.read_sources(without=APT_SOURCES)  # that file is written anew as a whole
    steps = plan_install(os_release(), sources, missing, apt.installed(VENDOR)) if missing else []
    # An engine that is only stopped needs no leave to be started.
    if steps and not install:
        raise UserError(_manual(why_not or _lack(engine), steps))
    if os.geteuid() != 0:
        raise UserError(_manual("installing and starting the Docker engine needs root: run the same with sudo", steps))
    with _alone():
        if engine.why_not() is None and not lacking(engine.versions()):
            return engine
        apply(steps, progress)
        start(engine, progress)
    # Only a running engine tells its version, so an old one that was stopped shows itself here.
    left = lacking(engine.versions())
    if left and not missing:
        return ensure_engine(install=install, progress=progress)
    if left:
        raise UserError(f"still too old or missing: {_lack(engine)}; {DOCKER_HINT}")
    return engine


def engine_is_installed() -> bool:
    """The daemon and a client: either alone, as after an installation that was broken off, is none."""
    return shutil.which("docker") is not None and any(
        Path(folder, "dockerd").exists() for folder in ("/usr/sbin", "/usr/bin", "/usr/local/bin")
    )


def lacking(versions: Versions) -> set[str]:
    found: dict[str, Version | None] = {
        "engine": versions.engine,
        "compose": versions.compose,
        "buildx": versions.buildx,
    }
    return {name for name, least in MINIMUM.items() if (found[name] or (0,)) < least}


def _lack(engine: Engine) -> str:
    found = engine.versions()
    return ", ".join(
        f"{name} {_dotted(getattr(found, name))}, needs {_dotted(MINIMUM[name])}" for name in lacking(found)
    )


def _dotted(version: Version | None) -> str:
    return ".".join(str(part) for part in version) if version else "missing"


def plan_install(
    release: Mapping[str, str],
    sources: Sequence[apt.Source],
    missing: Set[str] = frozenset(MINIMUM),
    installed: Set[str] = frozenset(),
) -> list[Step]:
    """What to do on this distribution. `release` is /etc/os-release; no steps if nothing is missing."""
    if not missing:
        return []
    if "docker-ce" in installed:
        return _apt_get(VENDOR)
    name, version = release.get("ID", ""), _release_number(release.get("VERSION_ID", ""))
    if name == "debian" and version == (12,):
        return [*_newer_suite(sources), *_apt_get([*DEBIAN_12_FROM_NEWER, *DEBIAN_12_OWN])]
    # Debian testing and unstable have no number.
    if name == "debian" and (not version or version > (12,)):
        return _apt_get(DEBIAN)
    if name == "ubuntu" and version >= (22, 4):
        if not any("universe" in source.components for source in sources):
            raise UserError("Ubuntu's Docker packages are in `universe`: run `add-apt-repository universe` first")
        return _apt_get(UBUNTU)
    pretty = release.get("PRETTY_NAME", name or "this system")
    raise UserError(f"{pretty}: engines are installed on Debian 12 and newer and Ubuntu 22.04 and newer; {DOCKER_HINT}")


def _release_number(text: str) -> Version:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _newer_suite(sources: Sequence[apt.Source]) -> list[Step]:
    own = apt.main_source(sources, "bookworm")
    if own is None:
        raise UserError(f"the apt sources name no mirror of Debian 12's main component; {DOCKER_HINT}")
    steps: list[Step] = []
    # A second entry for a suite apt already has may contradict the first one's Signed-By, which apt refuses.
    wanted = []
    if apt.main_source(sources, NEWER_SUITE) is None:
        wanted.append(apt.Source(own.uri, (NEWER_SUITE,), ("main",), own.signed_by))
    secure = apt.main_source(sources, "bookworm-security")
    if secure is not None and apt.main_source(sources, f"{NEWER_SUITE}-security") is None:
        wanted.append(apt.Source(secure.uri, (f"{NEWER_SUITE}-security",), ("main",), secure.signed_by))
    if wanted:
        steps.append(WriteFile(APT_SOURCES, "\n".join(source.deb822() for source in wanted)))
    steps.append(WriteFile(APT_PREFERENCES, preferences()))
    return steps


def preferences() -> str:
    """Pins the newer release below the running one (500), and its engine above."""
    stanzas = []
    for suite in (NEWER_SUITE, f"{NEWER_SUITE}-security"):
        for packages, priority in (("*", 100), (" ".join(DEBIAN_12_FROM_NEWER), 990)):
            stanzas.append(f"Package: {packages}\nPin: release n={suite}\nPin-Priority: {priority}\n")
    return "\n".join(stanzas)


def _apt_get(packages: Sequence[str]) -> list[Step]:
    return [RunCommand(tuple(argv)) for argv in apt.install_argv(packages)]


def _manual(reason: str, steps: Sequence[Step]) -> str:
    if not steps:
        return f"{reason}\nStart it with `systemctl start docker`, or let `python -m generator doctor --install` do it"
    commands = "\n".join(step.shell() for step in steps)
    return f"{reason}\nAs root, `python -m generator doctor --install` does it, or run:\n{commands}"


def os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def apply(steps: Sequence[Step], progress: Progress) -> None:
    if steps:
        progress.say("installing a Docker engine from this system's packages:")
    for step in steps:
        progress.say("\n".join(f"  {line}" for line in step.shell().splitlines()))
    for step in steps:
        if isinstance(step, WriteFile):
            step.path.parent.mkdir(parents=True, exist_ok=True)
            step.path.write_text(step.content, encoding="utf-8")
            continue
        with progress.task(shlex.join(step.argv[:2])) as task:
            environment = {"DEBIAN_FRONTEND": "noninteractive"}
            for line in processes.stream(step.argv, env=environment, timeout=INSTALL_TIMEOUT):
                task.update(line)


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs at once: the second waits and then finds the work done."""
    with LOCK_FILE.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start(engine: Engine, progress: Progress, *, seconds: float = START_SECONDS) -> None:
    if engine.why_not() is None:
        return
    if Path("/run/systemd/system").is_dir():
        progress.say("starting the engine: systemctl enable --now docker")
        processes.run(["systemctl", "enable", "--now", "docker"], timeout=seconds)
        child = None
    else:
        progress.say(f"starting the engine: setsid dockerd (log: {LOG_FILE})")
        for pid_file, name in PID_FILES.items():
            forget_dead(pid_file, name)
        with LOG_FILE.open("ab") as log:
            # Its own session: it outlives this command and its terminal.
            child = subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
    _wait_until_up(engine, child, seconds)


def _wait_until_up(engine: Engine, child: subprocess.Popen[bytes] | None, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (why_not := engine.why_not(timeout=5)) is not None:
        ended = child.poll() if child else None
        # One that ended at once may have found another dockerd still starting; that one gets its time too.
        if time.monotonic() > deadline or (ended is not None and not _pid_alive()):
            said = _engine_log() or why_not
            raise ToolError(["dockerd"], ended, said, f"the engine did not come up: {why_not.splitlines()[0]}")
        time.sleep(0.3)


def _pid_alive() -> bool:
    return _runs(next(iter(PID_FILES)), "dockerd")


def forget_dead(pid_file: Path, name: str) -> None:
    """Remove the pid file of a daemon that was killed: where /run outlives a reboot, the number may be another's by
    now, and dockerd would take that process for itself and refuse to start."""
    if pid_file.is_file() and not _runs(pid_file, name):
        pid_file.unlink(missing_ok=True)


def _runs(pid_file: Path, name: str) -> bool:
    try:
        return Path("/proc", str(int(pid_file.read_text())), "comm").read_text().strip() == name
    except (OSError, ValueError):
        return False


def _engine_log() -> str:
    if Path("/run/systemd/system").is_dir():
        return processes.run(["journalctl", "--unit=docker", "--lines=30", "--no-pager"], timeout=10)
    return tail(LOG_FILE.read_text(errors="replace")) if LOG_FILE.is_file() else ""
