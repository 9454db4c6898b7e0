"""This project's engine as the WebUI's engine process runs it; answers orders like `plain.py`.

python ours.py MODELS DEVICE THREADS OPTIONS       OPTIONS is a JSON object of engine settings
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "images" / "webui"))

import torch  # noqa: E402

from webui.engine.diffusers import DiffusersEngine, Quiet  # noqa: E402
from webui.request import MemorySettings, VideoRequest  # noqa: E402
from webui.settings import EngineSettings  # noqa: E402
from webui.video.film import Film  # noqa: E402
from webui.video.note import make_note  # noqa: E402
from webui.video.stream import encode_mp4  # noqa: E402


class Steps(Quiet):
    """Notes when each step was done, as the one who waits for it hears of it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, done: int, snapshot: Any = None) -> None:
        self.times.append(time.perf_counter())


def generate(engine: DiffusersEngine, order: dict[str, Any]) -> dict[str, Any]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    request = VideoRequest(
        order["prompt"],
        width=order["width"],
        height=order["height"],
        frames=order["frames"],
        steps=order["steps"],
        seed=order["seed"],
        model=order.get("model"),
        sampler=order.get("sampler"),
        context_batch_size=order.get("context"),
        context_overlap=order["context"] - order["stride"] if order.get("context") else None,
    )
    steps, began, worked = Steps(), time.perf_counter(), time.process_time()
    frames = engine.generate(request, steps, MemorySettings()).frames
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    film = Film(order["frames"], order["width"], order["height"], 8, 0, make_note({}))
    encode_mp4(frames, film)
    encoded = time.perf_counter() - began - seconds
    peak = torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else None
    loaded = sum(load.seconds for load in engine.loads())
    engine.release()
    return {
        "seconds": seconds - loaded,
        "cpu_seconds": worked,
        "step_seconds": (steps.times[-1] - began - loaded) / order["steps"],
        "load_seconds": loaded,
        "encode_seconds": encoded,
        "peak_mib": peak,
        "sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
    }


def main() -> None:
    models, device, threads, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    settings = EngineSettings(kind="diffusers", device=device, threads=threads, models_dir=models, **options)
    imported = time.perf_counter()
    engine = DiffusersEngine(settings)
    engine.load()
    engine.loads()
    facts = {"import_seconds": imported - STARTED, "load_seconds": time.perf_counter() - imported}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        print(json.dumps(generate(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
