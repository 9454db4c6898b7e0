"""One measurement each: throughput, pickup latency, recovery. Real worker processes, one Redis, one clock."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from tests.bench.queue_peers.processes import cpu_seconds, kill_tree, tree
from tests.bench.queue_peers.programs.harness import RECORD_BYTES, WARM_UP
from tests.bench.queue_peers.systems import PROGRAMS, System, command, variables

DEFAULT, TUNED = "default", "tuned"
START_SECONDS = 30.0
STUCK_SECONDS = 60.0
SETTLE_SECONDS = 0.5
HELD_SECONDS = 5.0  # longer than any tuned lease: a live worker's job must not be taken away
CALM = 0.3  # of one CPU


@dataclass(frozen=True)
class Record:
    pid: int
    seq: int
    sent: int
    started: int


class Stand:
    """One system with its workers' files, in one database of the Redis that all share."""

    def __init__(self, system: System, environment: Path, port: int, password: str, folder: Path, database: int = 0):
        self.system = system
        self.redis = Redis("127.0.0.1", port, db=database, password=password)
        self._database = database
        self._environment = environment
        self._folder = folder / f"{system.name}-{database}-{random.randrange(10**9)}"
        self._folder.mkdir(parents=True)
        self._file = self._folder / "records"
        self._variables = {
            **variables(system, environment),
            "BENCH_PORT": str(port),
            "BENCH_PASSWORD": password,
            "BENCH_DATABASE": str(database),
            "BENCH_RECORDS": str(self._file),
        }

    def reset(self) -> None:
        self.redis.flushdb()
        self._file.write_bytes(b"")
        if self.system.prepare:
            self._run(self.system.prepare, DEFAULT)

    def submit(self, count: int, pace: str, profile: str = DEFAULT) -> tuple[int, int]:
        """Nanoseconds when the first call began and when the last one had ended."""
        answer = json.loads(self._run((*self.system.submit, str(count), pace), profile).splitlines()[-1])
        return answer["began"], answer["ended"]

    def records(self) -> list[Record]:
        text = self._file.read_text()
        return [Record(*map(int, line.split())) for line in text.splitlines() if len(line) == RECORD_BYTES - 1]

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[], None]]:
        flag = Path(f"{self._file}.hold")
        flag.touch()
        try:
            yield lambda: flag.unlink(missing_ok=True)
        finally:
            flag.unlink(missing_ok=True)

    @contextlib.contextmanager
    def workers(self, count: int, profile: str = DEFAULT) -> Iterator[list[subprocess.Popen[bytes]]]:
        started: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as files:
            try:
                newest = self.redis.client_id()
                for number in range(count):
                    log = files.enter_context((self._folder / f"worker-{number}.log").open("ab"))
                    more = {"BENCH_WORKER": f"w{number}", "BENCH_PROFILE": profile}
                    argv = command(self.system.worker, self._environment)
                    everything = {**self._variables, **more}
                    started.append(
                        subprocess.Popen(
                            argv, cwd=PROGRAMS, env=everything, stdout=log, stderr=log, start_new_session=True
                        )
                    )
                self._wait_until_idle(started, newest)
                yield started
            finally:
                for process in started:
                    kill_tree(process.pid)
                    process.wait()

    def _wait_until_idle(self, workers: list[subprocess.Popen[bytes]], newest: int) -> None:
        """Connected, and done with importing: no library says so by itself."""
        roots = [worker.pid for worker in workers]
        limit = time.monotonic() + START_SECONDS
        calm = 0
        before = cpu_seconds(roots)
        while calm < 3:
            time.sleep(0.3)
            now = cpu_seconds(roots)
            idle = now - before < 0.3 * CALM * len(workers)
            before = now
            calm = calm + 1 if idle and self._connections_after(newest) >= len(workers) else 0
            if any(worker.poll() is not None for worker in workers):
                raise RuntimeError(f"a worker of {self.system.name} ended:\n{self.logs()}")
            if time.monotonic() > limit:
                return

    def _connections_after(self, newest: int) -> int:
        """To this database: others may be measured beside."""
        clients = self.redis.client_list()
        return sum(int(row["id"]) > newest and row["db"] == str(self._database) for row in clients)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.log")))

    def redis_cpu(self) -> float:
        info = self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def wait_for(self, count: int, seconds: float) -> bool:
        """Until so many jobs have started; gives up when none has for `seconds`."""
        last, size = time.monotonic(), -1
        while (now := self._file.stat().st_size) < count * RECORD_BYTES:
            if now != size:
                last, size = time.monotonic(), now
            if time.monotonic() - last > seconds:
                return False
            time.sleep(0.01)
        return True

    def _run(self, words: tuple[str, ...], profile: str) -> str:
        environment = {**self._variables, "BENCH_PROFILE": profile}
        argv = command(words, self._environment)
        done = subprocess.run(argv, cwd=PROGRAMS, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout


def enqueue(stand: Stand, jobs: int) -> dict[str, float]:
    stand.reset()
    before = stand.redis_cpu()
    began, ended = stand.submit(jobs, "burst")
    used = stand.redis_cpu() - before
    return {"enqueue_per_s": jobs / (ended - began) * 1e9, "enqueue_redis_cpu_ms": 1000 * used / jobs}


def end_to_end(stand: Stand, jobs: int, workers: int) -> dict[str, float]:
    """From the first submit to the last job's start; the workers run while one client submits."""
    stand.reset()
    with stand.workers(workers) as running:
        roots = [worker.pid for worker in running]
        used, redis_used = cpu_seconds(roots), stand.redis_cpu()
        began, _ = stand.submit(jobs, "burst")
        if not stand.wait_for(jobs, STUCK_SECONDS):
            raise RuntimeError(f"{stand.system.name}: {len(stand.records())} of {jobs} jobs ran\n{stand.logs()}")
        records = stand.records()
        time.sleep(SETTLE_SECONDS)  # for the last acknowledgement's CPU
        used, redis_used = cpu_seconds(roots) - used, stand.redis_cpu() - redis_used
    if len({record.seq for record in records}) != jobs:
        print(f"{stand.system.name}: jobs ran twice or not at all", file=sys.stderr)
    seconds = (max(record.started for record in records) - began) / 1e9
    return {
        f"end_to_end_{workers}_per_s": jobs / seconds,
        f"worker_cpu_{workers}_ms": 1000 * used / jobs,
        f"redis_cpu_{workers}_ms": 1000 * redis_used / jobs,
    }


def pickup(stand: Stand, samples: int) -> list[float]:
    """Milliseconds from before the submit until the job starts in an idle worker."""
    stand.reset()
    with stand.workers(1):
        stand.submit(WARM_UP + samples, "paced")
        records = stand.records()
    return [(record.started - record.sent) / 1e6 for record in records if record.seq >= WARM_UP]


def recovery(stand: Stand, profile: str, limit: float) -> dict[str, float | bool | None]:
    """kill -9 of the worker that runs the only job while another idles: seconds until it runs again; None: not yet
    after `limit`. `twice`: it ran a second time while its worker was still alive."""
    stand.reset()
    with stand.workers(2, profile) as running, stand.holding() as let_go:
        stand.submit(1, "burst", profile)
        if not stand.wait_for(1, STUCK_SECONDS):
            raise RuntimeError(f"{stand.system.name}: the job to kill has not started\n{stand.logs()}")
        time.sleep(HELD_SECONDS + random.random())
        first, *again = stand.records()
        if again:
            return {"seconds": None, "twice": True}
        holder = next(worker.pid for worker in running if first.pid in tree(worker.pid))
        let_go()
        killed = time.monotonic_ns()
        kill_tree(holder)
        if not stand.wait_for(2, limit):
            return {"seconds": None, "twice": False}
        return {"seconds": (stand.records()[1].started - killed) / 1e9, "twice": False}
