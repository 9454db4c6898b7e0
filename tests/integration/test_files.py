"""Results with many files, from a real webui through a real agent, Redis and storage to the public API."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import av
import httpx
import pytest
import pytest_asyncio
from PIL import Image

from appliance import storage
from appliance.api.app import create_app
from appliance.job import JobState
from appliance.queue import Queue
from appliance.settings import Address, ApiSettings, Common
from tests.integration.api_process import write_keys
from tests.integration.redis_server import RedisServer, redis, redis_server
from tests.integration.test_agent import wait_for
from tests.integration.test_agent_webui import QUEUE, StartAgent, StartNode, agent, node, queue

__all__ = ["agent", "node", "queue", "redis", "redis_server"]
pytestmark = pytest.mark.docker

EVERY = ["mp4", "gif", "webp", "webm", "frames"]


@pytest_asyncio.fixture
async def api(redis_server: RedisServer, queue: Queue, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_keys(tmp_path / "api_keys")
    common, listen = Common("api", "test", "info", tmp_path), Address("127.0.0.1", 0)
    settings = ApiSettings(common, redis_server.settings, QUEUE, listen, tmp_path / "jobs", tmp_path / "api_keys")
    transport = httpx.ASGITransport(create_app(settings, queue), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers={"X-Api-Key": "ada-key"}) as client:
        yield client


async def finished(api: httpx.AsyncClient, queue: Queue, **request: object) -> str:
    small = {"prompt": "a cat", "width": 64, "height": 64, "frames": 3, "steps": 2}
    answer = await api.post("/api/v1/jobs", json=small | request)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    await wait_for(queue, job_id, JobState.DONE, seconds=20)
    return job_id


async def test_every_format_of_one_job(
    api: httpx.AsyncClient, queue: Queue, node: StartNode, agent: StartAgent
) -> None:
    agent(await node())
    job_id = await finished(api, queue, format=EVERY[::-1])
    url = f"/api/v1/jobs/{job_id}"
    listed = (await api.get(url)).json()["result"]
    frames = ["frame-0000.png", "frame-0001.png", "frame-0002.png"]
    assert [file["name"] for file in listed] == ["video.mp4", "video.gif", "video.webp", "video.webm", *frames]
    for file in listed:
        answer = await api.get(file["url"])
        assert (answer.status_code, answer.headers["content-type"]) == (200, file["media_type"])
        assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (file["size_bytes"], file["sha256"])
    for number, kind in enumerate(["mp4", "gif", "webp", "webm", "png"]):
        answer = await api.get(f"{url}/result", params={"format": kind})
        assert answer.headers["content-type"] == listed[number]["media_type"]
        assert answer.headers["content-disposition"] == f'inline; filename="{listed[number]["name"]}"'
    assert (await api.get(f"{url}/result")).headers["content-type"] == "video/mp4"
    last = await api.get(f"{url}/result", params={"format": "png", "file": 2}, headers={"Range": "bytes=0-7"})
    assert (last.status_code, last.content) == (206, b"\x89PNG\r\n\x1a\n")
    with av.open(io.BytesIO((await api.get(f"{url}/result", params={"format": "webm"})).content)) as video:
        assert len(list(video.decode(video=0))) == 3


async def test_a_format_that_was_not_asked_for(
    api: httpx.AsyncClient, queue: Queue, node: StartNode, agent: StartAgent
) -> None:
    agent(await node())
    url = f"/api/v1/jobs/{await finished(api, queue, format=['gif', 'frames'])}/result"
    first = await api.get(url)
    assert first.headers["content-type"] == "image/gif"
    with Image.open(io.BytesIO(first.content)) as image:
        assert image.n_frames == 3
    for params, said in [
        ({"format": "mp4"}, "the result has 0 mp4 files"),
        ({"format": "png", "file": 3}, "the result has 3 png files"),
        ({"file": 4}, "the result has 4 files"),
    ]:
        answer = await api.get(url, params=params)
        assert (answer.status_code, answer.json()["type"]) == (404, "no-such-file")
        assert said in answer.json()["detail"]
    assert (await api.get(url, params={"format": "exe"})).status_code == 422


async def test_as_many_frames_as_there_can_be(
    api: httpx.AsyncClient, queue: Queue, node: StartNode, agent: StartAgent, tmp_path: Path
) -> None:
    agent(await node())
    job_id = await finished(api, queue, frames=128, format=EVERY)
    commit = storage.read_commit(tmp_path / "jobs", job_id)
    assert commit is not None
    assert len(commit.files) == 132
    assert len(commit.to_json()) < storage.COMMIT_BYTES // 8
    answer = await api.get(f"/api/v1/jobs/{job_id}/result", params={"format": "png", "file": 127})
    assert answer.content.startswith(b"\x89PNG")
    events = (await api.get(f"/api/v1/jobs/{job_id}/events")).text
    assert json.loads(events.rstrip().splitlines()[-1].removeprefix("data: "))
