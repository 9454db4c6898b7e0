"""Cost of rendering per host: `python tests/bench/render.py [--json]`. It must not grow with the cluster.

Times load + check + plan + render + write of 1, 10, 100 and 1,000 hosts of 8 GPUs, each in a process of its own, so
that the peak memory is that size's alone. Two hosts are gateways and three hold the queue, as in a real cluster.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 10, 100, 1000)
GPUS = 8


def cluster_yaml(hosts: int) -> str:
    lines = ["name: bench", "network: {subnet: 10.0.0.0/8}", "storage: {driver: cephfs, cephfs: {path: /mnt/ceph}}"]
    lines += ["models:", "  checkpoint: sd15", "  motion_module: mm.safetensors", "  available:"]
    lines += ["    - {name: sd15, kind: checkpoint}", "    - {name: mm.safetensors, kind: motion_module}", "hosts:"]
    for number in range(hosts):
        roles = (
            ["worker"]
            + (["gateway", "control"] if number < 2 else [])
            + (["queue"] if number < (3 if hosts > 2 else 1) else [])
        )
        lines += [f"  gpu-{number:04d}:", f"    address: 10.1.{number // 250}.{number % 250 + 1}"]
        lines += [f"    roles: [{', '.join(roles)}]", "    gpus:"]
        lines += [f"      - uuid: GPU-{number:08x}-0000-4000-8000-{gpu:012x}" for gpu in range(GPUS)]
    return "\n".join(lines) + "\n"


def measure(hosts: int) -> dict[str, float]:
    """Seconds of each step and peak resident memory of this process."""
    sys.path.insert(0, str(ROOT))
    from generator import tree
    from generator.checks import check
    from generator.load import load
    from generator.plan import plan
    from generator.render import render
    from generator.sources import read_sources

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.yaml"
        file.write_text(cluster_yaml(hosts))
        marks = [time.perf_counter()]
        loaded = load(file)
        problems = check(loaded)
        assert not problems, problems
        marks.append(time.perf_counter())
        the_plan = plan(loaded.cluster)
        marks.append(time.perf_counter())
        sources = read_sources()
        for _ in render(the_plan, sources):
            pass
        marks.append(time.perf_counter())
        tree.write(Path(folder) / "out", render(the_plan, sources))
        marks.append(time.perf_counter())
    load_s, plan_s, render_s, write_s = (b - a for a, b in pairwise(marks))
    return {
        "hosts": hosts,
        "load_ms_per_host": 1000 * load_s / hosts,
        "plan_ms_per_host": 1000 * plan_s / hosts,
        "render_ms_per_host": 1000 * render_s / hosts,
        "render_and_write_ms_per_host": 1000 * write_s / hosts,
        "total_s": load_s + plan_s + write_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--measure", str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        if not arguments.json:
            if len(rows) == 1:
                print(" ".join(f"{name:>28}" for name in rows[0]))
            print(" ".join(f"{value:28.2f}" for value in rows[-1].values()), flush=True)
    ratio = rows[-1]["render_ms_per_host"] / rows[1]["render_ms_per_host"]
    if arguments.json:
        print(json.dumps({"rows": rows, "render_per_host_1000_over_10": ratio}))
    else:
        print(f"render per host, 1,000 hosts against 10: {ratio:.2f} x")


if __name__ == "__main__":
    main()
