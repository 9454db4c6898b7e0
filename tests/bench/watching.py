"""What watching costs: the processors' time of exporter, controller and agents, and of the rest, while nothing happens.

    python tests/bench/watching.py [--seconds 60] [--every 10] [--tag 0.1.0]

Starts the demo's cluster with three synthetic workers, asks its exporter as often as Prometheus does by default, and
prints each service's share of one core: of its own processes, and of its container with Docker's health checks, which
start a new program each time. No verdict; the aim is 3 % for each of the three.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, whose queue.py would hide Python's.
sys.path[:1] = [str(ROOT), *(str(ROOT / "images" / name) for name in ("services", "sdapi"))]

from generator.docker import Engine  # noqa: E402
from tests.bench.overhead import cpu_seconds  # noqa: E402
from tests.integration.stack import Stack, compose, prepare  # noqa: E402
from tests.integration.test_exporter_stack import scrape  # noqa: E402

SETTLE_SECONDS = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="seconds between two questions to the exporter")
    parser.add_argument("--tag", default="0.1.0")
    options = parser.parse_args()
    project = f"animatediff-bench-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=project) as name:
        made = prepare(Path(name), tag=options.tag, variant="synthetic", project=project, step_seconds=0.05)
        the_plan, folder, store = made
        gateway = the_plan.hosts[0].gateway
        assert gateway
        key, url = store.read()["api_key"].decode(), f"http://127.0.0.1:{gateway.http_port}"
        with compose(folder):
            stack = Stack(project, the_plan, url, key, Engine(), f"{project}_cluster")
            with stack.client() as client:
                client.wait_ready(60, describe=lambda: str(stack.engine.containers(project)))
            time.sleep(SETTLE_SECONDS)
            show(watch(stack, options.seconds, options.every))


def watch(stack: Stack, seconds: int, every: int) -> dict[str, tuple[float, float]]:
    """Service → the share of one core of its processes, and of all in its container."""
    running = {one.service: one for one in stack.engine.containers(stack.project) if one.state == "running"}
    before = {service: (own_seconds(one.pid), cpu_seconds(one.id)) for service, one in running.items()}
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        scrape(stack)
        time.sleep(every)
    passed = time.monotonic() - begin
    return {
        service: (
            (own_seconds(one.pid) - before[service][0]) / passed,
            (cpu_seconds(one.id) - before[service][1]) / passed,
        )
        for service, one in running.items()
    }


def own_seconds(init: int) -> float:
    """Of the container's first process and all below it. Health checks are no child of its."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    return sum(seconds for pid, seconds in used.items() if _is_below(pid, init, parents))


def _is_below(pid: int, init: int, parents: dict[int, int]) -> bool:
    while pid and pid != init:
        pid = parents.get(pid, 0)
    return pid == init


def show(shares: dict[str, tuple[float, float]]) -> None:
    table = Table("service", "its processes", "with health checks", title="of one core, while nothing happens")
    for service, (own, all_) in sorted(shares.items()):
        table.add_row(service, f"{100 * own:.2f} %", f"{100 * all_:.2f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
