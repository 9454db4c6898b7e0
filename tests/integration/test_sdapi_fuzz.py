"""Whatever is sent to A1111's calls of a node or of the gateway: 200 with pictures that open, or 4xx with a reason."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from appliance import storage
from tests.integration.api_process import KEYS, running_api
from tests.integration.redis_server import SERVICES, RedisServer, redis_server
from tests.integration.test_webui_fuzz import CLIPS, JUNK, NAMES, PICTURES, SECONDS, TRAVELS, node
from tests.integration.webui_node import TOKEN, Node

__all__ = ["node", "redis_server"]
pytestmark = pytest.mark.timeout(3600)

EXAMPLES = {"synthetic": 100, "diffusers": 25, "gateway": 40}
LONG_EXAMPLES = {"synthetic": 3000, "diffusers": 500, "gateway": 1500}

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "model": NAMES,
    "video_length": st.integers(0, 6),
    "fps": st.integers(0, 61),
    "loop_number": st.integers(0, 3),
    "closed_loop": st.sampled_from(["N", "R-P", "R+P", "A", "B"]),
    "batch_size": st.integers(1, 8),
    "stride": st.integers(0, 4),
    "overlap": st.integers(-1, 8),
    "format": st.lists(st.sampled_from(["GIF", "MP4", "WEBP", "WEBM", "PNG", "TXT", "Frame", "EXE"]), max_size=4),
    "interp": st.sampled_from(["Off", "FILM"]),
    "video_source": st.sampled_from([None, "", "/etc/passwd"]),
    "freeinit_enable": st.booleans(),
    "freeinit_iters": st.integers(0, 2),
    "freeinit_filter": st.sampled_from(["butterworth", "x"]),
    "latent_power": st.floats(0, 11),
    "latent_scale": st.floats(0, 129),
    "last_frame": PICTURES,
    "request_id": st.text(max_size=5),
    "more": st.just(1),
}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.one_of(st.text(max_size=30), st.sampled_from(["a cat", *TRAVELS])),
    "negative_prompt": st.text(max_size=20),
    "seed": st.integers(-1, 2**40),
    "steps": st.integers(0, 3),
    "cfg_scale": st.floats(0, 30),
    "width": st.sampled_from([64, 72, 63, 0]),
    "height": st.sampled_from([64, 80]),
    "sampler_name": st.sampled_from([None, "Euler a", "DPM++ 2M Karras", "ddim", "nothing"]),
    "sampler_index": st.sampled_from([None, "Euler", "nothing"]),
    "scheduler": st.sampled_from([None, "automatic", "Karras", "nothing"]),
    "batch_size": st.integers(0, 2),
    "n_iter": st.integers(0, 2),
    "denoising_strength": st.floats(-0.1, 1.1),
    "init_images": st.lists(PICTURES, max_size=2),
    "include_init_images": st.booleans(),
    "mask": st.one_of(st.none(), PICTURES),
    "override_settings": st.dictionaries(
        st.sampled_from(["sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "x"]), NAMES, max_size=2
    ),
    "send_images": st.booleans(),
    "save_images": st.booleans(),
    "script_name": st.sampled_from([None, "", "x/y plot"]),
    "styles": st.lists(st.text(max_size=5), max_size=1),
    "force_task_id": st.one_of(st.none(), st.text(max_size=8)),
    "enable_hr": st.booleans(),
}


FOLLOW = "../../internal/progress"


@st.composite
def scripts(draw: st.DrawFn) -> Any:
    arguments = {"enable": True, "video_length": 2, "batch_size": 2}
    for name in draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=2, unique=True)):
        arguments[name] = draw(ARGUMENTS[name])
    if draw(st.integers(0, 7)) == 0:
        arguments[draw(st.sampled_from(sorted(ARGUMENTS)))] = draw(JUNK)
    usual = {draw(st.sampled_from(["AnimateDiff", "animatediff"])): {"args": [arguments]}}
    if draw(st.integers(0, 3)):
        return usual
    shape = draw(st.sampled_from([arguments, [False], [True, 0, 2, 6, None], draw(JUNK)]))
    return draw(st.sampled_from([{"AnimateDiff": {"args": shape}}, {"AnimateDiff": shape}, {"nothing": usual}, shape]))


def small_junk(value: object) -> bytes:
    """Nothing at all is a request, too: for 50 steps of 512 x 512, which take their minute."""
    return json.dumps(value | {"width": 64, "height": 64, "steps": 1} if isinstance(value, dict) else value).encode()


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a body of few pixels and steps, with some fields right and some wrong."""
    paths = [*["txt2img"] * 3, *["img2img"] * 2, "options", "png-info", FOLLOW]
    path = draw(st.sampled_from(paths))
    if draw(st.integers(0, 14)) == 0:
        return path, draw(st.one_of(st.binary(max_size=40), JUNK.map(small_junk)))
    body: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1}
    body["alwayson_scripts"] = draw(scripts())
    if path == "img2img":
        body["init_images"] = [draw(PICTURES)]
    if path == "png-info":
        body = {"image": draw(st.one_of(PICTURES, CLIPS))}
    if path == "options":
        body = draw(st.dictionaries(st.sampled_from(["sd_model_checkpoint", "sd_vae", "x"]), JUNK, max_size=2))
    if path == FOLLOW:
        body = {"id_task": draw(st.one_of(st.text(max_size=8), JUNK)), "id_live_preview": draw(JUNK)}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True)):
        body[name] = draw(FIELDS[name])
    if draw(st.integers(0, 5)) == 0:
        wrong = draw(JUNK.filter(lambda value: value is not None))  # null is a default, and a default may be large
        body[draw(st.sampled_from([*sorted(FIELDS), "alwayson_scripts", "colour"]))] = wrong
    return path, json.dumps(body).encode()


def show(text: str) -> None:
    content = base64.b64decode(text, validate=True)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except OSError:
        with av.open(io.BytesIO(content)) as video:
            assert list(video.decode(video=0))


def judge(client: httpx.Client, path: str, body: bytes) -> str:
    where = "/internal/progress" if path == FOLLOW else f"/sdapi/v1/{path}"
    answer = client.post(where, content=body, timeout=SECONDS)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        said = answer.json()
        assert said.get("detail") or said.get("errors"), said
        return str(answer.status_code)
    if path in ("options", "png-info", FOLLOW):
        return path
    sent, got = json.loads(body), answer.json()
    assert json.loads(got["info"])["all_seeds"]
    if sent.get("send_images", True):
        assert got["images"]
    for image in got["images"]:
        show(image)
    return "done"


def send_all(client: httpx.Client, examples: int, thorough: bool) -> dict[str, int]:
    """What came of how many."""
    outcomes: dict[str, int] = {}

    @settings(
        max_examples=examples,
        derandomize=not thorough,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(calls())
    def send(call: tuple[str, bytes]) -> None:
        outcome = judge(client, *call)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    send()
    assert outcomes.get("done", 0) >= sum(outcomes.values()) // 10, "too few get as far as a picture to say anything"
    assert outcomes.get("422", 0) > 0
    return outcomes


@pytest.mark.parametrize("node", ["synthetic", pytest.param("diffusers", marks=pytest.mark.long)], indirect=True)
def test_every_answer_is_a_picture_or_a_reason(node: Node, request: pytest.FixtureRequest) -> None:
    kind, thorough = node.environ["APPLIANCE_ENGINE"], bool(request.config.getoption("--long"))
    engine = node.child()
    outcomes = send_all(node.client, (LONG_EXAMPLES if thorough else EXAMPLES)[kind], thorough)
    print(f"\n{kind}: {outcomes}")
    assert node.child() == engine, "nothing that was sent has killed the engine"
    assert node.wait("ok")["busy"] is None


@contextlib.contextmanager
def running_cluster(server: RedisServer, folder: Path) -> Iterator[str]:
    """A webui, an agent and the api, each a process of its own: the api's URL."""
    storage.prepare(folder / "jobs")
    worker = Node(folder / "node", jobs=folder / "jobs", APPLIANCE_SYNTHETIC_STEP_SECONDS="0")
    where = {"APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{server.port}"}
    environment = {
        **where,
        "PYTHONPATH": SERVICES,
        "APPLIANCE_SECRETS_DIR": str(folder),
        "APPLIANCE_NODE_NAME": "test",
        "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_JOBS_DIR": str(folder / "jobs"),
        "APPLIANCE_WORKER": "a/0",
        "APPLIANCE_WEBUI_URL": f"http://127.0.0.1:{worker.port}",
    }
    (folder / "cluster_token").write_text(TOKEN)
    loop = asyncio.new_event_loop()
    with contextlib.ExitStack() as stack:
        stack.callback(worker.close)
        worker.wait("ok")
        api = running_api(folder, where)
        url = loop.run_until_complete(api.__aenter__())
        stack.callback(loop.close)
        stack.callback(lambda: loop.run_until_complete(api.__aexit__(None, None, None)))
        log = stack.enter_context((folder / "agent.log").open("wb"))
        command = [sys.executable, "-m", "appliance", "agent"]
        agent = stack.enter_context(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        stack.callback(agent.kill)
        yield url


@pytest.mark.docker
def test_every_answer_of_the_gateways_api_too(
    redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    thorough = bool(request.config.getoption("--long"))
    examples = (LONG_EXAMPLES if thorough else EXAMPLES)["gateway"]
    key = {"X-Api-Key": KEYS["ada"]}
    with (
        running_cluster(redis_server, tmp_path) as url,
        httpx.Client(base_url=url, headers=key, trust_env=False, timeout=20) as client,
    ):
        assert client.post("/sdapi/v1/txt2img", json={"width": 64, "height": 64, "steps": 1}).status_code == 200
        outcomes = send_all(client, examples, thorough)
        print(f"\ngateway: {outcomes}")
        assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert "Traceback" not in (tmp_path / "api.log").read_text()
