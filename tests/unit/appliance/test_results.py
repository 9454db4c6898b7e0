"""`GET /result` over HTTP, with a queue that knows one finished job and real files."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio

from appliance.api.app import create_app
from appliance.job import attempt_folder, new_job_id
from appliance.queue import JobRecord, Queue
from appliance.settings import Address, ApiSettings, Common, QueueSettings, RedisSettings, Secret
from appliance.storage import ResultFile, new_commit

JOB = new_job_id()
URL = f"/api/v1/jobs/{JOB}/result"
FILES = [
    ("video.mp4", "video/mp4", b"an mp4"),
    ("video.gif", "image/gif", b"a gif"),
    ("video.webp", "image/webp", b"a webp"),
    ("video.webm", "video/webm", b"a webm"),
    ("frame-0000.png", "image/png", b"frame 0"),
    ("frame-0001.png", "image/png", b"frame 1"),
    ("page.html", "text/html", b"<script>"),
]


class OneJob:
    """The part of the queue that reading a result asks."""

    def __init__(self, files: list[ResultFile]) -> None:
        result = new_commit(JOB, 5, "a/0", tuple(files)).to_json()
        facts = {"id": JOB, "user": "ada", "state": "done", "prio": "normal", "created": "1", "result": result}
        self._job = JobRecord.parse(facts, None)

    async def get(self, job_id: str) -> JobRecord | None:
        return self._job if job_id == JOB else None


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path / "jobs" / attempt_folder(JOB, 5)
    folder.mkdir(parents=True)
    described = []
    for name, media_type, content in FILES:
        (folder / name).write_bytes(content)
        described.append(ResultFile(name, media_type, len(content), hashlib.sha256(content).hexdigest()))
    (tmp_path / "keys").write_text(f"ada:user:{hashlib.sha256(b'key').hexdigest()}\n")
    nowhere = Address("127.0.0.1", 1)
    redis = RedisSettings(nowhere, (), "queue", "default", Secret(""), 0)
    common = Common("api", "test", "info", tmp_path)
    settings = ApiSettings(common, redis, QueueSettings(), nowhere, tmp_path / "jobs", tmp_path / "keys")
    app = create_app(settings, cast(Queue, OneJob(described)))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers={"X-Api-Key": "key"}) as client:
        yield client


@pytest.mark.parametrize("number", range(6))
async def test_each_file_by_its_number(api: httpx.AsyncClient, number: int) -> None:
    name, media_type, content = FILES[number]
    answer = await api.get(URL, params={"file": number})
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-disposition"] == f'inline; filename="{name}"'
    listed = (await api.get(f"/api/v1/jobs/{JOB}")).json()["result"][number]
    assert (listed["name"], listed["media_type"], listed["size_bytes"]) == (name, media_type, len(content))
    assert listed["url"] == f"{URL}?file={number}"


async def test_what_a_browser_would_run_is_only_downloaded(api: httpx.AsyncClient) -> None:
    assert (await api.get(URL, params={"file": 6})).headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("params", "content"),
    [
        ({}, b"an mp4"),
        ({"format": "mp4"}, b"an mp4"),
        ({"format": "gif"}, b"a gif"),
        ({"format": "webp"}, b"a webp"),
        ({"format": "webm"}, b"a webm"),
        ({"format": "png"}, b"frame 0"),
        ({"format": "png", "file": 1}, b"frame 1"),
    ],
)
async def test_a_format_by_its_name(api: httpx.AsyncClient, params: dict[str, Any], content: bytes) -> None:
    whole = await api.get(URL, params=params)
    assert (whole.status_code, whole.content) == (200, content)
    part = await api.get(URL, params=params, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, content[1:3])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"format": "mp4", "file": 1}, "the result has 1 mp4 files"),
        ({"format": "png", "file": 2}, "the result has 2 png files"),
        ({"file": 7}, "the result has 7 files"),
    ],
)
async def test_a_file_that_is_not_there_says_what_is(api: httpx.AsyncClient, params: dict[str, Any], said: str) -> None:
    answer = await api.get(URL, params=params)
    assert (answer.status_code, answer.json()["type"]) == (404, "no-such-file")
    assert said in answer.json()["detail"]


async def test_an_unknown_format_is_refused_by_name(api: httpx.AsyncClient) -> None:
    answer = await api.get(URL, params={"format": "exe"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["format"]


async def test_the_formats_are_documented(api: httpx.AsyncClient) -> None:
    described = (await api.get("/api/v1/openapi.json")).json()
    operation = described["paths"]["/api/v1/jobs/{job_id}/result"]["get"]
    assert {"file", "format"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert described["components"]["schemas"]["FileFormat"]["enum"] == ["mp4", "gif", "webp", "webm", "png"]
    assert "video/webm" in operation["responses"]["200"]["content"]
