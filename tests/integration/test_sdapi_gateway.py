"""A1111's API in front of the queue: its unmodified client, real api processes, Redis, agents and webuis."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from appliance.job import JobState
from appliance.queue import Claim, FailKind, JobRecord, Queue
from tests.integration.api_process import KEYS, client_of, running_api
from tests.integration.redis_server import RedisServer, redis, redis_server  # noqa: F401
from tests.integration.sdapi_client import Background, picture, use_everything
from tests.integration.sdapi_client import client_of as a1111
from tests.integration.test_agent_webui import StartAgent, StartNode, agent, node, queue  # noqa: F401

pytestmark = pytest.mark.docker

SMALL = {"width": 64, "height": 64, "prompt": "a cat"}
SHAPE = {"error", "detail", "body", "errors"}
CLIP = {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "video_length": 4}]}}}
TOO_LONG = {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "video_length": 128}]}}}

JPEG = b"\xff\xd8\xff"
StartApi = Callable[[], Awaitable[str]]


@pytest_asyncio.fixture
async def api(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[StartApi]:
    """Starts replicas of the api."""
    async with AsyncExitStack() as stack:

        async def start() -> str:
            where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
            return await stack.enter_async_context(running_api(tmp_path, where))

        yield start


def key_of(name: str) -> dict[str, str]:
    return {"X-Api-Key": KEYS[name]}


async def jobs_of(queue: Queue, user: str = "ada") -> list[JobRecord]:
    found = await queue.get_many(await queue.list_ids(user, None, 100))
    return [job for job in found if job is not None]


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.05)
    return found


def images_of(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text[:500]
    return [base64.b64decode(image) for image in answer.json()["images"]]


def assert_shape(answer: httpx.Response, status: int, detail: str | None = None) -> None:
    assert (answer.status_code, set(answer.json())) == (status, SHAPE), answer.text
    if detail is not None:
        assert answer.json()["detail"] == detail


@pytest.mark.long
async def test_the_unmodified_client(api: StartApi, node: StartNode, agent: StartAgent) -> None:
    agent(await node())
    client = await asyncio.to_thread(a1111, await api(), key_of("ada"))
    await asyncio.to_thread(use_everything, client)


async def test_img2img_carries_its_picture_through_the_queue(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    agent(await node())
    client = await asyncio.to_thread(a1111, await api(), key_of("ada"))
    call = Background(lambda: client.img2img(images=[picture()], **SMALL, denoising_strength=0.5))
    result = await asyncio.to_thread(call.wait)
    assert (result.image.format, result.image.size) == ("PNG", (64, 64))
    (job,) = await jobs_of(queue)
    body = json.loads(await queue.request_body(job.job_id) or "")
    assert (body["denoising_strength"], body["frames"]) == (0.5, 1)
    assert base64.b64decode(body["init_image"].partition(",")[2]).startswith(b"\x89PNG")


async def test_options_and_progress_are_the_same_from_every_replica(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    agent(await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.2"))
    first, second = await api(), await api()
    async with client_of(first, "ada") as here, client_of(second, "ada") as there, client_of(second, "bob") as bob:
        assert (await here.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})).json() is None
        assert (await there.get("/sdapi/v1/options")).json()["CLIP_stop_at_last_layers"] == 2
        assert (await bob.get("/sdapi/v1/options")).json()["CLIP_stop_at_last_layers"] == 1
        body = SMALL | CLIP | {"steps": 100, "force_task_id": "task(mine)"}
        body |= {"override_settings": {"CLIP_stop_at_last_layers": 3}, "override_settings_restore_afterwards": False}
        call = asyncio.create_task(here.post("/sdapi/v1/txt2img", json=body, timeout=30))

        async def moving() -> Any:
            told = (await there.get("/sdapi/v1/progress")).json()
            return told["state"]["sampling_step"] > 1 and told

        told = await until(moving)
        # From the start of the call that is to keep them: what is set while it runs is newer.
        assert (await there.get("/sdapi/v1/options")).json()["CLIP_stop_at_last_layers"] == 3
        assert (told["state"]["job"], told["state"]["sampling_steps"]) == ("task(mine)", 100)
        assert 0.01 < told["progress"] < 1
        named = await there.get("/sdapi/v1/progress", params={"id_task": "task(mine)"})
        assert named.json()["state"]["job_count"] == 1

        async def shown() -> Any:
            return (await there.get("/sdapi/v1/progress")).json()["current_image"]

        assert base64.b64decode(await until(shown)).startswith(JPEG)
        skipped = await there.get("/sdapi/v1/progress", params={"skip_current_image": "true"})
        assert skipped.json()["current_image"] is None
        (job,) = await jobs_of(queue)
        preview = await there.get(f"/api/v1/jobs/{job.job_id}/preview")
        assert (preview.headers["content-type"], preview.content[:3]) == ("image/jpeg", JPEG)
        assert (await bob.get(f"/api/v1/jobs/{job.job_id}/preview")).status_code == 404
        # To somebody else there is nothing to see and nothing to stop.
        for client, params in ((bob, {}), (bob, {"id_task": "task(mine)"}), (there, {"id_task": "another"})):
            assert (await client.get("/sdapi/v1/progress", params=params)).json()["state"]["job_count"] == 0
            assert (await client.post("/sdapi/v1/interrupt", params=params)).json() == {}
        assert not call.done()
        assert (await there.post("/sdapi/v1/interrupt")).json() == {}
        assert_shape(await asyncio.wait_for(call, 5), 409)
        assert (await there.get("/sdapi/v1/progress")).json()["state"]["job_count"] == 0
    assert [job.state for job in await jobs_of(queue)] == [JobState.CANCELLED]


@pytest.mark.long
async def test_txt2img_survives_its_workers_death(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    quick = await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.15")
    url = await api()
    body = SMALL | CLIP | {"steps": 20, "seed": 5}
    async with client_of(url, "ada") as client:
        dying = agent(quick, "a/0")
        calm = images_of(await client.post("/sdapi/v1/txt2img", json=body, timeout=30))
        call = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=body, timeout=60))

        async def half() -> Any:
            return next((job for job in await jobs_of(queue) if job.state is JobState.RUNNING and job.step > 5), None)

        running = await until(half)
        quick.process.send_signal(signal.SIGKILL)
        dying.stop.set()
        agent(await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.02"), "b/0")
        answer = await asyncio.wait_for(call, 40)
    assert images_of(answer) == calm
    job = await queue.get(running.job_id)
    assert job is not None
    assert (job.state, job.worker, job.crashes) == (JobState.DONE, "b/0", 1)


async def test_a_client_that_leaves_takes_its_jobs_with_it(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    agent(await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.2"))
    async with client_of(await api(), "ada") as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/sdapi/v1/txt2img", json=SMALL | {"steps": 150, "n_iter": 3}, timeout=2)

        async def cancelled() -> bool:
            jobs = await jobs_of(queue)
            return len(jobs) == 3 and all(job.state is JobState.CANCELLED for job in jobs)

        await until(cancelled, 5)
        assert (await client.get("/sdapi/v1/progress")).json()["state"]["job_count"] == 0


async def test_a_task_that_is_asked_for_again_is_made_once(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    """As after a broken connection; the seed that was left open is the same too."""
    agent(await node())
    async with client_of(await api(), "ada") as ada, client_of(await api(), "bob") as bob:
        body = SMALL | CLIP | {"steps": 3, "force_task_id": "task(x)"}
        first = await ada.post("/sdapi/v1/txt2img", json=body, timeout=30)
        second = await ada.post("/sdapi/v1/txt2img", json=body, timeout=30)
        assert images_of(first) == images_of(second)
        assert len(await jobs_of(queue)) == 1
        told = await ada.post("/internal/progress", json={"id_task": "task(x)"})
        assert told.json()["completed"] is True
        # A name that is always the same, as of clients that think of none, does not make other requests the same.
        assert images_of(await ada.post("/sdapi/v1/txt2img", json=body | {"steps": 4}, timeout=30))
        assert len(await jobs_of(queue)) == 2
        assert images_of(await bob.post("/sdapi/v1/txt2img", json=body, timeout=30)) != images_of(first)
        assert (await bob.post("/internal/progress", json={"id_task": "task(y)"})).json()["completed"] is False


async def test_a_client_that_lost_its_connection_finds_its_job_at_work(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    agent(await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1"))
    async with client_of(await api(), "ada") as here, client_of(await api(), "ada") as there:
        body = SMALL | CLIP | {"steps": 40, "force_task_id": "task(x)"}
        with pytest.raises(httpx.ReadTimeout):
            await here.post("/sdapi/v1/txt2img", json=body, timeout=1.5)
        answers = await asyncio.gather(
            *(client.post("/sdapi/v1/txt2img", json=body, timeout=30) for client in (here, there, here))
        )
        assert len({tuple(images_of(answer)) for answer in answers}) == 1
        (job,) = await jobs_of(queue)
        assert (job.state, job.attempts) == (JobState.DONE, 1)


async def test_a_task_that_came_to_nothing_is_begun_anew_once(api: StartApi, queue: Queue) -> None:
    async with client_of(await api(), "ada") as here, client_of(await api(), "ada") as there:
        body = SMALL | CLIP | {"force_task_id": "task(x)"}
        for made in (1, 2):
            calls = [
                asyncio.create_task(client.post("/sdapi/v1/txt2img", json=body, timeout=30))
                for client in (here, there, here)
            ]

            async def all_wait() -> bool:
                return len(await queue.notes("ada")) >= 3 and len(await jobs_of(queue)) == made  # noqa: B023

            await until(all_wait)
            await asyncio.sleep(0.5)
            assert len(await jobs_of(queue)) == made
            pending = (await there.get("/internal/pending-tasks")).json()
            assert pending == {"size": 3, "tasks": ["task(x)"] * 3}
            told = (await here.post("/internal/progress", json={"id_task": "task(x)"})).json()
            assert (told["active"], told["queued"], told["textinfo"]) == (False, True, "queued, 1 in line")
            assert (await there.post("/sdapi/v1/interrupt")).json() == {}
            for answer in await asyncio.gather(*calls):
                assert_shape(answer, 409)
        assert {job.state for job in await jobs_of(queue)} == {JobState.CANCELLED}


@pytest.mark.long
async def test_a_named_task_ends_when_nobody_comes_back(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    agent(await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.2"))
    async with client_of(await api(), "ada") as client:
        body = SMALL | {"steps": 150, "force_task_id": "task(x)"}
        calls = [client.post("/sdapi/v1/txt2img", json=body, timeout=2) for _ in range(2)]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, httpx.ReadTimeout)

        async def cancelled() -> bool:
            return [job.state for job in await jobs_of(queue)] == [JobState.CANCELLED]

        await until(cancelled, 9)
        assert all(name.startswith("ended:") for name in await queue.notes("ada")), (
            "no call is remembered that nobody makes"
        )


async def test_reasons_become_upstreams_errors(api: StartApi, queue: Queue) -> None:
    async with client_of(await api(), "ada") as client:
        text = "CUDA out of memory. Tried to allocate 20.00 MiB"
        for reason, status, kind in (("OOM", 500, "OutOfMemoryError"), ("INVALID_INPUT", 422, "HTTPException")):
            call = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=SMALL | CLIP, timeout=30))

            async def claimed() -> Any:
                answer = await queue.claim("a/0", f"{time.monotonic_ns()}")
                return isinstance(answer, Claim) and answer

            claim = await until(claimed)
            assert json.loads(claim.body)["format"] == ["gif"]
            await queue.fail(claim, FailKind.PERMANENT, reason, text)
            answer = await asyncio.wait_for(call, 5)
            assert_shape(answer, status)
            assert (answer.json()["error"], text in answer.text) == (kind, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("txt2img", {"width": 1024, "height": 1024} | TOO_LONG, 422),
        ("txt2img", {"sampler_name": "Nonsense"}, 400),
        ("img2img", {}, 404),
        ("txt2img", {"script_name": "x"}, 422),
        ("nothing", {}, 404),
        ("sd-models", {}, 405),
        ("txt2img", {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "interp": "FILM"}]}}}, 422),
    ],
)
async def test_errors_before_the_queue(
    api: StartApi, queue: Queue, path: str, body: dict[str, Any], status: int
) -> None:
    async with client_of(await api(), "ada") as client:
        answer = await client.post(f"/sdapi/v1/{path}", json=SMALL | body)
        if "detail" in answer.json() and isinstance(answer.json()["detail"], list):
            assert (answer.status_code, set(answer.json())) == (status, {"detail"})
        else:
            assert_shape(answer, status)
    assert await jobs_of(queue) == []


async def test_bodies_keys_and_addresses(api: StartApi, queue: Queue) -> None:
    async with client_of(await api(), "ada") as client:
        deep = b'{"styles": ' + b"[" * 200 + b"]" * 200 + b"}"
        for body in (b"", b"{", b'{"prompt": "\\ud800"}', b"[]", b'{"eta": NaN}', b'{"eta": 1e999}', deep):
            answer = await client.post("/sdapi/v1/txt2img", content=body)
            assert (answer.status_code, set(answer.json())) == (422, {"detail"})
        bad = await client.post("/sdapi/v1/img2img", json=SMALL | {"init_images": ["bm90IGEgcGljdHVyZQ=="]})
        assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "init_image"])
        large = await client.post("/sdapi/v1/txt2img", content=b" " * (25 << 20))
        assert_shape(large, 413)
        assert_shape(await client.get("/sdapi/v1/txt2img"), 405)
        assert_shape(await client.get("/sdapi/v1/nothing"), 404)
        assert (await client.post("/sdapi/v1/options", json={"x": 1})).status_code == 422
        foreign = await client.post("/sdapi/v1/interrupt", headers={"Origin": "https://elsewhere.example"})
        assert_shape(foreign, 403)
        stranger = await client.get("/sdapi/v1/progress", headers={"X-Api-Key": "guess"})
        assert_shape(stranger, 401, "Incorrect username or password")
        assert stranger.headers["www-authenticate"] == "Basic"
        unnamed = await client.post("/internal/progress", json={})
        assert (unnamed.status_code, unnamed.json()["detail"][0]["loc"]) == (422, ["body", "id_task"])
        assert_shape(await client.post("/internal/pending-tasks", json={}), 405)
        for path in ("/internal/progress", "/internal/pending-tasks"):
            assert_shape(await client.post(path, json={}, headers={"X-Api-Key": "guess"}), 401)
        del client.headers["X-Api-Key"]
        signed = await client.get("/sdapi/v1/progress", auth=("anybody", KEYS["ada"]))
        assert signed.status_code == 200


async def test_a_cluster_without_workers_waits_for_one(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    async with client_of(await api(), "ada") as client:
        call = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=SMALL | CLIP | {"steps": 2}, timeout=60))

        async def queued() -> Any:
            told = (await client.get("/sdapi/v1/progress")).json()
            return told["state"]["job_count"] and told

        told = await until(queued)
        assert (told["textinfo"], told["state"]["sampling_step"]) == ("queued, 1 in line", 0)
        agent(await node())
        (gif,) = images_of(await asyncio.wait_for(call, 30))
    assert Image.open(io.BytesIO(gif)).n_frames == 4


async def test_a_nodes_own_call_and_the_queues_jobs_do_not_harm_each_other(
    api: StartApi, node: StartNode, agent: StartAgent, queue: Queue
) -> None:
    """Whoever comes second waits; the job that waits is neither claimed nor counted against."""
    running = await node(APPLIANCE_SYNTHETIC_STEP_SECONDS="0.1")
    agent(running)
    async with client_of(await api(), "ada") as client:
        body = SMALL | CLIP | {"steps": 30}
        own = asyncio.create_task(asyncio.to_thread(running.client.post, "/sdapi/v1/txt2img", json=body, timeout=30))

        async def busy() -> bool:
            ping = await asyncio.to_thread(running.ping)
            return ping is not None and ping.json()["busy"] == "local"

        await until(busy)
        await asyncio.sleep(1)  # the agent has looked
        queued = asyncio.create_task(client.post("/sdapi/v1/txt2img", json=SMALL | CLIP | {"steps": 3}, timeout=30))
        await asyncio.sleep(0.5)
        (job,) = await jobs_of(queue)
        assert (job.state, job.attempts) == (JobState.QUEUED, 0)
        assert (await client.get("/sdapi/v1/progress")).json()["state"]["sampling_step"] == 0
        assert images_of(await asyncio.wait_for(own, 20))
        assert images_of(await asyncio.wait_for(queued, 20))
        (job,) = await jobs_of(queue)
        assert (job.attempts, job.crashes, job.errors) == (1, 0, 0)


def api_process() -> int:
    """The one replica that this test has started."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    pids = [int(pid) for listed in children for pid in listed]
    (found,) = [pid for pid in pids if b"\0api\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def memory_mib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


@pytest.mark.long
async def test_many_large_pictures_at_once_fit_into_its_memory(api: StartApi, queue: Queue) -> None:
    """Its container has 512 MiB; before they took turns, ten at a time were its end, and that of all other calls."""
    picture = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 64, 64) + b"\x08\2\0\0\0" + bytes(9 << 20)
    body = json.dumps(SMALL | {"init_images": [base64.b64encode(picture).decode()]}).encode()
    url = await api()
    pid = api_process()
    before = memory_mib(pid, "VmRSS")
    async with client_of(url, "ada") as client:
        calls = [asyncio.create_task(client.post("/sdapi/v1/img2img", content=body, timeout=60)) for _ in range(12)]

        async def all_wait() -> bool:
            return len(await jobs_of(queue)) == len(calls)

        await until(all_wait, 40)
        await asyncio.sleep(0.5)
        waiting, peak = memory_mib(pid, "VmRSS"), memory_mib(pid, "VmHWM")
        print(f"\nbefore {before} MiB, peak {peak} MiB, {len(calls)} waiting {waiting} MiB")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

        async def forgotten() -> bool:
            return not await queue.notes("ada")

        await until(forgotten)
    assert peak < 400
    assert waiting < before + 100, "their pictures are in the queue, and need not be kept"


async def test_a_stopping_replica_says_where_the_result_will_be(
    api: StartApi, redis_server: RedisServer, tmp_path: Path, queue: Queue
) -> None:
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_server.port}"}
    async with client_of("http://to-be-known", "ada") as client:
        async with running_api(tmp_path, where) as url:
            call = asyncio.create_task(client.post(f"{url}/sdapi/v1/txt2img", json=SMALL | CLIP, timeout=30))

            async def submitted() -> Any:
                return await jobs_of(queue)

            (job,) = await until(submitted)
        # Its end has been asked for, and has come, with the answer still to be read.
        answer = await asyncio.wait_for(call, 5)
    assert_shape(answer, 503)
    assert f"/api/v1/jobs/{job.job_id}/result" in answer.json()["errors"]
    assert [job.state for job in await jobs_of(queue)] == [JobState.QUEUED]
