"""The agent between a real Redis, real storage and a webui that misbehaves on demand over the real protocol."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import storage
from appliance.agent.loop import Agent
from appliance.agent.webui import Webui
from appliance.job import JobState, Priority, attempt_folder, job_folder, new_job_id
from appliance.queue import BeatAnswer, CommitAnswer, FailKind, JobRecord, Queue, Submission
from appliance.settings import AgentSettings, Common, Secret
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    PASSWORD,
    SERVICES,
    RedisServer,
    redis,
    redis_server,
    take,
)

pytestmark = pytest.mark.docker

TOKEN = "cluster-token"


class Peer:
    """Speaks the webui's internal protocol; `plan` says how each next generation goes ("ok" when empty)."""

    def __init__(self, jobs_dir: Path) -> None:
        self.jobs_dir = jobs_dir
        self.plan: list[str] = []
        self.requests: list[dict[str, object]] = []
        self.interrupted: list[object] = []
        self.interrupts: list[dict[str, object]] = []
        self.capabilities: dict[str, object] | None = None
        self.fingerprint = "f"
        self.busy: str | None = None
        self.ready = True
        self.closed_early = asyncio.Event()
        self.go_on = asyncio.Event()
        self.stopped = asyncio.Event()
        self.frozen = asyncio.Event()
        self.checkpoint_step: int | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends when every talk has; their clients are gone by then."""
        self._server.close()
        if self._talks:
            _, left = await asyncio.wait(self._talks, timeout=5)
            assert not left, f"still talking: {left}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(self._connection(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            path = head.split(" ", 2)[1]
            if path == "/internal/ping" and self.frozen.is_set():
                await asyncio.wait({asyncio.create_task(reader.read())}, timeout=10)
            elif path == "/internal/ping":
                facts = {"status": "ok" if self.ready else "loading", "engine": "peer",
                         "fingerprint": self.fingerprint, "busy": self.busy, "progress_age_seconds": 0,
                         "capabilities": self.capabilities}  # fmt: skip
                self._answer(writer, 200 if self.ready else 503, facts)
            elif headers.get("authorization") != f"bearer {TOKEN}":
                self._answer(writer, 401, {"detail": "no token"})
            elif path == "/internal/interrupt":
                self.interrupted.append(json.loads(body)["job"])
                self.interrupts.append(json.loads(body))
                self.busy = None
                self.stopped.set()
                self._answer(writer, 200, {"stopped": True, "checkpoint_step": self.checkpoint_step})
            else:
                await self._generate(json.loads(body), reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)

    async def _generate(
        self, body: dict[str, object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.requests.append(body)
        fault = self.plan.pop(0) if self.plan else "ok"
        if fault in ("slow start", "slow reader"):
            await asyncio.sleep(0.3 if fault == "slow start" else 2.0)
        if fault == "frozen reader":
            self.frozen.set()
            await asyncio.wait({asyncio.create_task(reader.read())}, timeout=10)
            return
        if fault == "422 of another model":
            self.fingerprint = "another"
        if fault[:3].isdecimal():
            self._answer(writer, int(fault[:3]), {"detail": "refused on purpose"})
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")

        def send(**event: object) -> None:
            writer.write(json.dumps(event).encode() + b"\n")

        send(event="started", engine="peer", total_steps=3)
        send(event="step", step=1, total_steps=3)
        gone = asyncio.create_task(reader.read())
        try:
            if await self._misbehave(fault, send, writer, gone):
                return
        finally:
            gone.cancel()
        send(event="done", files=[self._write_file(str(body["output_dir"]))], parameters={"seed": 1}, seconds=0.1)
        await writer.drain()

    async def _misbehave(
        self, fault: str, send: Callable[..., None], writer: asyncio.StreamWriter, gone: asyncio.Task[bytes]
    ) -> bool:
        if fault == "break":
            writer.transport.abort()
        elif fault == "garbage":
            writer.write(b"<html>\n")
        elif fault == "end":
            pass
        elif fault == "silent":
            await asyncio.wait({gone}, timeout=10)
            self.closed_early.set()
        elif fault in ("stuck", "wait", "wait and fail"):
            while not gone.done() and not self.go_on.is_set():
                send(event="alive", phase="step", progress_age_seconds=0)
                await asyncio.sleep(0.05)
            if gone.done():
                self.closed_early.set()
            elif fault == "wait and fail":
                send(event="error", reason="UNKNOWN", message="on purpose")
                return True
            return gone.done()
        elif fault == "done when interrupted":
            while not self.stopped.is_set():
                send(event="alive", phase="encode", progress_age_seconds=0)
                await asyncio.sleep(0.05)
            return False
        elif fault.isupper():
            send(event="error", reason=fault, message="on purpose")
        else:
            return False
        return True

    def _write_file(self, output_dir: str) -> dict[str, object]:
        content = os.urandom(100)
        folder = self.jobs_dir / output_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "video.mp4").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return {"name": "video.mp4", "media_type": "video/mp4", "size_bytes": 100, "sha256": digest}


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    storage.prepare(tmp_path / "jobs")
    return tmp_path / "jobs"


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    queue = redis_server.queue(QUEUE)
    yield queue
    await queue.close()


@pytest_asyncio.fixture
async def peer(jobs_dir: Path) -> AsyncIterator[Peer]:
    peer = Peer(jobs_dir)
    await peer.serve()
    yield peer
    await peer.close()


QUEUE = replace(FAST, lease_seconds=1.0, beat_seconds=0.1)


def settings_for(peer: Peer, server: RedisServer, worker: str = "a/0") -> AgentSettings:
    return AgentSettings(
        common=Common("agent", "test", "info", Path("/nonexistent")),
        redis=server.settings,
        queue=QUEUE,
        worker=worker,
        webui_url=f"http://127.0.0.1:{peer.port}",
        jobs_dir=peer.jobs_dir,
        cluster_token=Secret(TOKEN),
        stream_silence_seconds=0.5,
        no_progress_seconds=3.0,
        drain_seconds=0.5,
    )


class Running:
    """An agent in this event loop, with its own connections."""

    def __init__(self, settings: AgentSettings, server: RedisServer) -> None:
        self.stop = asyncio.Event()
        self.queue = server.queue(settings.queue)
        self.webui = Webui(settings.webui_url, settings.cluster_token)
        self.task = asyncio.create_task(Agent(settings, self.queue, self.webui).run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)
        await self.webui.close()
        await self.queue.close()


@pytest_asyncio.fixture
async def agent(peer: Peer, redis_server: RedisServer, queue: Queue) -> AsyncIterator[Running]:
    running = Running(settings_for(peer, redis_server), redis_server)
    yield running
    await running.end()


async def add(queue: Queue, **more: object) -> str:
    job = Submission(new_job_id(), "ada", '{"prompt":"x","steps":3}', "h", Priority.NORMAL, 1000)
    await queue.submit(replace(job, **more))  # type: ignore[arg-type]
    return job.job_id


async def wait_for(queue: Queue, job_id: str, *states: JobState, seconds: float = 8) -> JobRecord:
    deadline = time.monotonic() + seconds
    while True:
        job = await queue.get(job_id)
        assert job is not None
        if job.state in states:
            return job
        assert time.monotonic() < deadline, f"still {job} after {seconds} s"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def test_a_job_is_done_and_committed(queue: Queue, peer: Peer, agent: Running) -> None:
    job_id = await add(queue)
    job = await wait_for(queue, job_id, JobState.DONE)
    commit = storage.read_commit(peer.jobs_dir, job_id)
    assert commit is not None
    assert (commit.fence, commit.worker) == (job.fence, "a/0")
    assert job.result == json.loads(commit.to_json())
    assert peer.requests[0]["output_dir"] == attempt_folder(job_id, job.fence)
    assert peer.requests[0]["request"] == {"prompt": "x", "steps": 3}


@pytest.mark.parametrize("fault", ["break", "garbage", "end", "silent", "stuck"])
async def test_a_webui_that_fails_in_the_middle_costs_one_crash(
    queue: Queue, peer: Peer, agent: Running, fault: str
) -> None:
    peer.plan = [fault]
    job = await wait_for(queue, await add(queue), JobState.DONE)
    assert (job.crashes, job.attempts) == (1, 2)
    folders = [path.name for path in (peer.jobs_dir / job_folder(job.job_id) / "attempts").iterdir()]
    assert folders == [str(job.fence)]


async def test_a_silent_webui_is_given_up_quickly_and_its_stream_closed(
    queue: Queue, peer: Peer, agent: Running
) -> None:
    peer.plan = ["silent"]
    job_id = await add(queue)
    await wait_for(queue, job_id, JobState.RUNNING)
    begin = time.monotonic()
    await wait_for(queue, job_id, JobState.DONE)
    assert time.monotonic() - begin < 2
    await asyncio.wait_for(peer.closed_early.wait(), 2)
    assert job_id in peer.interrupted


@pytest.mark.parametrize(
    ("reason", "state", "counts"),
    [
        ("OOM", JobState.DELAYED, (0, 0, 1)),
        ("CUDA_ERROR", JobState.DELAYED, (0, 1, 0)),
        ("NEW_REASON", JobState.DELAYED, (0, 1, 0)),
        ("INVALID_INPUT", JobState.DEAD, (0, 0, 0)),
        ("WORKER_LOST", JobState.DONE, (0, 0, 0)),
    ],
)
async def test_each_reason_has_its_consequence(
    queue: Queue, peer: Peer, agent: Running, reason: str, state: JobState, counts: tuple[int, int, int]
) -> None:
    peer.plan = [reason]
    job = await wait_for(queue, await add(queue), state)
    assert (job.crashes, job.errors, job.ooms) == counts
    if state is not JobState.DONE:
        assert (job.reason, job.message) == ("UNKNOWN" if reason == "NEW_REASON" else reason, "on purpose")


@pytest.mark.parametrize("status", ["409", "503"])
async def test_a_refused_job_goes_back_for_free(queue: Queue, peer: Peer, agent: Running, status: str) -> None:
    peer.plan = [status]
    job = await wait_for(queue, await add(queue), JobState.DONE)
    assert (job.attempts, job.crashes, job.errors) == (2, 0, 0)


async def test_a_worker_that_fails_every_job_stops_taking_them(queue: Queue, peer: Peer, agent: Running) -> None:
    """Otherwise one sick GPU that fails within milliseconds empties the queue into the dead letters."""
    peer.plan = ["CUDA_ERROR"] * 50
    for _ in range(12):
        await add(queue)
    await asyncio.sleep(2.0)
    assert len(peer.requests) == 2


async def test_an_invalid_job_is_dead_at_once(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["422"]
    job = await wait_for(queue, await add(queue), JobState.DEAD)
    assert (job.reason, job.message) == ("INVALID_INPUT", "refused on purpose")


async def test_a_committed_attempt_is_adopted_without_work(queue: Queue, peer: Peer, redis_server: RedisServer) -> None:
    job_id = await add(queue)
    lost = await take(queue, "dead/0")
    described = storage.ResultFile.parse(peer._write_file(attempt_folder(job_id, lost.fence)))
    storage.write_commit(peer.jobs_dir, storage.new_commit(job_id, lost.fence, "dead/0", (described,)))
    await queue.fail(lost, FailKind.CRASH, "WORKER_LOST", "died before telling")
    running = Running(settings_for(peer, redis_server), redis_server)
    job = await wait_for(queue, job_id, JobState.DONE)
    await running.end()
    assert job.result is not None
    assert (job.result["fence"], job.result["worker"], peer.requests) == (lost.fence, "dead/0", [])


async def test_a_running_job_is_cancelled_within_two_seconds(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    begin = time.monotonic()
    await queue.cancel(job_id)
    await wait_for(queue, job_id, JobState.CANCELLED)
    assert time.monotonic() - begin < 2
    await asyncio.wait_for(peer.closed_early.wait(), 2)


async def test_a_fenced_agent_forgets_the_job_and_frees_its_webui(
    queue: Queue,
    peer: Peer,
    agent: Running,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer.plan = ["wait", "wait"]  # as its lease is still the agent's, the job comes back to it at once
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    await redis.hset(f"{{q}}:j:{job_id}", "nonce", "somebody-else")
    await until(lambda: job_id in peer.interrupted)
    await asyncio.wait_for(peer.closed_early.wait(), 2)
    assert "somebody else's now" in caplog.text, "it was no lost lease"
    assert storage.read_commit(peer.jobs_dir, job_id) is None


async def test_an_unready_webui_or_unmarked_storage_gets_no_job(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.ready = False
    await asyncio.sleep(1.0)
    job_id = await add(queue)
    await asyncio.sleep(1.0)
    assert peer.requests == []
    (peer.jobs_dir / storage.MARKER).unlink()
    peer.ready = True
    await asyncio.sleep(1.0)
    assert peer.requests == []
    storage.prepare(peer.jobs_dir)
    await wait_for(queue, job_id, JobState.DONE)


async def test_leftover_work_is_interrupted_before_a_claim(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.busy = "01900000-0000-7000-8000-000000000000"
    await wait_for(queue, await add(queue), JobState.DONE)
    assert peer.interrupted[0] == "01900000-0000-7000-8000-000000000000"


async def test_a_webui_busy_with_a_run_of_its_own_is_left_alone(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.busy = "local"
    await asyncio.sleep(0.6)
    job_id = await add(queue)
    await asyncio.sleep(1.2)
    job = await queue.get(job_id)
    assert job is not None
    assert (job.state, job.attempts, peer.requests, peer.interrupted) == (JobState.QUEUED, 0, [], [])
    peer.busy = None
    await wait_for(queue, job_id, JobState.DONE)
    assert peer.interrupted == []


async def test_a_drained_agent_lets_a_short_job_finish(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    agent.stop.set()
    await asyncio.sleep(0.1)
    peer.go_on.set()
    await wait_for(queue, job_id, JobState.DONE)


async def test_a_drained_agent_gives_a_long_job_back_for_free(queue: Queue, peer: Peer, agent: Running) -> None:
    peer.plan = ["wait"]
    job_id = await add(queue)
    await until(lambda: bool(peer.requests))
    agent.stop.set()
    job = await wait_for(queue, job_id, JobState.QUEUED)
    assert (job.crashes, job.errors, job.attempts) == (0, 0, 1)
    await asyncio.wait_for(agent.task, 5)
    await asyncio.wait_for(peer.closed_early.wait(), 1)


async def test_a_job_survives_an_outage_of_redis(peer: Peer, images: str) -> None:
    with RedisServer(images) as server:
        queue = server.queue(QUEUE)
        running = Running(settings_for(peer, server), server)
        try:
            peer.plan = ["wait"]
            job_id = await add(queue)
            await until(lambda: bool(peer.requests))
            # In a thread: the agent and its webui live in this loop, and to them a second's standstill is a fault.
            await asyncio.to_thread(server.stop)
            peer.go_on.set()
            await asyncio.sleep(1.5)
            await asyncio.to_thread(server.start)
            await queue.close()
            job = await wait_for(queue, job_id, JobState.DONE)
            assert (job.attempts, job.crashes) == (1, 0)
        finally:
            await running.end()
            await queue.close()


def start_process(peer: Peer, server: RedisServer, folder: Path, worker: str, **more: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "redis_password").write_text(PASSWORD)
    (folder / "cluster_token").write_text(TOKEN)
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": SERVICES, "APPLIANCE_SECRETS_DIR": str(folder),
        "TMPDIR": str(folder), "APPLIANCE_NODE_NAME": "test", "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{server.port}", "APPLIANCE_JOBS_DIR": str(peer.jobs_dir),
        "APPLIANCE_LEASE_SECONDS": "1", "APPLIANCE_BEAT_SECONDS": "0.1", "APPLIANCE_WORKER": worker,
        "APPLIANCE_WEBUI_URL": f"http://127.0.0.1:{peer.port}", "APPLIANCE_DRAIN_SECONDS": "1",
        **more,
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "appliance", "agent"], env=environment)


async def tick_for_ever(queue: Queue) -> None:
    while True:
        await queue.tick()
        await asyncio.sleep(0.1)


async def test_a_frozen_agent_wakes_up_fenced(
    queue: Queue,
    peer: Peer,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    """SIGSTOP in the middle of a job whose result is there when it wakes: one commit, by the heir."""
    process = start_process(peer, redis_server, tmp_path / "a", "a/0")
    ticking = asyncio.create_task(tick_for_ever(queue))
    try:
        peer.plan = ["wait"]
        job_id = await add(queue)
        await until(lambda: bool(peer.requests), 10)
        process.send_signal(signal.SIGSTOP)
        peer.go_on.set()
        await wait_for(queue, job_id, JobState.QUEUED)
        heir = await take(queue, "b/0")
        described = storage.ResultFile.parse(peer._write_file(attempt_folder(job_id, heir.fence)))
        mine = storage.new_commit(job_id, heir.fence, "b/0", (described,))
        process.send_signal(signal.SIGCONT)
        for _ in range(8):  # the heir is alive all the while
            await asyncio.sleep(0.1)
            assert await queue.beat(heir) is BeatAnswer.OK
        assert storage.read_commit(peer.jobs_dir, job_id) is None
        assert storage.write_commit(peer.jobs_dir, mine).fence == heir.fence
        assert await queue.commit(heir, mine.to_json()) is CommitAnswer.DONE
        job = await wait_for(queue, job_id, JobState.DONE)
        assert job.result is not None
        assert job.result["worker"] == "b/0"
    finally:
        ticking.cancel()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert process.wait(10) == 0


async def test_a_killed_agents_job_runs_again_elsewhere(
    queue: Queue,
    peer: Peer,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    first = start_process(peer, redis_server, tmp_path / "a", "a/0")
    second: subprocess.Popen[bytes] | None = None
    ticking = asyncio.create_task(tick_for_ever(queue))
    try:
        peer.plan = ["wait"]
        job_id = await add(queue)
        await until(lambda: bool(peer.requests), 10)
        second = start_process(peer, redis_server, tmp_path / "b", "b/0")
        await until(lambda: (tmp_path / "b" / "appliance-agent.alive").exists())
        first.kill()
        job = await wait_for(queue, job_id, JobState.DONE)
        assert (job.worker, job.crashes, job.attempts) == ("b/0", 1, 2)
    finally:
        ticking.cancel()
        first.kill()
        first.wait(5)
        if second is not None:
            second.terminate()
            assert second.wait(10) == 0
