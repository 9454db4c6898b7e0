"""What a broken webui, a broken disk or a broken record must not do to an agent."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from appliance import keys, storage
from appliance.agent import loop as agent_loop
from appliance.agent.ending import Ending
from appliance.agent.loop import Agent
from appliance.agent.webui import Webui, WebuiError
from appliance.job import JobState, job_folder
from appliance.queue import Claim, Queue
from appliance.settings import Secret
from tests.integration.redis_server import PASSWORD, SERVICES, RedisServer, add, redis, redis_server, take  # noqa: F401
from tests.integration.test_review_agent import QUEUE, Studio, attempt, jobs_dir, queue, settings_for, until  # noqa: F401

pytestmark = pytest.mark.docker


class Liar(Studio):
    """Says of its file what no honest webui says."""

    def __init__(self, jobs_dir: Path, **lie: object) -> None:
        super().__init__(jobs_dir)
        self.lie = lie

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for event in super()._events(body):
            if event["event"] == "done":
                event["files"][0] |= self.lie
            yield event


@pytest.mark.parametrize("lie", [{"name": "\ud800.mp4"}, {"size_bytes": float("inf")}, {"name": "x" * 300}])
async def test_a_result_that_no_disk_can_hold_is_the_attempts_failure(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, lie: dict[str, object]
) -> None:
    job_id = await add(queue)
    await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Liar(jobs_dir, **lie))
    job = await queue.get(job_id)
    assert job is not None
    assert job.state in (JobState.QUEUED, JobState.DELAYED)
    assert len(job.history) == 1


async def test_a_link_is_no_result(queue: Queue, redis_server: RedisServer, jobs_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")

    class Linker(Studio):
        async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            async for event in super()._events(body):
                if event["event"] == "done":
                    video = self.jobs_dir / body["output_dir"] / "video.mp4"
                    video.unlink()
                    video.symlink_to(tmp_path / "secret")
                yield event

    job_id = await add(queue)
    await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Linker(jobs_dir))
    job = await queue.get(job_id)
    assert job is not None
    assert job.state is not JobState.DONE


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b'{"job":"x","fence":Infinity,"worker":"a","files":[],"committed_at":1}', b"[" * 100_000],
)
async def test_a_commit_of_garbage_does_not_end_the_agent(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def spoil(folder: Path) -> None:
        (folder / "COMMIT").write_bytes(content)

    await the_line_goes_on(queue, redis_server, jobs_dir, monkeypatch, spoil)


@pytest.mark.parametrize("kind", ["fifo", "endless"])
async def test_a_commit_that_is_no_file_does_not_hold_the_agent(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def spoil(folder: Path) -> None:
        if kind == "fifo":
            os.mkfifo(folder / "COMMIT")
        else:
            with (folder / "COMMIT").open("wb") as file:
                file.truncate(1 << 40)

    await the_line_goes_on(queue, redis_server, jobs_dir, monkeypatch, spoil)


async def the_line_goes_on(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    monkeypatch.setattr(agent_loop, "PAUSE_MOST_SECONDS", 0.05)
    bad, good = await add(queue), await add(queue)
    folder = jobs_dir / job_folder(bad)
    folder.mkdir(parents=True)
    spoil(folder)
    studio, stop = Studio(jobs_dir), asyncio.Event()
    settings = settings_for(jobs_dir, redis_server, patience=30)
    agent = asyncio.create_task(Agent(settings, queue, studio).run(stop))  # type: ignore[arg-type]
    try:
        await until(lambda: good in studio.made or agent.done())
        assert not agent.done(), agent.exception()
    finally:
        stop.set()
        await asyncio.wait({agent}, timeout=10)


@pytest.mark.parametrize("body", ['"a text"', "[1]", "{", '{"loras": 5}'])
async def test_a_job_whose_record_is_spoilt_does_not_end_the_agent(
    queue: Queue, redis: Redis, redis_server: RedisServer, jobs_dir: Path, body: str
) -> None:
    job_id = await add(queue)
    await redis.set(keys.request(job_id), body)
    await attempt(settings_for(jobs_dir, redis_server), queue, await take(queue), Studio(jobs_dir))
    job = await queue.get(job_id)
    assert job is not None
    assert job.state is not JobState.RUNNING


# --- a webui that drips ----------------------------------------------------------------------------------------------


async def test_an_answer_that_never_ends_is_not_waited_for() -> None:
    """Each byte comes within the time limit of a read."""

    talks: list[asyncio.Task[None]] = []

    async def drip(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(lambda _, w: talks.append(asyncio.create_task(drip(w))), "127.0.0.1")
    webui = Webui(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", Secret("t"))
    try:
        assert not (await asyncio.wait_for(webui.ping(), 8)).ready
        with pytest.raises(WebuiError):
            await asyncio.wait_for(webui.interrupt("j", 1, seconds=0.5), 8)
    finally:
        await webui.close()
        server.close()
        assert not (await asyncio.wait(talks, timeout=5))[1]


# --- a disk that hangs -----------------------------------------------------------------------------------------------


@contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[threading.Event]:
    """Yields what is set as soon as somebody hangs."""
    reached, release = threading.Event(), threading.Event()
    real = getattr(storage, name)

    def hang(*arguments: Any) -> Any:
        reached.set()
        release.wait(60)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(storage, name, hang)
        try:
            yield reached
        finally:
            release.set()


def attempt_with_drain(
    jobs_dir: Path, server: RedisServer, queue: Queue, claim: Claim
) -> tuple[asyncio.Task[Ending], asyncio.Event]:
    drain = asyncio.Event()
    settings = settings_for(jobs_dir, server, patience=30)
    return attempt(settings, queue, claim, Studio(jobs_dir), drain), drain


@pytest.mark.parametrize("operation", ["read_commit", "make_attempt_folder"])
async def test_a_disk_that_hangs_at_the_claim_holds_up_no_drain(
    queue: Queue,
    redis_server: RedisServer,
    jobs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    job_id = await add(queue)
    with hanging(monkeypatch, operation) as reached:
        task, drain = attempt_with_drain(jobs_dir, redis_server, queue, await take(queue))
        await until(reached.is_set)
        drain.set()
        deadline = time.monotonic() + 4
        while (job := await queue.get(job_id)) is not None and job.state is JobState.RUNNING:
            assert time.monotonic() < deadline, "it waits for the disk"
            await asyncio.sleep(0.05)
    assert job is not None
    assert (job.state, job.crashes, job.history[0].kind) == (JobState.QUEUED, 0, "release")
    await asyncio.wait_for(task, 10)


async def test_a_disk_that_hangs_at_the_claim_holds_up_no_cancel(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await add(queue)
    with hanging(monkeypatch, "read_commit") as reached:
        task, _ = attempt_with_drain(jobs_dir, redis_server, queue, await take(queue))
        await until(reached.is_set)
        await queue.cancel(job_id)
        deadline = time.monotonic() + 2
        while (job := await queue.get(job_id)) is not None and job.state is JobState.RUNNING:
            assert time.monotonic() < deadline, "it waits for the disk"
            await asyncio.sleep(0.05)
    assert job is not None
    assert job.state is JobState.CANCELLED
    await asyncio.wait_for(task, 10)


async def test_a_disk_that_hangs_at_the_check_is_not_the_jobs_fault(
    queue: Queue, redis_server: RedisServer, jobs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await add(queue)
    with hanging(monkeypatch, "verify_files"):
        settings = settings_for(jobs_dir, redis_server, patience=0.5)
        await asyncio.wait_for(attempt(settings, queue, await take(queue), Studio(jobs_dir)), 10)
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.errors, job.crashes) == (JobState.QUEUED, 0, 0)


HUNG_AGENT = """
import sys, time
from appliance import storage
from appliance.agent import loop
def hang(root):
    sys.stderr.write("hangs\\n"); sys.stderr.flush()
    time.sleep(3600)
storage.has_marker = loop.has_marker = hang
from appliance.__main__ import main
sys.exit(main(["agent"]))
"""


def test_an_agent_whose_disk_hangs_can_be_stopped(redis_server: RedisServer, jobs_dir: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "redis_password").write_text(PASSWORD)
    (secrets / "cluster_token").write_text("t")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": SERVICES,
        "TMPDIR": str(tmp_path),
        "APPLIANCE_NODE_NAME": "test",
        "APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}",
        "APPLIANCE_SECRETS_DIR": str(secrets),
        "APPLIANCE_JOBS_DIR": str(jobs_dir),
        "APPLIANCE_WORKER": "a/0",
        "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_WEBUI_URL": "http://127.0.0.1:1",
    }
    command = [sys.executable, "-c", HUNG_AGENT]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as agent:
        try:
            assert agent.stderr is not None
            assert agent.stderr.readline() == "hangs\n"
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(10) == 0
        finally:
            agent.kill()
