"""Events over SSE and WebSocket: they go on where a client left off, whatever was restarted in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from appliance import keys
from appliance.errors import QueueUnavailable
from appliance.job import new_job_id
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Queue
from appliance.redis_link import RedisLink
from appliance.settings import Address, QueueSettings, RedisSettings, Secret
from tests.integration.api_process import KEYS, client_of, running_api
from tests.integration.redis_server import PASSWORD, RedisServer, closing, redis, redis_server, take
from tests.integration.test_sentinel import Group, group

__all__ = ["group", "redis", "redis_server"]
pytestmark = pytest.mark.docker
# A failover may have to be voted for twice.
STREAM_SECONDS = 40


PATIENT = QueueSettings(lease_seconds=30)  # here nobody beats in the background


@pytest_asyncio.fixture
async def queue(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Queue]:
    async with closing(redis_server.queue(PATIENT)) as queue:
        yield queue


def patient_queue(group: Group) -> Queue:
    sentinels = tuple(Address("127.0.0.1", sentinel.port) for sentinel in group.sentinels)
    settings = RedisSettings(None, sentinels, "queue", "default", Secret(PASSWORD), 1)
    return Queue(RedisLink(settings), PATIENT, replicas=1)


@dataclass(frozen=True)
class Event:
    id: str
    kind: str
    data: dict[str, Any]


def at(server: RedisServer) -> dict[str, str]:
    return {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{server.port}"}


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "event" in fields:
                yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}


async def follow(client: httpx.AsyncClient, job_id: str, last: str | None, until: str) -> list[Event]:
    """Events up to the first of kind `until`, or to the end of the stream."""
    headers = {"Last-Event-ID": last} if last else {}
    seen: list[Event] = []
    async with client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers, timeout=STREAM_SECONDS) as answer:
        assert answer.status_code == 200
        async for event in events_of(answer):
            seen.append(event)
            if event.kind == until:
                break
    return seen


async def submit(client: httpx.AsyncClient) -> str:
    response = await client.post("/api/v1/jobs", json={"prompt": "a"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def beat_on(queue: Queue, claim: Claim, step: int) -> None:
    """As an agent does: again until Redis is back."""
    while True:
        try:
            assert await queue.beat(claim, step, 40, "step") is BeatAnswer.OK
            return
        except QueueUnavailable:
            await asyncio.sleep(0.1)


async def test_a_client_goes_on_at_another_api(redis_server: RedisServer, queue: Queue, tmp_path: Path) -> None:
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        job_id = await submit(client)
        claim = await take(queue)
        await beat_on(queue, claim, 1)
        first = await follow(client, job_id, None, "progress")
        assert [event.kind for event in first] == ["job", "queued", "running", "progress"]
    await beat_on(queue, claim, 2)
    assert await queue.commit(claim, '{"files": []}') is CommitAnswer.DONE
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        rest = await follow(client, job_id, first[-1].id, "never")
        assert [(event.kind, event.data.get("step")) for event in rest] == [("progress", 2), ("done", None)]
        again = {"Last-Event-ID": rest[-1].id}
        assert (await client.get(f"/api/v1/jobs/{job_id}/events", headers=again)).status_code == 204


async def test_streams_outlive_a_failover(group: Group, tmp_path: Path) -> None:
    """One client stays connected, one comes back with the last id it has seen."""
    sentinels = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in group.sentinels)
    where = {"APPLIANCE_SENTINELS": sentinels, "APPLIANCE_REDIS_REPLICAS": "1", "APPLIANCE_SENTINEL_MASTER": "queue"}
    async with (
        running_api(tmp_path, where) as url,
        client_of(url, "ada") as client,
        closing(patient_queue(group)) as queue,
    ):
        job_id = await submit(client)
        claim = await take(queue)
        for step in (1, 2, 3):
            await beat_on(queue, claim, step)
        before = await follow(client, job_id, None, "progress")
        staying = asyncio.create_task(follow(client, job_id, None, "never"))
        try:
            await asyncio.sleep(1.0)
            (await group.master()).kill()
            for step in (4, 5, 6):
                await beat_on(queue, claim, step)
            back = await follow(client, job_id, before[-1].id, "progress")
            assert back[0].data["step"] > before[-1].data["step"]
            assert await queue.commit(claim, '{"files": []}') is CommitAnswer.DONE
            stayed = await asyncio.wait_for(staying, STREAM_SECONDS)
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)
    numbered = [tuple(int(part) for part in event.id.split("-")) for event in stayed if event.id]
    assert numbered == sorted(set(numbered))
    steps = [event.data["step"] for event in stayed if event.kind == "progress"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6
    assert stayed[-1].kind == "done"


async def test_a_dead_job_that_is_tried_again_streams_on(
    redis_server: RedisServer, queue: Queue, tmp_path: Path
) -> None:
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        job_id = await submit(client)
        await queue.fail(await take(queue), FailKind.PERMANENT, "OOM", "too big")
        dead = await follow(client, job_id, None, "never")
        assert [event.kind for event in dead] == ["job", "queued", "running", "dead"]
        assert (await client.post(f"/api/v1/jobs/{job_id}/retry")).status_code == 202
        assert await queue.commit(await take(queue), '{"files": []}') is CommitAnswer.DONE
        again = await follow(client, job_id, None, "never")
        assert [event.kind for event in again][1:] == ["queued", "running", "dead", "queued", "running", "done"]
        rest = await follow(client, job_id, dead[-1].id, "never")
        assert [event.kind for event in rest] == ["queued", "running", "done"]


async def test_events_that_are_not_kept_any_more(
    redis_server: RedisServer, queue: Queue, redis: Redis, tmp_path: Path
) -> None:
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        job_id = await submit(client)
        claim = await take(queue)
        seen = await follow(client, job_id, None, "running")
        assert await queue.commit(claim, '{"files": []}') is CommitAnswer.DONE
        await redis.delete(keys.job_events(job_id))
        for last in (None, seen[-1].id):
            (end,) = await follow(client, job_id, last, "never")
            assert (end.kind, end.data["state"]) == ("job", "done")
            headers = {"Last-Event-ID": end.id}
            assert (await client.get(f"/api/v1/jobs/{job_id}/events", headers=headers)).status_code == 204


async def test_the_websocket_twin_resumes_too(redis_server: RedisServer, queue: Queue, tmp_path: Path) -> None:
    headers = {"X-Api-Key": KEYS["ada"]}
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        job_id = await submit(client)
        claim = await take(queue)
        address = f"{url.replace('http', 'ws', 1)}/api/v1/jobs/{job_id}/ws"
        async with connect(address, additional_headers=headers, proxy=None) as socket:
            messages = [json.loads(await socket.recv()) for _ in range(3)]
        assert [message["event"] for message in messages] == ["job", "queued", "running"]
        assert await queue.commit(claim, '{"files": []}') is CommitAnswer.DONE
        resumed = f"{address}?last_event_id={messages[-1]['id']}"
        async with connect(resumed, additional_headers=headers, proxy=None) as socket:
            rest = [json.loads(message) async for message in socket]
        assert [message["event"] for message in rest] == ["done"]
        async with connect(
            f"{address}?last_event_id={rest[0]['id']}", additional_headers=headers, proxy=None
        ) as socket:
            assert [message async for message in socket] == []


async def test_a_wrong_key_is_told_to_a_websocket_as_to_all(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    """By the status the gateway counts who guesses. It is the guesser's error, not one of ours to be alarmed by."""
    async with running_api(tmp_path, at(redis_server)) as url:
        address = f"{url.replace('http', 'ws', 1)}/api/v1/jobs/{new_job_id()}/ws"
        with pytest.raises(InvalidStatus) as caught:
            await connect(address, additional_headers={"X-Api-Key": "guessed"}, proxy=None)
        assert caught.value.response.status_code == 401
    lines = [json.loads(line) for line in (tmp_path / "api.log").read_text().splitlines()]
    assert lines, "it writes its log there"
    assert [line for line in lines if line["log.level"] in ("error", "critical")] == []


@pytest.mark.parametrize(
    ("origin", "forwarded", "opens"),
    [
        ("{here}", None, True),
        ("https://video.example", "video.example", True),
        ("https://video.example", "video.example:443", True),
        ("https://evil.example", None, False),
        ("https://evil.example", "video.example", False),
        ("https://video.example:8443", "video.example", False),
        ("http://video.example:x", "video.example", False),
        ("null", None, False),
    ],
)
async def test_a_foreign_page_opens_no_websocket(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, origin: str, forwarded: str | None, opens: bool
) -> None:
    headers = {"Authorization": "Basic YW55Ym9keTphZGEta2V5"}  # as a browser that knows the password sends it
    if forwarded:
        headers["X-Forwarded-Host"] = forwarded
    async with running_api(tmp_path, at(redis_server)) as url, client_of(url, "ada") as client:
        address = f"{url.replace('http', 'ws', 1)}/api/v1/jobs/{await submit(client)}/ws"
        headers["Origin"] = origin.format(here=url)
        if opens:
            async with connect(address, additional_headers=headers, proxy=None) as socket:
                assert json.loads(await socket.recv())["event"] == "job"
        else:
            with pytest.raises(InvalidStatus) as caught:
                await connect(address, additional_headers=headers, proxy=None)
            assert caught.value.response.status_code == 403
