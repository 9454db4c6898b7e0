"""A1111's unmodified client against the whole in containers: nginx, api, Redis, agents, webuis; some of them die."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import webuiapi

from generator.docker import Engine
from tests.integration.sdapi_client import Background, client_of, hold_to_the_facts, picture, use_everything
from tests.integration.stack import Stack, compose, prepare

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PROJECT = "adha-sdapi"
STEP_SECONDS = 0.05
SMALL = {"width": 64, "height": 64, "prompt": "a cat"}
CLIP = {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "video_length": 4}]}}}
LONG = SMALL | CLIP | {"steps": 100, "seed": 5}


@pytest.fixture(scope="module")
def stack(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("sdapi")
    the_plan, host, store = prepare(folder, tag=images, variant="synthetic", project=PROJECT, step_seconds=STEP_SECONDS)
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    with compose(host):
        url = f"http://127.0.0.1:{gateway.http_port}"
        made = Stack(PROJECT, the_plan, url, store.read()["api_key"].decode(), engine, f"{PROJECT}_cluster")
        with made.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield made


@pytest.fixture
def browser(stack: Stack) -> Iterator[httpx.Client]:
    """Signs in as A1111's clients do: any name, and the key for a password."""
    with httpx.Client(base_url=stack.url, auth=("anybody", stack.key), trust_env=False, timeout=90) as client:
        yield client


def api_of(stack: Stack) -> webuiapi.WebUIApi:
    api = client_of(stack.url)
    api.set_auth("anybody", stack.key)
    return api


def until(look: Any, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.1)
    return found


def jobs_of(browser: httpx.Client) -> dict[str, dict[str, Any]]:
    listed = browser.get("/api/v1/jobs", params={"limit": 50}).raise_for_status().json()["jobs"]
    return {job["id"]: job for job in listed}


def test_the_unmodified_client_through_the_gateway(stack: Stack, browser: httpx.Client) -> None:
    api = api_of(stack)
    use_everything(api)
    hold_to_the_facts(browser)
    made = api.img2img(images=[picture()], **SMALL, animatediff=webuiapi.AnimateDiff(video_length=4))
    assert (made.image.format, made.image.n_frames) == ("GIF", 4)


def test_progress_and_interrupt_through_the_gateway(stack: Stack) -> None:
    asking, looking = api_of(stack), api_of(stack)
    call = Background(lambda: asking.txt2img(**LONG))
    seen = until(lambda: (told := looking.get_progress())["state"]["sampling_step"] > 1 and told)
    assert (seen["state"]["sampling_steps"], seen["state"]["job_count"]) == (100, 1)
    assert 0.01 < seen["progress"] < 1
    assert looking.interrupt() == {}
    with pytest.raises(RuntimeError) as caught:
        call.wait(10)
    assert caught.value.args[0] == 409
    assert looking.get_progress()["state"]["job_count"] == 0


def test_a_call_survives_the_kill_9_of_its_worker(stack: Stack, browser: httpx.Client) -> None:
    calm = browser.post("/sdapi/v1/txt2img", json=LONG).raise_for_status().json()["images"]
    asking = api_of(stack)
    call = Background(lambda: asking.txt2img(**LONG))

    def busy() -> Any:
        workers = browser.get("/api/v1/cluster").json()["workers"]
        return next((worker["name"] for worker in workers if worker.get("job")), None)

    worker = until(busy)
    until(lambda: asking.get_progress()["state"]["sampling_step"] > 10)
    stack.kill_9(f"webui-{worker.rpartition('/')[2]}")
    assert call.wait(60).json["images"] == calm


@pytest.mark.long
def test_a_named_task_survives_the_kill_9_of_the_api(stack: Stack, browser: httpx.Client) -> None:
    before = jobs_of(browser)
    body = LONG | {"force_task_id": f"task({uuid.uuid4()})"}
    call = Background(lambda: browser.post("/sdapi/v1/txt2img", json=body))
    until(lambda: browser.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 10)
    stack.kill_9("api")
    lost = call.wait(10)
    assert (lost.status_code, lost.json()["error"]) == (502, "HTTPException")

    def again() -> Any:
        answer = browser.post("/sdapi/v1/txt2img", json=body)
        return answer if answer.status_code not in (502, 503, 504) else None

    assert until(again, 60).status_code == 200
    (job,) = [job for name, job in jobs_of(browser).items() if name not in before]
    assert (job["state"], job["attempts"]["total"]) == ("done", 1)
    until(lambda: browser.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0)


@pytest.mark.long
def test_a_client_that_vanishes_leaves_no_job_behind(stack: Stack, browser: httpx.Client) -> None:
    before = jobs_of(browser)
    with pytest.raises(httpx.ReadTimeout):
        browser.post("/sdapi/v1/txt2img", json=LONG | {"steps": 150}, timeout=1.5)

    def cancelled() -> bool:
        return [job["state"] for name, job in jobs_of(browser).items() if name not in before] == ["cancelled"]

    until(cancelled, 8)


def test_what_is_too_large_or_a_strangers(stack: Stack, browser: httpx.Client) -> None:
    large = browser.post("/sdapi/v1/img2img", content=b" " * (25 << 20))
    assert (large.status_code, large.json()["error"]) == (413, "HTTPException")
    almost = browser.post("/sdapi/v1/img2img", content=b" " * (24 << 20))
    assert (almost.status_code, set(almost.json())) == (422, {"detail"})
    for path in ("/sdapi/v1/progress", "/internal/pending-tasks", "/webui/sdapi/v1/progress"):
        stranger = browser.get(path, auth=("anybody", "guess"))
        assert (stranger.status_code, stranger.json()["detail"]) == (401, "Incorrect username or password")
    assert browser.get("/internal/ping", auth=("", "")).json()["status"] == "ok"
