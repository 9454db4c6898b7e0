"""This queue beside others on one Redis, in one run: `python tests/bench/queue.py [--systems …] [--json FILE]`.

Every system gets the same jobs (a no-op that writes down when it starts), worker processes that run one job at a time,
one submitting client with one call under way, and an environment of its own under --cache. The rounds interleave the
systems, so that a noisy neighbour disturbs all of them. The Redis is ours: AOF every second, noeviction.
  enqueue/s    one client, no worker runs
  e2e/s        from the first submit to the last job's start, 1 and 4 workers running meanwhile
  pickup       from before the submit to the job's start in an idle worker, ms
  cpu/job      user + system of the workers (all their processes) and, apart, of Redis, in the e2e runs
  kill -9      of the worker that runs a job while another idles: seconds until the job runs again
Needs the `bench` extra and Docker; the libraries come from PyPI and npm at the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

ROOT = Path(__file__).resolve().parents[2]
if TYPE_CHECKING:
    from tests.bench.queue_peers.measure import Stand
    from tests.bench.queue_peers.report import Figures
    from tests.bench.queue_peers.systems import System

T = TypeVar("T")
QUICK_SECONDS = 15.0  # recoveries below this are repeated
RECOVERIES_AT_ONCE = 4
TAG = "test"


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    from tests.bench.queue_peers.systems import CACHE, all_systems

    known = all_systems()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(known), help="of %(default)s; ours is always there")
    parser.add_argument("--jobs", type=int, default=1000, help="per throughput run (default %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="of pickup latency, over all rounds")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; figures are their medians")
    parser.add_argument("--kills", type=int, default=3, help="per system and profile, where recovery is quick")
    parser.add_argument("--recovery-limit", type=float, default=90.0, help="seconds to wait for a recovery; 0: none")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the systems' environments (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    arguments = parser.parse_args(words)
    names = ["ours", *(name for name in arguments.systems.split(",") if name != "ours")]
    if unknown := set(names) - set(known):
        parser.error(f"unknown or not to be had here: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    arguments.chosen = [known[name] for name in names]
    return arguments


class Bench:
    """The rounds over all systems; a failure is reported, the others go on."""

    def __init__(self, arguments: argparse.Namespace, make: Callable[[System, int], Stand]) -> None:
        self._arguments = arguments
        self._make = make
        self.rounds: dict[str, list[dict[str, float]]] = {system.name: [] for system in arguments.chosen}
        self.samples: dict[str, list[float]] = {system.name: [] for system in arguments.chosen}
        self.recoveries: dict[str, dict[str, list[dict[str, float | bool | None]]]] = {}
        self.failed: dict[str, str] = {}

    def run(self) -> None:
        for number in range(self._arguments.repeat):
            order = random.sample(self._arguments.chosen, len(self._arguments.chosen))
            for system in order:
                self._guarded(self._round, system, number)
        if self._arguments.recovery_limit > 0:
            self._recover_all()

    def _round(self, system: System, number: int) -> None:
        from tests.bench.queue_peers import measure

        arguments, stand = self._arguments, self._make(system, 0)
        row = measure.enqueue(stand, arguments.jobs)
        for workers in (1, 4):
            row |= measure.end_to_end(stand, arguments.jobs, workers)
        self.rounds[system.name].append(row)
        samples = measure.pickup(stand, -(-arguments.samples // arguments.repeat))
        self.samples[system.name] += samples
        rates = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        say(f"round {number + 1}: {system.name}: {rates}, pickup p50 {sorted(samples)[len(samples) // 2]:.2f} ms")

    def _recover_all(self) -> None:
        """Waiting costs nothing: the libraries wait beside each other, each in a database of its own."""
        from concurrent.futures import ThreadPoolExecutor  # it imports `queue`: not before main has seen to the path

        own = [system for system in self._arguments.chosen if not system.is_library]
        libraries = [system for system in self._arguments.chosen if system.is_library]
        for system in own:
            self._guarded(self._recover, system, 0)
        with ThreadPoolExecutor(RECOVERIES_AT_ONCE) as pool:
            for database, system in enumerate(libraries, start=1):
                pool.submit(self._guarded, self._recover, system, database)

    def _recover(self, system: System, database: int) -> None:
        from tests.bench.queue_peers import measure

        stand = self._make(system, database)
        for profile in (measure.DEFAULT, *([measure.TUNED] if system.tuned else [])):
            trials = self.recoveries.setdefault(system.name, {}).setdefault(profile, [])
            while len(trials) < self._arguments.kills:
                trial = measure.recovery(stand, profile, self._arguments.recovery_limit)
                trials.append(trial)
                say(f"kill -9, {profile}: {system.name}: {trial}")
                if trial["seconds"] is None or trial["seconds"] > QUICK_SECONDS:
                    break

    def _guarded(self, work: Callable[[System, int], None], system: System, number: int) -> None:
        try:
            work(system, number)
        except Exception as error:
            self.failed[system.name] = "failed: " + " ".join(str(error).split()[:60])
            say(f"{system.name}: {error}")

    def figures(self) -> dict[str, Figures]:
        from tests.bench.queue_peers import report

        result = {}
        for name, rounds in self.rounds.items():
            figures = report.summarise(rounds, self.samples[name])
            for profile, trials in self.recoveries.get(name, {}).items():
                report.add_recoveries(figures, f"recovery_{profile}_s", trials)
            figures.failed = self.failed.get(name, "")
            result[name] = figures
        return result


def show(all_figures: Mapping[str, Figures], systems: list[System], limit: float) -> str:
    from tests.bench.queue_peers import report

    parts = [report.absolute_table(all_figures, limit)]
    if all_figures[report.OURS].values:
        head = "So many times better is ours (rates ours/theirs, times and costs theirs/ours):\n"
        parts += [
            head + report.ratio_table(all_figures, limit),
            "Aims, in this run:\n" + "\n".join(report.aims(all_figures)),
        ]
    notes = [f"{name}: {figures.failed}" for name, figures in all_figures.items() if figures.failed]
    notes += [f"{system.name}: {system.note}" for system in systems if system.note]
    notes += [f"{system.name}, tuned: {system.tuned}" for system in systems if system.tuned]
    return "\n\n".join([*parts, "\n".join(notes)])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    sys.path.insert(0, str(ROOT / "images" / "services"))
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its image is on a registry; `with` cleans up
    arguments = arguments_of()

    from generator.ops.engine import ensure_engine
    from generator.ops.images import build_images
    from generator.progress import Progress
    from tests.bench.queue_peers.measure import Stand
    from tests.bench.queue_peers.systems import environment_of
    from tests.integration.redis_server import PASSWORD, RedisServer

    environments = {system.name: environment_of(system, arguments.cache) for system in arguments.chosen}
    build_images(ensure_engine(install=False, progress=Progress()), ROOT, tag=TAG, only=("redis",), progress=Progress())
    with tempfile.TemporaryDirectory() as folder, RedisServer(TAG, "appendfsync everysec\n") as server:

        def make(system: System, database: int) -> Stand:
            return Stand(system, environments[system.name], server.port, PASSWORD, Path(folder), database)

        bench = Bench(arguments, make)
        bench.run()
    all_figures = bench.figures()
    if arguments.json:
        raw = {"rounds": bench.rounds, "pickup_ms": bench.samples, "recoveries": bench.recoveries}
        rows = {name: asdict(row) for name, row in all_figures.items()}
        arguments.json.write_text(json.dumps({"figures": rows, **raw}, indent=1, default=sorted), encoding="utf-8")
    print(show(all_figures, arguments.chosen, arguments.recovery_limit))


if __name__ == "__main__":
    # Run as a script, this file would be what `import queue` finds in the libraries.
    sys.path[0] = str(ROOT)
    main()
