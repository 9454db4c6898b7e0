"""The public HTTP API on a queue in a real Redis."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance import keys, storage
from appliance.api.app import create_app
from appliance.api.ticker import Ticker
from appliance.job import MAX_PIXEL_FRAMES, attempt_folder
from appliance.queue import CommitAnswer, FailKind, Queue
from appliance.redis_link import RedisLink
from appliance.settings import Address, ApiSettings, Common
from tests.integration.api_process import KEYS, client_of, running_api, write_keys
from tests.integration.redis_server import (  # noqa: F401
    FAST,
    RedisServer,
    add,
    queue,
    redis,
    redis_server,
    take,
)

pytestmark = pytest.mark.docker
ABOUT = {"boot_id": "b", "state": "idle", "engine": "synthetic", "fingerprint": "f", "synthetic": "1"}


@pytest.fixture
def api_settings(redis_server: RedisServer, tmp_path: Path) -> ApiSettings:
    write_keys(tmp_path / "api_keys")
    common = Common("api", "test", "info", tmp_path)
    listen = Address("127.0.0.1", 0)
    return ApiSettings(common, redis_server.settings, FAST, listen, tmp_path / "jobs", tmp_path / "api_keys")


@pytest_asyncio.fixture
async def api(api_settings: ApiSettings, queue: Queue) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(api_settings, queue), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://api", headers={"X-Api-Key": "ada-key"}
    ) as client:
        yield client


def as_user(name: str) -> dict[str, str]:
    return {"X-Api-Key": KEYS[name]}


def assert_problem(response: httpx.Response, status: int, slug: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == slug
    assert "Traceback" not in response.text


async def test_submit_read_list_cancel(api: httpx.AsyncClient) -> None:
    response = await api.post("/api/v1/jobs", json={"prompt": "a cat", "frames": 8})
    assert response.status_code == 202
    job = response.json()
    assert (job["state"], job["position"], job["eta_seconds"]) == ("queued", 1, None)
    assert (await api.get(response.headers["location"])).json()["id"] == job["id"]
    listed = (await api.get("/api/v1/jobs", params={"state": "queued"})).json()
    assert [item["id"] for item in listed["jobs"]] == [job["id"]]
    assert (await api.delete(f"/api/v1/jobs/{job['id']}")).json()["state"] == "cancelled"
    assert (await api.delete(f"/api/v1/jobs/{job['id']}")).json()["state"] == "cancelled"


async def test_a_job_has_a_budget_of_pixels(api: httpx.AsyncClient) -> None:
    big = {"prompt": "a", "width": 1024, "height": 1024}
    response = await api.post("/api/v1/jobs", json={**big, "frames": 65})
    assert_problem(response, 422, "job-too-large")
    assert response.json()["max_pixel_frames"] == MAX_PIXEL_FRAMES
    assert "at most 64 frames" in response.json()["detail"]
    assert (await api.post("/api/v1/jobs", json={**big, "frames": 64})).status_code == 202


async def test_a_job_that_no_worker_can_run_is_refused_at_once(api: httpx.AsyncClient, queue: Queue) -> None:
    wanted = {"prompt": "a", "model": "toon", "frames": 100}
    assert (await api.post("/api/v1/jobs", json=wanted)).status_code == 202  # nobody has told what there is
    await queue.register("gpu-01/0", **ABOUT, capabilities='{"models": ["real"], "max_frames": 32}')
    response = await api.post("/api/v1/jobs", json=wanted)
    assert_problem(response, 422, "no-worker-fits")
    assert response.json()["missing"] == ["model", "frames"]
    assert "model 'toon'" in response.json()["detail"]
    await queue.register("gpu-02/0", **ABOUT, capabilities='{"models": ["toon"], "max_frames": 32}')
    await queue.register("gpu-03/0", **ABOUT, capabilities='{"models": ["real"], "max_frames": 128}')
    response = await api.post("/api/v1/jobs", json=wanted)
    assert_problem(response, 422, "no-worker-fits")
    assert response.json()["missing"] == []
    assert "no single worker" in response.json()["detail"]
    assert (await api.post("/api/v1/jobs", json={"prompt": "a", "model": "toon"})).status_code == 202


async def test_a_dead_job_is_tried_again(api: httpx.AsyncClient, queue: Queue) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    url = f"/api/v1/jobs/{job_id}"
    assert_problem(await api.post(f"{url}/retry"), 409, "not-dead")
    await queue.fail(await take(queue), FailKind.PERMANENT, "OOM", "needs more memory than any GPU has")
    assert (await api.get(url)).json()["state"] == "dead"
    assert_problem(await api.post(f"{url}/retry", headers=as_user("bob")), 404, "no-such-job")
    for _ in range(2):
        response = await api.post(f"{url}/retry")
        assert (response.status_code, response.json()["state"]) == (202, "queued")
        assert response.headers["location"] == url
    view = (await api.get(url)).json()
    assert (view["state"], view["error"]) == ("queued", None)


async def test_a_dead_jobs_request_may_be_gone(api: httpx.AsyncClient, queue: Queue, redis: Redis) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    await queue.fail(await take(queue), FailKind.PERMANENT, "INVALID_INPUT", "no such sampler")
    await redis.delete(keys.request(job_id))
    assert_problem(await api.post(f"/api/v1/jobs/{job_id}/retry"), 409, "request-gone")


async def test_a_job_tells_what_became_of_its_attempts(api: httpx.AsyncClient, queue: Queue) -> None:
    url = f"/api/v1/jobs/{(await api.post('/api/v1/jobs', json={'prompt': 'a'})).json()['id']}"
    claim = await take(queue, "gpu-01/0")
    await queue.beat(claim, 12, 40, "step", memory="context 12", resumed_from=4, checkpoint_step=10)
    view = (await api.get(url)).json()
    assert (view["checkpoint_step"], view["resumed_from"]) == (10, 4)
    assert view["progress"] == {"step": 12, "total_steps": 40, "phase": "step", "memory": "context 12"}
    await queue.fail(claim, FailKind.OOM, "OOM", "CUDA out of memory", where="webui.engine.decode:decode")
    attempts = (await api.get(url)).json()["attempts"]
    assert (attempts["total"], attempts["oom"]) == (1, 1)
    (attempt,) = attempts["history"]
    assert time.time() - 60 < attempt.pop("started_at") <= attempt.pop("at") < time.time() + 60
    assert attempt == {
        "fence": claim.fence,
        "worker": "gpu-01/0",
        "kind": "oom",
        "reason": "OOM",
        "message": "CUDA out of memory",
        "memory": "context 12",
        "step": 12,
        "resumed_from": 4,
        "gpu": None,
        "where": "webui.engine.decode:decode",
    }


async def test_idempotency_over_http(api: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = await api.post("/api/v1/jobs", json={"prompt": "a", "steps": 5}, headers=key)
    again = await api.post("/api/v1/jobs", json={"steps": 5, "prompt": "a"}, headers=key)
    assert again.json()["id"] == first.json()["id"]
    assert_problem(await api.post("/api/v1/jobs", json={"prompt": "b"}, headers=key), 409, "idempotency-conflict")


async def test_a_full_queue_says_when_to_come_back(api: httpx.AsyncClient) -> None:
    for _ in range(FAST.queue_limit):
        assert (await api.post("/api/v1/jobs", json={"prompt": "a"})).status_code == 202
    response = await api.post("/api/v1/jobs", json={"prompt": "a"})
    assert_problem(response, 503, "queue-full")
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": "a", "width": 65}, "width"),
        ({"prompt": "a", "steps": 151}, "steps"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "steps": "20"}, "steps"),
        ({"prompt": "a", "steps": True}, "steps"),
        ({"prompt": "a", "closed_loop": 1}, "closed_loop"),
        ({"prompt": "a", "model": "../secret"}, "model"),
        ({"prompt": "a" * 4001}, "prompt"),
        ({"prompt": "a", "metadata": {"x": "y" * 5000}}, "metadata"),
        ({"prompt": "a", "loras": [{"name": "x"}] * 9}, "loras"),
        ({"prompt": "a", "format": ["exe"]}, "format.0"),
    ],
)
async def test_bad_requests_are_refused_by_name(api: httpx.AsyncClient, body: object, field: str) -> None:
    response = await api.post("/api/v1/jobs", json=body)
    assert_problem(response, 422, "invalid-request")
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize("content", [b"{", b'{"prompt": "\\ud800"}', b'{"prompt":"a","cfg_scale":NaN}', b"[" * 5000])
async def test_hostile_json_is_the_clients_error(api: httpx.AsyncClient, content: bytes) -> None:
    response = await api.post("/api/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"


async def test_bodies_are_bounded_while_they_stream(api: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    headers = {"Content-Type": "application/json"}
    assert_problem(await api.post("/api/v1/jobs", content=endless(), headers=headers), 413, "body-too-large")
    assert sent <= 26 * 1024 * 1024
    padded = json.dumps({"prompt": "a"}) + " " * 1024 * 1024
    assert_problem(await api.post("/api/v1/jobs", content=padded, headers=headers), 413, "body-too-large")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Api-Key": "ada-key"},
        {"Authorization": "Bearer ada-key"},
        {"Authorization": "Basic YW55Ym9keTphZGEta2V5"},
    ],
)
async def test_the_three_ways_to_present_a_key(api: httpx.AsyncClient, headers: dict[str, str]) -> None:
    del api.headers["X-Api-Key"]
    assert (await api.get("/internal/auth", headers=headers)).status_code == 204


async def test_without_a_key_nothing_but_health_answers(api: httpx.AsyncClient) -> None:
    wrong = {"X-Api-Key": "guess"}
    for path in ("/api/v1/jobs", "/api/v1/cluster", "/api/v1/openapi.json", "/nowhere"):
        response = await api.get(path, headers=wrong)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert (await api.get("/internal/auth", headers=wrong)).headers["www-authenticate"].startswith("Basic")
    assert (await api.get("/healthz", headers=wrong)).status_code == 200
    assert (await api.get("/readyz", headers=wrong)).status_code == 200


async def test_a_new_key_works_without_a_restart(api: httpx.AsyncClient, api_settings: ApiSettings) -> None:
    digest = hashlib.sha256(b"late").hexdigest()
    with api_settings.api_keys_file.open("a") as file:
        file.write(f"late:user:{digest}\n")
    await asyncio.sleep(1.1)
    assert (await api.get("/internal/auth", headers={"X-Api-Key": "late"})).status_code == 204


async def test_a_strangers_job_does_not_exist(api: httpx.AsyncClient) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    for path in (
        f"/api/v1/jobs/{job_id}",
        f"/api/v1/jobs/{job_id}/events",
        f"/api/v1/jobs/{job_id}/result",
        f"/api/v1/jobs/{job_id}/preview",
    ):
        assert_problem(await api.get(path, headers=as_user("bob")), 404, "no-such-job")
    assert_problem(await api.delete(f"/api/v1/jobs/{job_id}", headers=as_user("bob")), 404, "no-such-job")
    assert (await api.get("/api/v1/jobs", headers=as_user("bob"))).json()["jobs"] == []
    assert (await api.get(f"/api/v1/jobs/{job_id}", headers=as_user("root"))).status_code == 200


async def test_pages_join_without_gaps(api: httpx.AsyncClient) -> None:
    ids = [(await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"] for _ in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/api/v1/jobs", params=params)).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)
    assert len(seen) == 7


async def finish_job(queue: Queue, jobs_dir: Path, job_id: str, content: bytes) -> None:
    claim = await take(queue)
    assert claim.job_id == job_id
    folder = jobs_dir / attempt_folder(job_id, claim.fence)
    folder.mkdir(parents=True)
    (folder / "video.mp4").write_bytes(content)
    described = storage.ResultFile("video.mp4", "video/mp4", len(content), hashlib.sha256(content).hexdigest())
    commit = storage.write_commit(jobs_dir, storage.new_commit(job_id, claim.fence, "a/0", (described,)))
    assert await queue.commit(claim, commit.to_json()) is CommitAnswer.DONE


async def test_the_newest_picture_of_a_job(api: httpx.AsyncClient, queue: Queue) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    url = f"/api/v1/jobs/{job_id}/preview"
    assert_problem(await api.get(url), 404, "no-preview")
    claim = await take(queue)
    for content in (b"first", b"second"):
        await queue.beat(claim, 1, 3, "step", preview=base64.b64encode(content).decode())
        answer = await api.get(url)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, content, "image/jpeg")
        assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")


async def test_the_result_with_ranges(api: httpx.AsyncClient, queue: Queue, api_settings: ApiSettings) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    url = f"/api/v1/jobs/{job_id}/result"
    assert_problem(await api.get(url), 409, "not-finished")
    await finish_job(queue, api_settings.jobs_dir, job_id, b"0123456789")
    whole = await api.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "video/mp4")
    part = await api.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (await api.head(url)).headers["content-length"] == "10"
    assert_problem(await api.get(url, params={"file": 1}), 404, "no-such-file")
    view = (await api.get(f"/api/v1/jobs/{job_id}")).json()
    assert view["result"][0]["url"] == f"{url}?file=0"


async def test_events_stream_and_resume(api: httpx.AsyncClient, queue: Queue, api_settings: ApiSettings) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    await finish_job(queue, api_settings.jobs_dir, job_id, b"x")
    url = f"/api/v1/jobs/{job_id}/events"
    text = (await api.get(url)).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["job", "queued", "running", "done"]
    ids = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]
    rest = (await api.get(url, headers={"Last-Event-ID": ids[1]})).text
    assert [line for line in rest.splitlines() if line.startswith("event: ")] == ["event: done"]
    assert (await api.get(url, headers={"Last-Event-ID": ids[2]})).status_code == 204


async def test_the_cluster_shows_workers_and_counts(api: httpx.AsyncClient, queue: Queue) -> None:
    await queue.register("gpu-01/0", **ABOUT)
    await api.post("/api/v1/jobs", json={"prompt": "a"})
    await queue.fail(await take(queue, "gpu-01/0"), FailKind.CRASH, "GPU_LOST", "fell off the bus")
    cluster = (await api.get("/api/v1/cluster")).json()
    assert [(w["name"], w["alive"], w["seq"]) for w in cluster["workers"]] == [("gpu-01/0", True, 1)]
    assert cluster["queue"]["waiting"] == 1
    assert cluster["failures_last_hour"] == {"GPU_LOST": 1}


async def test_the_cluster_shows_what_workers_can_do_and_operators_its_events(
    api: httpx.AsyncClient, queue: Queue
) -> None:
    gpu = {"name": "RTX 4090", "memory_total_mib": 24564, "memory_used_mib": 900}
    can = {"models": ["toon"], "motion_modules": [], "vram_mib": 24564, "max_frames": 32}
    about = {**ABOUT, "capabilities": json.dumps(can)}
    await queue.register("gpu-01/0", **about, gpu=json.dumps(gpu))
    await queue.register("gpu-01/1", **about, gpu='{"name": 7}')
    cluster = (await api.get("/api/v1/cluster")).json()
    assert cluster["events"] is None
    assert [worker["gpu"] for worker in cluster["workers"]] == [gpu, None]
    assert cluster["workers"][0]["capabilities"] == can
    events = (await api.get("/api/v1/cluster", headers=as_user("root"))).json()["events"]
    assert [(event["type"], event["worker"], event["job"]) for event in events][:1] == [("worker_up", "gpu-01/0", None)]
    assert events[0]["at"] == pytest.approx(time.time(), abs=60)


async def test_the_ticker_repairs_the_records_and_says_so(
    queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await add(queue)
    await redis.zrem(keys.ready(), job_id)  # as if a failover had cut a script in two
    await Ticker(queue).tick_once()
    assert (await take(queue)).job_id == job_id
    assert "records of the queue repaired: requeued 1" in caplog.text


async def test_unknown_paths_and_methods_are_problems(api: httpx.AsyncClient) -> None:
    assert_problem(await api.get("/nowhere"), 404, "not-found")
    response = await api.put("/api/v1/jobs")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, POST"
    assert (await api.get("/api/v1/openapi.json")).json()["paths"]["/api/v1/jobs"]["post"]


async def test_bugs_are_hidden_from_clients(
    api: httpx.AsyncClient, queue: Queue, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = (await api.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
    await redis.hset(keys.job(job_id), "state", "not-a-state")
    assert_problem(await api.get(f"/api/v1/jobs/{job_id}"), 500, "internal-error")


async def test_the_api_process_ends_open_streams_and_exits_0(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as client_side:
        where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
        async with running_api(tmp_path, where) as url:
            client = await client_side.enter_async_context(client_of(url, "ada"))
            job_id = (await client.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
            stream = await client_side.enter_async_context(client.stream("GET", f"/api/v1/jobs/{job_id}/events"))
            lines = stream.aiter_lines()
            while await lines.__anext__() != "event: job":
                pass
        assert [line async for line in lines][-1] == ""


async def test_a_storage_that_hangs_takes_nothing_with_it(api: httpx.AsyncClient) -> None:
    """Whoever downloads waits in a thread; here all of them do."""
    threads = anyio.to_thread.current_default_thread_limiter()
    readers = [object() for _ in range(int(threads.available_tokens))]
    for reader in readers:
        threads.acquire_on_behalf_of_nowait(reader)
    try:
        assert (await asyncio.wait_for(api.get("/readyz"), 5)).status_code == 200
        assert (await asyncio.wait_for(api.get("/internal/auth", headers=as_user("ada")), 5)).status_code == 204
        taken = api.post("/api/v1/jobs", json={"prompt": "a"}, headers=as_user("ada"))
        assert (await asyncio.wait_for(taken, 5)).status_code == 202
        assert (await asyncio.wait_for(api.get("/api/v1/nodes", headers=as_user("root")), 5)).status_code == 200
    finally:
        for reader in readers:
            threads.release_on_behalf_of(reader)


async def test_an_api_whose_storage_hangs_can_be_stopped(
    redis_server: RedisServer, redis: Redis, queue: Queue, tmp_path: Path
) -> None:
    """In the middle of a download, with a thread that will never come back: a pipe that nobody writes into is what
    it opens."""
    hanging = (
        "import os\nfrom appliance.api import results\nlook_up = results._look_up\n"
        "def found(*what):\n"
        "    path, *more = look_up(*what)\n    os.remove(path)\n    os.mkfifo(path)\n    return path, *more\n"
        "results._look_up = found\n"
    )
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with running_api(tmp_path, where, hanging) as url, client_of(url, "ada") as client:
        job_id = (await client.post("/api/v1/jobs", json={"prompt": "a"})).json()["id"]
        await finish_job(queue, tmp_path / "jobs", job_id, b"0123456789")
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"/api/v1/jobs/{job_id}/result", timeout=1)
        assert (await client.get("/readyz")).status_code == 200


async def test_while_redis_hangs_the_api_says_so_soon_and_judges_keys(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with running_api(tmp_path, where) as url, client_of(url, "ada") as client:
        assert (await client.get("/readyz")).status_code == 200
        redis_server.pause()
        try:
            deadline = time.monotonic() + 3
            while (ready := await asyncio.wait_for(client.get("/readyz"), 1)).status_code == 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            for _ in range(5):  # at once, whatever becomes of the tries
                assert_problem(ready, 503, "queue-unavailable")
                assert (await asyncio.wait_for(client.get("/internal/auth"), 1)).status_code == 204
                await asyncio.sleep(0.3)
                ready = await asyncio.wait_for(client.get("/readyz"), 1)
        finally:
            redis_server.unpause()
        deadline = time.monotonic() + 5
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_without_redis_the_api_says_so(api_settings: ApiSettings) -> None:
    nowhere = replace(api_settings.redis, address=Address("127.0.0.1", 1))
    app = create_app(api_settings, Queue(RedisLink(nowhere), FAST))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://api", headers=as_user("ada")
    ) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert_problem(await client.get("/readyz"), 503, "queue-unavailable")
        response = await client.post("/api/v1/jobs", json={"prompt": "a"})
        assert_problem(response, 503, "queue-unavailable")
        assert response.headers["retry-after"]
