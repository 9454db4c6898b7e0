"""The raw Debian root file system every image stands on: pulled where a registry answers, else bootstrapped.

`animatediff-ha/base-raw:<suite>` is made here; `images/base/Dockerfile` turns it into `animatediff-ha/base:<suite>`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from generator import processes
from generator.docker import Engine
from generator.errors import ToolError, UserError
from generator.ops import apt
from generator.progress import Progress, Task

RAW = "animatediff-ha/base-raw"
REGISTRY_ANSWERS_WITHIN = 10.0
PULL_TIMEOUT = 600.0
BOOTSTRAP_TIMEOUT = 900.0
WORK_PREFIX = "animatediff-ha-base-"
DEBIAN_SUITES = ("trixie", "bookworm", "bullseye", "stable", "oldstable", "testing", "sid")

# What a container never reads. apt's lists and caches alone are 87 of 210 MB.
REMOVED = (
    "var/lib/apt/lists/*",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/cache/man",
    "var/log/*.log",
    "var/log/apt/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "usr/share/info/*",
    "usr/share/doc/*/*",
    # These describe the building machine.
    "etc/resolv.conf",
    "etc/hostname",
)
KEPT = ("copyright",)
DPKG_EXCLUDES = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""


def ensure_base(
    engine: Engine, suite: str, *, progress: Progress, mirror: str | None = None, refresh: bool = False
) -> str:
    """Reference of the raw base image of a Debian suite. A mirror given by name is used: then nothing is pulled."""
    ref = f"{RAW}:{suite}"
    if not refresh and engine.image(ref) is not None:
        if mirror:
            progress.say(f"base-raw {suite}: is there, and made from another mirror perhaps; --refresh makes it anew")
        return ref
    mirror = mirror or os.environ.get("APT_MIRROR")
    with progress.task(f"base-raw {suite}") as task:
        if mirror is None and _pulled(engine, suite, ref, task):
            task.finish("pulled")
            return ref
        sources = image_sources(suite, apt.read_sources(), mirror)
        _bootstrap(engine, suite, ref, sources, task)
        task.finish("bootstrapped")
    return ref


def _pulled(engine: Engine, suite: str, ref: str, task: Task) -> bool:
    upstream = f"debian:{suite}-slim"
    task.update(f"asking the registry for {upstream}")
    try:
        for line in engine.pull(upstream, first_line_within=REGISTRY_ANSWERS_WITHIN, timeout=PULL_TIMEOUT):
            task.update(line)
    except ToolError as error:
        said = error.stderr_tail.splitlines()
        task.update(f"no registry ({said[-1] if said else 'no answer'}); bootstrapping from the Debian mirror")
        return False
    engine.tag(upstream, ref)
    return True


def image_sources(suite: str, machine: Sequence[apt.Source], mirror: str | None) -> tuple[apt.Source, apt.Source]:
    """Main and security source for inside the image, from an explicit mirror or the machine's own Debian sources."""
    if mirror is None:
        own = next((one for one in (apt.main_source(machine, name) for name in (suite, *DEBIAN_SUITES)) if one), None)
        mirror = apt.resolve_uri(own.uri) if own else ""
    if not mirror:
        raise UserError(
            f"no registry answers and this machine's apt sources name no Debian mirror to bootstrap {suite} from; "
            "give one with --mirror URL or APT_MIRROR"
        )
    mirror = mirror.rstrip("/")
    secure = next((one.uri for one in machine if any(name.endswith("-security") for name in one.suites)), "")
    secure = apt.resolve_uri(secure)
    # An Ubuntu machine's security archive is not Debian's.
    if not secure.endswith("debian-security"):
        secure = f"{mirror}-security"
    for uri in (mirror, secure):
        _refuse_login(uri)
    return (
        apt.Source(mirror, (suite, f"{suite}-updates"), ("main",), apt.DEBIAN_KEYRING),
        apt.Source(secure, (f"{suite}-security",), ("main",), apt.DEBIAN_KEYRING),
    )


def _refuse_login(uri: str) -> None:
    """It would stand in every image, and in the process list while one is made."""
    _, at, host = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at:
        raise UserError(
            f"the Debian mirror at {host} is written with a login, which every image would hold; "
            "give one that needs none with --mirror URL or APT_MIRROR: a proxy that logs in, for example"
        )


def debootstrap_argv(suite: str, root: Path, mirror: str) -> list[str]:
    # An older debootstrap does not know newer suites by name; they all use the script of `sid`.
    scripts = Path("/usr/share/debootstrap/scripts")
    script = [] if (scripts / suite).exists() else [str(scripts / "sid")]
    options = ["--variant=minbase", "--include=ca-certificates", f"--keyring={apt.DEBIAN_KEYRING}"]
    return ["debootstrap", *options, suite, str(root), mirror, *script]


def tar_argv(root: Path) -> list[str]:
    hidden = [f"--exclude=./{name}" for name in ("dev", "proc", "sys")]
    return ["tar", "--create", "--numeric-owner", "--one-file-system", *hidden, "--directory", str(root), "."]


def files_to_write(sources: Sequence[apt.Source]) -> dict[str, str]:
    """Path inside the image → content."""
    return {
        "etc/apt/sources.list.d/debian.sources": "\n".join(source.deb822() for source in sources),
        "etc/apt/apt.conf.d/90slim": 'Acquire::Languages "none";\nAPT::Install-Recommends "false";\n',
        "etc/dpkg/dpkg.cfg.d/90slim": DPKG_EXCLUDES,
    }


def write_files(root: Path, files: Mapping[str, str]) -> None:
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for name, content in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")


def slim(root: Path) -> None:
    for pattern in REMOVED:
        for path in sorted(root.glob(pattern)):
            # A linked folder may lead anywhere on the building machine.
            if path.name in KEPT or not path.parent.resolve().is_relative_to(root.resolve()):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _bootstrap(engine: Engine, suite: str, ref: str, sources: Sequence[apt.Source], task: Task) -> None:
    if os.geteuid() != 0:
        raise UserError(f"bootstrapping Debian {suite} needs root: run the same command with sudo")
    _ensure_debootstrap(task)
    with _work_folder() as folder:
        root = folder / "root"
        for line in processes.stream(debootstrap_argv(suite, root, sources[0].uri), timeout=BOOTSTRAP_TIMEOUT):
            task.update(line)
        write_files(root, files_to_write(sources))
        # Fixes since the release belong in here: replaced in a later layer, the old files would stay in the image.
        for command in (["update"], ["upgrade", "--yes"]):
            argv = ["chroot", str(root), "apt-get", *command]
            for line in processes.stream(argv, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=BOOTSTRAP_TIMEOUT):
                task.update(line)
        slim(root)
        task.update("importing the root file system")
        _import(engine, root, ref)


def _ensure_debootstrap(task: Task) -> None:
    if shutil.which("debootstrap") and Path(apt.DEBIAN_KEYRING).exists():
        return
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    for command in apt.install_argv(["debootstrap", "debian-archive-keyring"]):
        for line in processes.stream(command, env=environment, timeout=BOOTSTRAP_TIMEOUT):
            task.update(line)


def _import(engine: Engine, root: Path, ref: str) -> None:
    """Tags the image only when tar has read everything: an interrupted one leaves no half image under the name."""
    argv = tar_argv(root)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tar:
        if tar.stdout is None or tar.stderr is None:
            raise AssertionError("both ends were asked for")
        image = engine.import_image(tar.stdout, changes=['CMD ["bash"]'])
        said = tar.stderr.read().decode(errors="replace")
    if tar.returncode != 0:
        engine.remove_image(image)
        raise ToolError(argv, tar.returncode, said)
    engine.tag(image, ref)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder that goes away on every exit but SIGKILL; what a killed run left behind goes away on the next."""
    parent = Path(os.environ.get("TMPDIR", "/var/tmp"))  # noqa: S108  (/tmp is often too small and mounted nodev)
    for stale in parent.glob(f"{WORK_PREFIX}*"):
        owner = stale.name.removeprefix(WORK_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _remove(stale)
    folder = Path(tempfile.mkdtemp(prefix=f"{WORK_PREFIX}{os.getpid()}-", dir=parent))
    before = _raise_on_sigterm()
    # What debootstrap makes here becomes the image's folders, which user 10001 must be able to read.
    umask = os.umask(0o022)
    try:
        yield folder
    finally:
        os.umask(umask)
        _remove(folder)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _raise_on_sigterm() -> signal._HANDLER:
    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(143)

    try:
        return signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread, which then is the one to clean up
        return None


def _remove(folder: Path) -> None:
    """Unmounts first: a debootstrap that was stopped leaves /proc mounted inside."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted((one for one in mounts if one.startswith(f"{folder}/")), reverse=True):
        processes.run(["umount", "--lazy", mount], timeout=30)
    shutil.rmtree(folder)
