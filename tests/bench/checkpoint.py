"""What a checkpoint costs: its size, and how long it takes beside one denoising step.

    python tests/bench/checkpoint.py [FOLDER]

FOLDER is where checkpoints would lie (a shared mount, say); a temporary folder without it. The write happens beside
the generation, so the time is what an interrupt waits, and not what a step loses. With torch and diffusers installed
the last lines measure a step of the tiny pipeline; a real model's step takes longer, and its checkpoints the same.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "images" / "webui"))

import numpy as np  # noqa: E402

from webui import checkpoint  # noqa: E402
from webui.engine.base import Snapshot  # noqa: E402
from webui.request import MemorySettings, VideoRequest  # noqa: E402

IDENTITY = checkpoint.Identity("f", "r")
REPEATS = 15


def median_ms(work: Callable[[int], object]) -> float:
    times = []
    for number in range(1, REPEATS + 1):
        started = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def made_up(step: int, frames: int, size: int, kind: type) -> Snapshot:
    latents = np.random.default_rng(1).standard_normal((1, 4, frames, size // 8, size // 8)).astype(kind)
    return Snapshot(step, 1, {"latents": latents, "random": np.zeros(5056, np.uint8)})


def measure_files(folder: Path) -> None:
    print(f"{'frames':>6} {'pixels':>6} {'type':>8} {'KiB':>8} {'write ms':>9} {'read ms':>8}")
    for frames, size, kind in [
        (16, 64, np.float32),
        (16, 512, np.float16),
        (32, 512, np.float16),
        (32, 768, np.float16),
        (128, 1024, np.float32),
    ]:
        made = made_up(1, frames, size, kind)

        def write(step: int, made: Snapshot = made) -> None:
            checkpoint.write(folder, 1, Snapshot(step, made.seed, made.tensors), IDENTITY)
            checkpoint.prune(folder, 1, step)

        write_ms = median_ms(write)
        path = folder / f"1-{REPEATS}.safetensors"
        read_ms = median_ms(lambda _, path=path: checkpoint.read(path, IDENTITY, 1000))  # type: ignore[misc]
        kib = path.stat().st_size / 1024
        print(f"{frames:>6} {size:>6} {kind.__name__:>8} {kib:>8.0f} {write_ms:>9.2f} {read_ms:>8.2f}")
        path.unlink()


class Steps:
    """Writes every second step's snapshot and times steps and writes apart, so that a busy machine slows down both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step_ms: list[float] = []
        self.write_ms: list[float] = []
        self._began = time.perf_counter()

    def step(self, done: int, snapshot: Snapshot | None = None) -> None:
        self.step_ms.append((time.perf_counter() - self._began) * 1000)
        if done % 2 == 0 and snapshot is not None:
            self._began = time.perf_counter()
            checkpoint.write(self.folder, 1, snapshot, IDENTITY)
            self.write_ms.append((time.perf_counter() - self._began) * 1000)
        self._began = time.perf_counter()

    def phase(self, *_: Any) -> None:
        pass

    def decoded(self, *_: Any) -> None:
        pass

    def check(self) -> None:
        pass


def measure_steps(folder: Path) -> None:
    try:
        from webui.demo_models import make_models
        from webui.engine.diffusers import DiffusersEngine
        from webui.settings import EngineSettings

        list(make_models(folder / "models"))
    except ImportError as error:
        print(f"no pipeline here: {error}")
        return
    models = EngineSettings(
        kind="diffusers", checkpoint="tiny", motion_module="tiny", models_dir=str(folder / "models")
    )
    engine = DiffusersEngine(models)
    engine.load()
    for size in (64, 128):
        steps = Steps(folder)
        engine.generate(VideoRequest("a cat", width=size, height=size, steps=20, seed=1), steps, MemorySettings())
        engine.release()
        step, write = statistics.median(steps.step_ms[1:]), statistics.median(steps.write_ms)
        ratio = f"{write / step:.3f} of it"
        print(f"tiny pipeline, 16 frames of {size} px: step {step:.1f} ms, checkpoint {write:.1f} ms, {ratio}")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        measure_files(Path(name))
        measure_steps(Path(name))


if __name__ == "__main__":
    main()
