"""Tells a person, a log file or a program how far a long command is.

On a terminal live bars; in a pipe plain lines; `json` one object a line; `quiet` warnings only. Everything goes to
standard error, so that a command's result on standard output stays clean.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Mode(str, Enum):
    AUTO = "auto"
    LIVE = "live"
    PLAIN = "plain"
    JSON = "json"
    QUIET = "quiet"


class Task:
    """One line of work. `update` may be called from any thread and as often as one likes."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._text = ""
        self.ended = False
        self._started = time.monotonic()
        self._bar: TaskID | None = progress._open_bar(name)

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        if self._bar is not None:
            self._progress._move_bar(self._bar, text, done, total)
        elif text != self._text:
            self._progress._emit("step", self._name, text)
        self._text = text

    def finish(self, text: str) -> None:
        self.ended = True
        seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._progress._close_bar(self._bar)
        self._progress._emit("done", self._name, f"{text} ({seconds:.1f} s)")

    def fail(self, text: str) -> None:
        self.ended = True
        if self._bar is not None:
            self._progress._close_bar(self._bar)
        self._progress._emit("failed", self._name, text)


class Progress:
    def __init__(self, mode: Mode = Mode.AUTO, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False)
        if mode is Mode.AUTO:
            mode = Mode.LIVE if self._console.is_terminal else Mode.PLAIN
        self.mode = mode
        self._lock = threading.RLock()
        self._live: RichProgress | None = None
        self._open = 0

    def say(self, text: str) -> None:
        self._emit("info", "", text)

    def warn(self, text: str) -> None:
        self._emit("warning", "", text)

    @contextmanager
    def task(self, name: str) -> Iterator[Task]:
        """A failed body marks the task failed; a body that does not call `finish` ends it with `done`."""
        task = Task(self, name)
        try:
            yield task
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            task.fail("interrupted" if interrupted else (str(error).splitlines() or [type(error).__name__])[0])
            raise
        if not task.ended:
            task.finish("done")

    def _emit(self, kind: str, name: str, text: str) -> None:
        if self.mode is Mode.QUIET and kind not in ("warning", "failed"):
            return
        with self._lock:
            if self.mode is Mode.JSON:
                event = {"event": kind, "task": name, "text": text}
                print(json.dumps({key: value for key, value in event.items() if value}), file=self._stream, flush=True)
            elif self.mode is Mode.LIVE:
                colour = {"warning": "yellow", "failed": "red", "done": "green"}.get(kind, "")
                line = escape(f"{name}: {text}" if name else text)
                console = self._live.console if self._live else self._console
                console.print(f"[{colour}]{line}[/]" if colour else line, soft_wrap=True)
            else:
                prefix = "warning: " if kind == "warning" else "failed: " if kind == "failed" else ""
                print(f"{prefix}{name}: {text}" if name else f"{prefix}{text}", file=self._stream, flush=True)

    def _open_bar(self, name: str) -> TaskID | None:
        if self.mode is not Mode.LIVE:
            return None
        with self._lock:
            if self._live is None:
                columns = (
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TimeElapsedColumn(),
                    TextColumn("{task.fields[text]}", markup=False),
                )
                self._live = RichProgress(*columns, console=self._console, transient=True)
                self._live.start()
            self._open += 1
            return self._live.add_task(escape(name), total=None, text="")

    def _move_bar(self, bar: TaskID, text: str, done: int | None, total: int | None) -> None:
        with self._lock:
            if self._live is not None:
                width = max(20, self._console.width - 60)
                self._live.update(bar, text=text[:width], completed=done, total=total)

    def _close_bar(self, bar: TaskID) -> None:
        with self._lock:
            if self._live is None or bar not in self._live.task_ids:
                return
            self._live.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._live.stop()
                self._live = None
