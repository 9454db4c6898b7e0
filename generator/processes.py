"""Runs outside programs: argument lists in, text out, every failure a ToolError, every wait bounded if so asked."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from generator.errors import STDERR_TAIL_LINES, ToolError

STOP_SECONDS = 10.0


def run(
    argv: Sequence[str],
    *,
    timeout: float | None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    hint: Callable[[str], str] = lambda _stderr: "",
) -> str:
    """Standard output (none if `stdout` takes it); ToolError if it fails, is missing or takes longer than `timeout`
    (None: may take for ever)."""
    given, source = (stdin.encode(), None) if isinstance(stdin, str) else (None, stdin or subprocess.DEVNULL)
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=_environment(env),
            stdin=subprocess.PIPE if source is None else source,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise missing(argv) from error
    with process:
        try:
            out, err = process.communicate(given, timeout)
        except subprocess.TimeoutExpired as error:
            kill_tree(process.pid)
            said = process.communicate()[1].decode(errors="replace")
            raise ToolError(argv, None, said, f"it had {timeout:.0f} s") from error
        except BaseException:
            kill_tree(process.pid)
            raise
    if process.returncode != 0:
        said = err.decode(errors="replace")
        raise ToolError(argv, process.returncode, said, hint(said))
    return out.decode(errors="replace") if out else ""


def stream(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    first_line_within: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: Callable[[str], str] = lambda _stderr: "",
) -> Iterator[str]:
    """Lines of standard output and error as they come; ToolError at the end if it failed or was too slow.

    Leaving the loop early stops the program.
    """
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise missing(argv) from error
    late = threading.Event()
    alarms = [_alarm(process, seconds, late) for seconds in (first_line_within, timeout)]
    last: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
    try:
        for line in process.stdout or ():
            alarms[0].cancel()
            last.append(line.rstrip())
            yield last[-1]
        process.wait()
    finally:
        for alarm in alarms:
            alarm.cancel()
        _stop(process)
    if late.is_set() or process.returncode != 0:
        said = "\n".join(last)
        raise ToolError(argv, None if late.is_set() else process.returncode, said, hint(said))


def _alarm(process: subprocess.Popen[str], seconds: float | None, late: threading.Event) -> threading.Timer:
    def ring() -> None:
        late.set()
        kill_tree(process.pid)

    timer = threading.Timer(seconds or 0.0, ring)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    return timer


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    """Kill a program and all it started: a child that lives on keeps our end of the pipe open, and us waiting.

    Not a process group of its own: Ctrl-C must reach the children too.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no more
    with suppress(OSError):
        for listing in Path("/proc", str(pid), "task").glob("*/children"):
            for child in listing.read_text().split():
                kill_tree(int(child))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if extra is None else {**os.environ, **extra}


def missing(argv: Sequence[str]) -> ToolError:
    hint = "`python -m generator doctor` lists what this machine lacks"
    return ToolError(argv, 127, f"{argv[0]}: command not found", hint)
