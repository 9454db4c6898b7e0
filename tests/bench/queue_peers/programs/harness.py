"""What every measured program shares: the job's body, the record of its start, and how jobs are submitted.

Only the standard library: each peer runs this in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

RECORD = "{pid:>10} {seq:>8} {sent:>20} {started:>20}\n"
RECORD_BYTES = 62
WARM_UP = 5
HOLD_SECONDS = 3600.0
LOOK_SECONDS = 0.002
STUCK_SECONDS = 30.0
PROMPT = "a lighthouse in a storm, waves against the rocks, cinematic light, film grain, 35 mm " * 3

HOST = "127.0.0.1"
PORT = int(os.environ.get("BENCH_PORT", "0"))
PASSWORD = os.environ.get("BENCH_PASSWORD", "")
DATABASE = int(os.environ.get("BENCH_DATABASE", "0"))
URL = f"redis://:{PASSWORD}@{HOST}:{PORT}/{DATABASE}"
TUNED = os.environ.get("BENCH_PROFILE") == "tuned"
NAME = os.environ.get("BENCH_WORKER", "w0")
FILE = os.environ.get("BENCH_RECORDS", "")
HOLD = FILE + ".hold"  # while it exists, a job does not end


def body(seq: int) -> str:
    request = {"prompt": PROMPT, "width": 512, "height": 512, "frames": 16, "steps": 20, "seed": seq}
    return json.dumps({**request, "metadata": {"seq": seq, "sent": time.monotonic_ns()}})


_records = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if FILE else -1


def note(text: str) -> bool:
    """The job's whole work: one line that it has started. True: it is to be held. The clock is the machine's."""
    job = json.loads(text)["metadata"]
    line = RECORD.format(pid=os.getpid(), started=time.monotonic_ns(), **job)
    os.write(_records, line.encode())
    return os.path.exists(HOLD)


async def run_job(text: str) -> None:
    if note(text):
        await asyncio.sleep(HOLD_SECONDS)


def run_job_blocking(text: str) -> None:
    if note(text):
        time.sleep(HOLD_SECONDS)


def started() -> int:
    return os.stat(FILE).st_size // RECORD_BYTES


def _pauses(seq: int) -> Iterator[float]:
    """Until job `seq` has started, and then long enough for its worker to be idle again."""
    limit = time.monotonic() + STUCK_SECONDS
    while started() <= seq:
        if time.monotonic() > limit:
            raise SystemExit(f"job {seq} has not started within {STUCK_SECONDS:g} s")
        yield LOOK_SECONDS
    yield random.uniform(0.03, 0.06)


async def submit_all(submit: Callable[[str], Awaitable[object]]) -> None:
    """`program.py submit COUNT burst|paced`; prints when the first call began and the last one ended."""
    count, paced = int(sys.argv[2]), sys.argv[3] == "paced"
    began = time.monotonic_ns()
    for seq in range(count):
        await submit(body(seq))
        if paced:
            for pause in _pauses(seq):
                await asyncio.sleep(pause)
    _tell(began)


def submit_all_blocking(submit: Callable[[str], object]) -> None:
    count, paced = int(sys.argv[2]), sys.argv[3] == "paced"
    began = time.monotonic_ns()
    for seq in range(count):
        submit(body(seq))
        if paced:
            for pause in _pauses(seq):
                time.sleep(pause)
    _tell(began)


def _tell(began: int) -> None:
    print(json.dumps({"began": began, "ended": time.monotonic_ns()}), flush=True)
