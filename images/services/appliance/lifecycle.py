"""Signals set a flag; everything else looks at the flag. Also the heartbeat files that health checks read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

from async_timeout import timeout

log = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    watched = (signal.SIGTERM, signal.SIGINT)

    def request_stop(number: int) -> None:
        log.info("%s received: stopping", signal.Signals(number).name)
        stop.set()

    for number in watched:
        loop.add_signal_handler(number, request_stop, number)
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


async def wait_or_stop(stop: asyncio.Event, seconds: float) -> bool:
    """Sleeps up to `seconds`; True as soon as stopping is asked for."""
    if seconds <= 0:
        return stop.is_set()
    try:
        async with timeout(seconds):
            await stop.wait()
    except asyncio.TimeoutError:
        return False
    return True


async def cancel_tasks(*tasks: asyncio.Task[Any], seconds: float = 2.0) -> None:
    """Cancels and waits a bounded time; names whatever would not end."""
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    if pending:
        _, pending = await asyncio.wait(pending, timeout=seconds)
    for task in pending:
        log.error("task %s did not stop within %g s", task.get_name(), seconds)
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.debug("task %s ended with %r", task.get_name(), task.exception())


def leave(code: int) -> NoReturn:
    """Ends the process at once. Python would wait for its threads, and those of a hung storage may never end: a service
    that is to start afresh would be gone, neither running nor ended."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def start_task(name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work, name=name)


def heartbeat_path(service: str) -> Path:
    return Path(tempfile.gettempdir()) / f"appliance-{service}.alive"


def touch_heartbeat(service: str) -> None:
    path = heartbeat_path(service)
    try:
        path.touch()
        os.utime(path)
    except OSError as error:
        log.warning("cannot touch %s: %s", path, error)


def heartbeat_age_seconds(service: str) -> float | None:
    """Age of the last touch, or None where the service has not started. Both clocks are this machine's."""
    try:
        return max(0.0, time.time() - heartbeat_path(service).stat().st_mtime)
    except FileNotFoundError:
        return None


async def keep_heartbeat(service: str, seconds: float = 1.0) -> None:
    """Proves that the event loop turns; it says nothing about readiness."""
    while True:
        touch_heartbeat(service)
        await asyncio.sleep(seconds)
