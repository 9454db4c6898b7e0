"""The measured systems: what each needs, in an environment of its own, and how its processes are started."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(__file__).resolve().parent / "programs"
SERVICES = ROOT / "images" / "services"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "animatediff-ha" / "bench"
OURS, REFERENCE, RECORDING = "ours", "reference", "recording"
OWN = (OURS, REFERENCE, RECORDING)  # all others are libraries


@dataclass(frozen=True)
class System:
    name: str
    needs: tuple[str, ...]  # pip's or npm's words; environments are kept by them
    submit: tuple[str, ...]
    worker: tuple[str, ...]
    prepare: tuple[str, ...] = ()
    node: bool = False
    tuned: str = ""  # what the tuned profile changes; empty: there is nothing to tune
    note: str = ""

    @property
    def is_library(self) -> bool:
        return self.name not in OWN


def python_system(name: str, program: str, needs: tuple[str, ...], **more: object) -> System:
    run = ("{bin}/python", f"{program}.py")
    words: dict[str, object] = {"submit": (*run, "submit"), "worker": (*run, "worker"), **more}
    return System(name, needs, **words)  # type: ignore[arg-type]


def all_systems() -> dict[str, System]:
    own = ("-r", str(SERVICES / "requirements.txt"))
    taskiq = ("{bin}/taskiq", "worker", "taskiq_peer:broker", "--workers", "1", "--max-async-tasks", "1")
    celery = ("{bin}/celery", "-A", "celery_peer", "worker", "--concurrency", "1", "--loglevel", "ERROR")
    systems = [
        python_system(OURS, "ours", own),
        python_system(REFERENCE, "reference", own, prepare=("{bin}/python", "reference.py", "prepare")),
        python_system(
            RECORDING,
            "recording",
            own,
            prepare=("{bin}/python", "recording.py", "prepare"),
            note="the reference that also writes what ours has to write for each job, in plain pipelines",
        ),
        python_system("streaq", "streaq_peer", ("streaq==7.2.0",), tuned="idle_timeout 3 s"),
        python_system(
            "taskiq-redis",
            "taskiq_peer",
            ("taskiq-redis==1.2.4", "taskiq[uv]"),
            worker=(*taskiq, "--max-prefetch", "1", "--log-level", "WARNING"),
            tuned="idle_timeout 3 s, which nothing renews",
            note="looks for lost jobs only when a new one comes",
        ),
        python_system("arq", "arq_peer", ("arq==0.28.0",), note="poll_delay 0.01 s, not its 0.5 s"),
        python_system("rq", "rq_peer", ("rq==3.0.0",), tuned="worker_ttl 16 s, intervals of 1 s", note="forks per job"),
        python_system(
            "celery",
            "celery_peer",
            ("celery[redis]==5.7.0",),
            worker=(*celery, "--without-gossip", "--without-mingle"),
            tuned="acks_late, visibility_timeout 3 s, which nothing renews",
        ),
    ]
    if shutil.which("node") and shutil.which("npm"):
        run = ("node", "bullmq_peer.js")
        words = ("bullmq@6.7.0", "ioredis@6.0.0")
        tuned = "lockDuration 3 s, stalledInterval 1 s"
        systems.append(System("bullmq", words, (*run, "submit"), (*run, "worker"), node=True, tuned=tuned))
    return {system.name: system for system in systems}


def environment_of(system: System, cache: Path) -> Path:
    """The system's own environment, made at its first use: the libraries' pins of redis-py exclude each other."""
    text = " ".join((sys.version, *system.needs))
    if system.needs[0] == "-r":
        text += Path(system.needs[1]).read_text(encoding="utf-8")
    label = "services" if not system.is_library else system.name
    folder = cache / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"installing {' '.join(system.needs)}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _install(system, folder)
        ready.touch()
    return folder


def _install(system: System, folder: Path) -> None:
    if system.node:
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *system.needs)
        return
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *system.needs)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}")


def command(words: tuple[str, ...], environment: Path) -> list[str]:
    return [word.replace("{bin}", str(environment / "bin")) for word in words]


def variables(system: System, environment: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "APPLIANCE_"))}
    if system.node:
        return {**plain, "NODE_PATH": str(environment / "node_modules")}
    path = [str(PROGRAMS), *([str(SERVICES)] if system.name == OURS else [])]
    return {**plain, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
