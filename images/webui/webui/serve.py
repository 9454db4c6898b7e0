"""Runs server and engine process together, from the first socket to a bounded end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from webui.local import LocalRuns
from webui.local_socket import PAUSE_SECONDS
from webui.process import EngineProcess
from webui.server import create_app
from webui.settings import Settings
from webui.volumes import Volumes

# Together they stay below the 10 s that a container gets to stop.
STOP_SECONDS = 3.0
LAST_WORD_SECONDS = 1.0
HTTP_STOP_SECONDS = 2.0
# An agent that vanished without a word (power, cable) is noticed when nothing sent to it is acknowledged.
USER_TIMEOUT_MILLISECONDS = 10_000

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to us: the running job is ended before the listener closes."""
        yield


async def serve(settings: Settings) -> int:
    volumes = Volumes(Path(settings.engine.models_dir), Path(settings.engine.jobs_dir))
    volumes.watch()
    process = EngineProcess(settings.engine, lambda: volumes.problem() is None, settings.stop_seconds)
    local = LocalRuns(process, Path(settings.engine.scratch_dir))
    config = uvicorn.Config(
        create_app(settings, process, volumes, local),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=4096,  # clients of the local runs' sockets have nothing to say
        timeout_keep_alive=75,  # longer than its clients keep idle connections, so that they never reuse a closed one
        timeout_graceful_shutdown=int(HTTP_STOP_SECONDS),
    )
    server = Server(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listener = listen(settings.host, settings.port)
    tasks = {
        "signal": asyncio.create_task(stop.wait()),
        "engine": asyncio.create_task(process.run()),
        "local": asyncio.create_task(local.run()),
        "http": asyncio.create_task(server.serve(sockets=[listener])),
    }
    log.info("listening on %s:%d", settings.host, settings.port, extra={"event": "started"})
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    log.info("shutting down", extra={"event": "stopping"})
    local.close()
    await process.close(STOP_SECONDS)
    await asyncio.wait([tasks["local"]], timeout=LAST_WORD_SECONDS)
    await asyncio.sleep(2 * PAUSE_SECONDS)  # those who follow a run hear of a change after a pause, and so of its end
    server.should_exit = True
    _, late = await asyncio.wait([tasks["engine"], tasks["local"], tasks["http"]], timeout=HTTP_STOP_SECONDS + 1)
    for task in late:
        task.cancel()
    return report_end(tasks)


def report_end(tasks: Mapping[str, asyncio.Task[Any]]) -> int:
    """0 only if a signal asked for the end; anything else is a bug, and the restart policy's turn."""
    for name, task in tasks.items():
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.error("%s failed", name, exc_info=task.exception())
            return 1
    return 0 if tasks["signal"].done() else 1


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MILLISECONDS)
    listener.bind((host, port))
    listener.listen(256)
    return listener
