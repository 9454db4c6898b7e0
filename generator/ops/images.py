"""Builds the appliance's images: what to build is data, worked out first; then built side by side.

An image carries the hash of everything it was made from in the label `appliance.inputs`; where that still fits,
nothing is built, so a second run costs a second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from generator.docker import Engine, Image
from generator.errors import GeneratorError, UserError
from generator.ops import torch_choice
from generator.ops.base_image import ensure_base
from generator.ops.build_inputs import folder_hash, inputs_hash
from generator.ops.image_plan import DEFAULT_NAMES, INPUTS_LABEL, Build, build_args, plan_builds
from generator.ops.torch_choice import TorchChoice
from generator.progress import Progress, Task

BUILD_TIMEOUT = 3600.0
PUSH_TIMEOUT = 3600.0
TITLE_LENGTH = 100
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class BuildsFailed(GeneratorError):  # noqa: N818  (what is the case)
    """Some images could not be built; the message holds each one's last log lines."""

    exit_code = 2


@dataclass(frozen=True)
class BuildResult:
    name: str
    tags: tuple[str, ...]
    image_id: str
    size_bytes: int
    built: bool
    """False: it was up to date."""


def build_images(
    engine: Engine,
    root: Path,
    *,
    tag: str = "dev",
    only: Sequence[str] = (),
    push: str | None = None,
    torch: str = "auto",
    torch_index: str | None = None,
    mirror: str | None = None,
    jobs: int = 2,
    refresh: bool = False,
    progress: Progress,
) -> list[BuildResult]:
    """Builds what is out of date, in the order of the plan. `refresh` builds all anew, with today's Debian fixes."""
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} builds at a time would build nothing")
    names = tuple(only) or DEFAULT_NAMES
    choice = _choose_torch(engine, names, torch, torch_index)
    if choice.notice:
        progress.say(choice.notice)
    with _inputs_folder(choice) as (wheels, secrets):
        plan = plan_builds(root, names, tag=tag, revision=revision(root), torch=choice, wheels=wheels, secrets=secrets)
        check_contexts(plan)
        for build in plan:
            suite = dict(build.args).get("SUITE")
            if suite is not None:
                ensure_base(engine, suite, progress=progress, mirror=mirror, refresh=refresh)
        runner = _Runner(engine, progress, push, refresh)
        results = runner.run_all(plan, jobs)
    if push:
        _push(engine, results, push.rstrip("/"), progress)
    return results


def _choose_torch(engine: Engine, names: Sequence[str], option: str, index: str | None) -> TorchChoice:
    if {"webui-cuda", "webui-cpu"} <= set(names):
        raise UserError("webui-cuda and webui-cpu take torch from different indexes: build them in two runs")
    if "webui-cuda" in names:
        return torch_choice.choose_cuda(index)
    if "webui-cpu" in names:
        return torch_choice.choose_torch(option, index, torch_choice.find_wheels(), _machine(engine))
    return TorchChoice("debian")


def check_contexts(plan: Sequence[Build]) -> None:
    gone = sorted({str(build.dockerfile) for build in plan if not build.dockerfile.is_file()})
    if gone:
        raise UserError(f"{', '.join(gone)}: missing; the checkout is not whole, put it back with `git restore images`")


class _Runner:
    def __init__(self, engine: Engine, progress: Progress, registry: str | None, refresh: bool) -> None:
        self._engine = engine
        self._progress = progress
        self._registry = registry
        self._refresh = refresh

    def run_all(self, plan: Sequence[Build], jobs: int) -> list[BuildResult]:
        """Side by side as far as `needs` allow. After a failure nothing new starts, what runs may finish."""
        results: dict[str, BuildResult] = {}
        errors: dict[str, Exception] = {}
        running: dict[Future[BuildResult], str] = {}
        waiting = list(plan)
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            while waiting or running:
                ready = [] if errors else [build for build in waiting if set(build.needs) <= results.keys()]
                # No more than may run: what the pool has queued would start even after a failure.
                for build in ready[: jobs - len(running)]:
                    waiting.remove(build)
                    running[pool.submit(self.run_one, build)] = build.name
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    try:
                        results[name] = future.result()
                    except (GeneratorError, OSError) as error:  # the checkout may change, or the disk be full
                        errors[name] = error
        if errors:
            raise BuildsFailed("\n\n".join(f"image {name}: {error}" for name, error in errors.items()))
        return [results[build.name] for build in plan]

    def run_one(self, build: Build) -> BuildResult:
        inputs = inputs_hash(build.context, build.dockerfile, self._facts(build))
        found = None if self._refresh else self._engine.image(build.tags[0])
        if found is not None and found.labels.get(INPUTS_LABEL) == inputs:
            for tag in build.tags[1:]:
                self._engine.tag(build.tags[0], tag)
            self._progress.say(f"{build.name}: up to date")
            return _result(build, found, built=False)
        cache = f"{self._registry}/{build.tags[-1]}" if self._registry else None
        args = build_args(build, inputs, cache=cache, proxies=[name for name in PROXY_VARIABLES if name in os.environ])
        with self._progress.task(build.name) as task:
            tracker = Tracker(task)
            for line in self._engine.build([*(["--no-cache"] if self._refresh else []), *args], timeout=BUILD_TIMEOUT):
                tracker.read(line)
            image = self._engine.image(build.tags[0])
            if image is None:
                raise GeneratorError(f"{build.tags[0]}: the build succeeded but left no image")
            task.finish(f"built, {image.size_bytes / 1e6:.0f} MB")
        return _result(build, image, built=True)

    def _facts(self, build: Build) -> Iterator[str]:
        yield from (f"{key}={value}" for key, value in (("target", build.target), *build.args))
        for ref in build.bases:
            base = self._engine.image(ref)
            yield f"{ref}={base.id if base else 'not here'}"
        for name, folder in build.contexts:
            if name == "wheels":
                # A wheel's name and size say what it is; reading 200 MB would cost more than the whole check.
                yield from (f"{name}/{path.name} {path.stat().st_size}" for path in sorted(folder.iterdir()))
            else:
                yield f"{name} {folder_hash(folder)}"


def _result(build: Build, image: Image, *, built: bool) -> BuildResult:
    return BuildResult(build.name, build.tags, image.id, image.size_bytes, built)


class Tracker:
    """Reads BuildKit's plain log: `#7 [build 2/5] RUN …`, `#7 0.3 output`, `#7 DONE 0.4s`."""

    LINE = re.compile(r"#(?P<step>\d+) (?P<text>.*)")

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._title = "starting"

    def read(self, line: str) -> None:
        found = self.LINE.match(line)
        if not found:
            return
        step, text = found["step"], found["text"]
        if step not in self._seen and text.startswith("[") and not text.startswith("[internal]"):
            self._title = " ".join(text.split())[:TITLE_LENGTH]
        self._seen.add(step)
        if text.startswith(("DONE", "CACHED")):
            self._done.add(step)
        self._task.update(self._title, len(self._done), len(self._seen))


def _push(engine: Engine, results: Sequence[BuildResult], registry: str, progress: Progress) -> None:
    for result in results:
        ref = f"{registry}/{result.tags[-1]}"
        engine.tag(result.tags[0], ref)
        with progress.task(f"push {result.name}") as task:
            for line in engine.push(ref, timeout=PUSH_TIMEOUT):
                task.update(line)
            task.finish(ref)


def _machine(engine: Engine) -> str:
    architecture = str(engine.info()["Architecture"])
    return torch_choice.MACHINE_OF_ARCHITECTURE.get(architecture, architecture)


def revision(root: Path) -> str:
    """The commit the folder is at, or `unknown` where it is no checkout."""
    argv = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


@contextmanager
def _inputs_folder(torch: TorchChoice) -> Iterator[tuple[Path, list[tuple[str, Path]]]]:
    """The wheel alone in a folder (a build context is sent whole), and the files to hand over as secrets."""
    with tempfile.TemporaryDirectory(prefix="animatediff-ha-build-") as name:
        folder = Path(name)
        wheels = folder / "wheels"
        wheels.mkdir()
        if torch.wheel is not None:
            try:
                os.link(torch.wheel, wheels / torch.wheel.name)
            except OSError:  # another file system, or not ours to link
                shutil.copy2(torch.wheel, wheels / torch.wheel.name)
        nothing = folder / "empty"
        nothing.touch()
        bundle = Path("/etc/ssl/certs/ca-certificates.crt")
        named = {
            "ca_bundle": _named("BUILD_CA_BUNDLE") or (bundle if bundle.is_file() else nothing),
            "pip_conf": _named("BUILD_PIP_CONF") or nothing,
        }
        yield wheels, list(named.items())


def _named(variable: str) -> Path | None:
    """The file that it names. One that is not there was meant: without it other packages might come, or none."""
    if not (value := os.environ.get(variable)):
        return None
    if not Path(value).is_file():
        raise UserError(f"{variable}: {value} is no file; name one, or unset it")
    return Path(value)
