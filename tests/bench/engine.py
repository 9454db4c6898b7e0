"""Our engine beside a plain diffusers script of the same settings, in one run: `python tests/bench/engine.py`.

Each side is a process of its own with the same models, threads and device (ours as the server starts it, with its
settings of memory), which waits while the other one works; the rounds alternate who begins, so that a noisy neighbour
disturbs both. Figures are medians; a ratio above 1: ours ahead.
Jobs are measured in several processes a side: where a process lies in memory makes it some percent faster or slower
for all its life, and one pair alone would show that instead.
  jobs         steps/s and frames/s: one job, equal jobs in a row, a batch of clips (ours as jobs, one after the other,
               for that is what the queue makes of `n_iter`; diffusers in one call), and a clip longer than the motion
               module's window (ours with context windows, diffusers with FreeNoise of the same window and stride);
               the processor's seconds, which say more than the clock on a machine with other work; and how much of a
               job the encoding of its MP4 takes, where it does not run beside the decoding
  start        from the process's start to the first result; loading with cold files, with files in the page cache, and
               going over to another checkpoint and back
  HTTP         the first request after the ping's ok against the median of the following ones, through the real server
  GPU          only with --device cuda: plain and SDPA attention, torch.compile, Lightning, and the peak of memory
Without --models both work with the tiny random models of the tests. Needs torch and diffusers in this interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, whose queue.py would stand for the standard library's.
sys.path[:1] = [str(ROOT), str(ROOT / "images" / "webui")]

from tests.bench.engine_peers.side import Side  # noqa: E402

WAIT_SECONDS = 1800.0
REPEATED = 6
WARM_REQUESTS = 9
WINDOW, STRIDE = 16, 12
SIDES = ("ours", "plain")
PARTS = ["jobs", "start", "http", "gpu"]


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of every measurement (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="of processes, each with all rounds (default %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default %(default)s)")
    parser.add_argument("--models", type=Path, help="a models volume, with folders in diffusers' layout")
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--other-checkpoint", help="to go over to (default: a copy of the tiny one)")
    parser.add_argument("--motion-module", default="tiny")
    parser.add_argument("--lightning", help="name of an AnimateDiff-Lightning motion module, for its row on a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--cases", default="", help="of the jobs only those whose name holds this")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    return parser.parse_args(words)


def order_of(size: int, frames: int, steps: int, **more: Any) -> dict[str, Any]:
    order = {"prompt": "a red circle moves left", "width": size, "height": size, "frames": frames, "steps": steps}
    return order | {"seed": 7} | more


class Case(NamedTuple):
    count: int
    """Of jobs, with following seeds where they are a batch."""
    order: dict[str, Any]
    batch: bool = False

    def orders(self, side: str) -> list[dict[str, Any]]:
        """What a side is asked for, one after the other: diffusers takes a batch in one call."""
        if not self.batch:
            return [self.order] * self.count
        if side == "plain":
            return [self.order | {"batch": self.count}]
        return [self.order | {"seed": self.order["seed"] + number} for number in range(self.count)]


def cases(device: str) -> dict[str, Case]:
    small, large, steps = (64, 128, 10) if device == "cpu" else (256, 512, 20)
    window = {"context": WINDOW, "stride": STRIDE}
    found = {}
    for size in (small, large):
        found[f"one job, 16 frames of {size} px"] = Case(1, order_of(size, 16, steps))
    found[f"{REPEATED} equal jobs in a row, {small} px"] = Case(REPEATED, order_of(small, 16, steps))
    for size in (small, large):
        found[f"a batch of {REPEATED} clips, {size} px"] = Case(REPEATED, order_of(size, 16, steps), batch=True)
    for size in (small, large):
        found[f"48 frames of {size} px, window 16, stride 12"] = Case(1, order_of(size, 48, steps, **window))
    return found


def measure_jobs(sides: list[Side], arguments: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    """Adds each round's figures to those of "<case> <side>"."""
    for name, case in chosen_cases(arguments).items():
        for number in range(arguments.rounds):
            for side in sides if number % 2 else sides[::-1]:
                orders = case.orders(side.name)
                answers = [side.ask(**order) for order in orders]
                seconds = sum(answer["seconds"] for answer in answers)
                step = statistics.median(answer["step_seconds"] for answer in answers)
                # A step of a call is one of each clip that it makes.
                rates = {
                    "steps": case.count / len(orders) / step,
                    "frames": case.count * case.order["frames"] / seconds,
                }
                encoding = sum(answer.get("encode_seconds", 0.0) for answer in answers) / seconds
                rates["cpu"] = sum(answer["cpu_seconds"] for answer in answers) / case.count
                rates |= {"peak": answers[-1]["peak_mib"] or 0, "encode": encoding}
                found.setdefault(f"{name} {side.name}", []).append(rates)


def chosen_cases(arguments: argparse.Namespace) -> dict[str, Case]:
    return {name: case for name, case in cases(arguments.device).items() if arguments.cases in name}


def medians(name: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name}
    for side in SIDES:
        samples = found[f"{name} {side}"]
        row |= {f"{side} {key}": statistics.median(sample[key] for sample in samples) for key in samples[0]}
    return row


def show_job(row: dict[str, Any]) -> None:
    texts = []
    for key in ("steps", "frames"):
        ours, plain = row[f"ours {key}"], row[f"plain {key}"]
        texts.append(f"{ours:8.2f} {plain:8.2f} {ours / plain:6.2f}")
    ours, plain = row["ours cpu"], row["plain cpu"]
    texts.append(f"{ours:8.2f} {plain:8.2f} {plain / ours:6.2f}")
    peak = f"   {row['ours peak']:6.0f} {row['plain peak']:6.0f} MiB" if row["ours peak"] else ""
    print(f"{row['case']:45} {'   '.join(texts)}   {row['ours encode']:6.1%}{peak}", flush=True)


def forget_files(folder: Path) -> None:
    """Out of the page cache, so that the next reader finds them cold; a network or overlay file system may refuse."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_start(models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    order = order_of(64, 2, 1)
    for number in range(arguments.rounds):
        names = ["ours", "plain"] if number % 2 else ["plain", "ours"]
        for kind in ("cold", "cached"):
            for name in names:
                if kind == "cold":
                    forget_files(models)
                began = time.perf_counter()
                side = Side(name, models, arguments)
                side.ask(**order)
                found.setdefault(f"{name} first result, {kind}", []).append(time.perf_counter() - began)
                found.setdefault(f"{name} load, {kind}", []).append(side.loaded["load_seconds"])
                side.close()
    return {name: statistics.median(values) for name, values in found.items()}


def measure_switches(sides: list[Side], other: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """To another checkpoint and back: the first way reads files, the later ones may find it in memory."""
    found: dict[str, Any] = {}
    for side in sides:
        first = side.ask(**order_of(64, 2, 1, model=other))["load_seconds"]
        later = []
        for _ in range(arguments.rounds):
            later.append(side.ask(**order_of(64, 2, 1, model=arguments.checkpoint))["load_seconds"])
            later.append(side.ask(**order_of(64, 2, 1, model=other))["load_seconds"])
        side.ask(**order_of(64, 2, 1, model=arguments.checkpoint))
        found |= {f"{side.name} switch, first": first, f"{side.name} switch, again": statistics.median(later)}
    return found


def show_pairs(found: dict[str, Any]) -> None:
    for name in [key.removeprefix("ours ") for key in found if key.startswith("ours ")]:
        ours, plain = found[f"ours {name}"], found[f"plain {name}"]
        ratio = f"{plain / ours:6.2f}" if ours >= 0.001 else " > 100"
        print(f"{name:45} {ours:8.3f} {plain:8.3f} {ratio}")


def measure_http(models: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of a whole request, from the connection to the last event."""
    from tests.integration.webui_node import Node, generate

    environ = {"APPLIANCE_ENGINE": "diffusers", "APPLIANCE_DEVICE": arguments.device}
    environ |= {"APPLIANCE_CHECKPOINT": arguments.checkpoint, "APPLIANCE_MOTION_MODULE": arguments.motion_module}
    environ |= {"APPLIANCE_THREADS": str(arguments.threads)}
    firsts, ratios, medians = [], [], []
    for number in range(max(1, arguments.rounds // 2)):
        root = folder / f"node-{number}"
        (root / "models").parent.mkdir(parents=True)
        (root / "models").symlink_to(models)
        node = Node(root, **environ)
        node.client.timeout = WAIT_SECONDS
        try:
            node.wait("ok", WAIT_SECONDS)
            times = []
            for seed in range(1 + WARM_REQUESTS):
                job = str(uuid.uuid4())
                request = order_of(64 if arguments.device == "cpu" else 512, 16, 4, seed=seed)
                body = {"job": job, "fence": 1, "output_dir": f"2026/11/22/{job}/attempts/1", "request": request}
                began = time.perf_counter()
                assert generate(node, body)[-1]["event"] == "done"
                times.append(time.perf_counter() - began)
        finally:
            node.close()
        firsts.append(times[0])
        medians.append(statistics.median(times[1:]))
        ratios.append(times[0] / medians[-1])
    pick = statistics.median
    return {"first": pick(firsts), "warm": pick(medians), "ratio": pick(ratios)}


def measure_gpu(models: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each way to be faster, ours and plain, on one usual clip."""
    rows = []
    usual = order_of(512, 16, 20)
    lightning = {"motion_module": arguments.lightning} if arguments.lightning else {}
    ways: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("plain: fp16, attention without SDPA", "plain", {"attention": "eager"}, usual),
        ("plain: fp16, SDPA", "plain", {}, usual),
        ("plain: fp16, SDPA, torch.compile", "plain", {"compile": True}, usual),
        ("ours: fp16, SDPA", "ours", {}, usual),
        ("ours: fp16, SDPA, torch.compile", "ours", {"compile": True}, usual),
    ]
    if lightning:
        ways.append(("ours: Lightning, 4 steps", "ours", lightning, usual | {"steps": 4}))
    for name, side_name, options, order in ways:
        side = Side(side_name, models, arguments, **options)
        side.ask(**order)  # compiles, where it does
        answers = [side.ask(**order) for _ in range(arguments.rounds)]
        side.close()
        seconds = statistics.median(answer["seconds"] for answer in answers)
        step = statistics.median(answer["step_seconds"] for answer in answers)
        row = {"way": name, "steps": 1 / step, "frames": 16 / seconds, "peak_mib": answers[-1]["peak_mib"]}
        print(f"{name:45} {row['steps']:8.2f} {row['frames']:8.2f} {row['peak_mib']:8.0f} MiB", flush=True)
        rows.append(row)
    return rows


@contextmanager
def models_of(arguments: argparse.Namespace, folder: Path) -> Iterator[Path]:
    if arguments.models:
        yield arguments.models.resolve()
        return
    from webui.demo_models import make_models

    models = folder / "models"
    list(make_models(models))
    arguments.other_checkpoint = arguments.other_checkpoint or "tiny-copy"
    make_other(models / "checkpoint" / "tiny", models / "checkpoint" / arguments.other_checkpoint)
    yield models


def make_other(checkpoint: Path, other: Path) -> None:
    """The same with other weights: an engine may well notice that two names stand for the same content."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, other)
    for path in other.glob("*/*.safetensors"):
        save_file({name: tensor * 0.99 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def main() -> None:
    arguments = arguments_of()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, models_of(arguments, Path(name)) as models:
        if "jobs" in arguments.only:
            figures["jobs"] = run_jobs(models, arguments)
        if "start" in arguments.only:
            figures["start"] = run_start(models, arguments)
        if "http" in arguments.only:
            figures["http"] = http = measure_http(models, arguments, Path(name))
            text = (
                f"{http['first']:.3f} s, median of the next {WARM_REQUESTS} {http['warm']:.3f} s: {http['ratio']:.2f}"
            )
            print(f"\nfirst request after ok {text}", flush=True)
        if arguments.device == "cuda" and "gpu" in arguments.only:
            print(f"\n{'GPU':45}  steps/s frames/s     peak")
            figures["gpu"] = measure_gpu(models, arguments)
        elif "gpu" in arguments.only:
            print("no GPU: the rows for fp16, SDPA, torch.compile and Lightning need --device cuda")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


@contextmanager
def both_sides(models: Path, arguments: argparse.Namespace) -> Iterator[list[Side]]:
    """Running, and each with one tiny job behind it."""
    sides = []
    try:
        for name in SIDES:
            sides.append(Side(name, models, arguments))
            sides[-1].ask(**order_of(64, 2, 1))
        yield sides
    finally:
        for side in sides:
            side.close()


def run_jobs(models: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.pairs):
        print(f"jobs: pair {number + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
        with both_sides(models, arguments) as sides:
            measure_jobs(sides, arguments, found)
    head = "".join(f"{f'{what}: ours plain ratio':>27}" for what in ("steps/s", "frames/s", "CPU s"))
    print(f"{'jobs, ' + arguments.device:44}{head}  encoding", flush=True)
    rows = [medians(name, found) for name in chosen_cases(arguments)]
    for row in rows:
        show_job(row)
    return rows


def run_start(models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{'seconds':45} {'ours':>8} {'plain':>8}  ratio", flush=True)
    found = measure_start(models, arguments)
    if arguments.other_checkpoint:
        with both_sides(models, arguments) as sides:
            found |= measure_switches(sides, arguments.other_checkpoint, arguments)
    show_pairs(found)
    return found


if __name__ == "__main__":
    main()
