"""A1111's API as each node serves it: its unmodified client against a real node, and every field and error it knows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import webuiapi
from PIL import Image
from safetensors.torch import save_file

from tests.integration.sdapi_client import Background, client_of, hold_to_the_facts, picture
from tests.integration.webui_node import TOKEN, Node, wait_for
from webui.tiny_models import make_checkpoint, make_motion_module

SMALL = {"width": 64, "height": 64, "prompt": "a cat"}
SHAPE = {"error", "detail", "body", "errors"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
USER = ("ada", "pass:word")


def make_lora(path: Path) -> None:
    torch.manual_seed(9)
    at = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{at}.lora_A.weight": torch.randn(4, 32), f"{at}.lora_B.weight": torch.randn(32, 4)}
    path.parent.mkdir(parents=True)
    save_file(tensors, path)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The cpu engine with two checkpoints, a motion module and a LoRA, all tiny."""
    root = tmp_path_factory.mktemp("sdapi")
    models = root / "models"
    for kind in ("checkpoint", "motion_module"):
        (models / kind).mkdir(parents=True)
    make_checkpoint(models / "checkpoint" / "tiny")
    make_checkpoint(models / "checkpoint" / "toon")
    make_motion_module(models / "motion_module" / "tiny")
    make_lora(models / "lora" / "Film Look.safetensors")
    (root / "secrets").mkdir()
    (root / "secrets" / "api_auth").write_text(f"{':'.join(USER)}, eve:other\n")
    names = {"APPLIANCE_CHECKPOINT": "tiny", "APPLIANCE_MOTION_MODULE": "tiny"}
    started = Node(root, APPLIANCE_ENGINE="diffusers", **names)
    try:
        started.wait("ok", 120)
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Node]]:
    """Synthetic nodes: whose steps take as long as a test needs, and that fail on purpose."""
    with ExitStack() as stack:

        def start(name: str, seconds: float = 0.02, **faults: object) -> Node:
            environ = {"APPLIANCE_SYNTHETIC_FAULTS": json.dumps(faults)}
            environ["APPLIANCE_SYNTHETIC_STEP_SECONDS"] = str(seconds)
            started = Node(tmp_path_factory.mktemp(name), **environ)
            stack.callback(started.close)
            started.wait("ok")
            return started

        yield start


@pytest.fixture(scope="module")
def lasting(slow: Callable[..., Node]) -> Node:
    return slow("lasting", 0.1)


@pytest.fixture(scope="module")
def api(node: Node) -> webuiapi.WebUIApi:
    return client_of(f"http://127.0.0.1:{node.port}", BEARER)


def client_for(node: Node) -> webuiapi.WebUIApi:
    return client_of(f"http://127.0.0.1:{node.port}", BEARER)


def post(node: Node, path: str, **body: object) -> httpx.Response:
    return node.client.post(f"/sdapi/v1/{path}", json=SMALL | {"steps": 3} | body)


def animated(**arguments: object) -> dict[str, Any]:
    return {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "video_length": 4, **arguments}]}}}


def opened(answer: httpx.Response) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text[:500]
    return [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer.json()["images"]]


# --- the unmodified client -------------------------------------------------------------------------------------


def test_txt2img_is_a_still_image(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL, seed=5)
    assert (result.image.format, result.image.size) == ("PNG", (64, 64))
    assert (result.info["seed"], result.info["steps"], result.info["sd_model_name"]) == (5, 3, "tiny")
    assert result.parameters["prompt"] == "a cat"
    again = api.txt2img(**SMALL, seed=5)
    assert again.json["images"] == result.json["images"]


def test_animatediff_is_a_gif(api: webuiapi.WebUIApi) -> None:
    assert api.has_animatediff
    result = api.txt2img(**SMALL, animatediff=webuiapi.AnimateDiff(video_length=4))
    assert (result.image.format, result.image.n_frames) == ("GIF", 4)
    assert "model: tiny" in result.info["extra_generation_params"]["AnimateDiff"]


def test_img2img_follows_its_picture(api: webuiapi.WebUIApi) -> None:
    def make(colour: str, **more: object) -> list[str]:
        made: list[str] = api.img2img(images=[picture(colour)], **SMALL, seed=5, **more).json["images"]
        return made

    assert make("red") != make("blue")
    animatediff = webuiapi.AnimateDiff(video_length=4, latent_power=2)
    result = api.img2img(images=[picture()], **SMALL, animatediff=animatediff, denoising_strength=0.6)
    assert (result.image.format, result.image.n_frames) == ("GIF", 4)
    assert result.info["denoising_strength"] == 0.6


def test_batches_are_images_with_growing_seeds(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL, seed=5, batch_size=2, n_iter=2)
    assert len(set(result.json["images"])) == len(result.images) == 4
    assert result.info["all_seeds"] == [5, 6, 7, 8]
    second = api.txt2img(**SMALL, seed=6)
    assert second.json["images"] == result.json["images"][1:2]


def test_loras_change_the_picture_and_leave_no_trace(api: webuiapi.WebUIApi) -> None:
    assert [lora["name"] for lora in api.get_loras()] == ["Film Look"]
    plain = api.txt2img(**SMALL, seed=5).json["images"]
    looked = api.txt2img(**SMALL | {"prompt": "a cat<lora:Film Look:1>"}, seed=5).json["images"]
    assert looked != plain
    assert api.txt2img(**SMALL, seed=5).json["images"] == plain


def test_models_and_options(api: webuiapi.WebUIApi) -> None:
    assert api.util_get_model_names() == ["tiny", "toon"]
    assert api.util_get_current_model() == "tiny"
    assert api.set_options({"sd_model_checkpoint": "toon"}) is None
    try:
        assert api.util_get_current_model() == "toon"
        assert api.txt2img(**SMALL).info["sd_model_name"] == "toon"
        override = {"sd_model_checkpoint": "tiny"}
        assert api.txt2img(**SMALL, override_settings=override).info["sd_model_name"] == "tiny"
        assert api.util_get_current_model() == "toon"
    finally:
        api.set_options({"sd_model_checkpoint": "tiny"})


def test_every_list_that_the_client_reads(api: webuiapi.WebUIApi) -> None:
    assert "Euler a" in api.util_get_sampler_names()
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.get_cmd_flags()["api"] is True
    assert api.get_upscalers()[0]["name"] == "None"
    assert set(api.get_embeddings()) == {"loaded", "skipped"}
    assert isinstance(api.get_sd_vae(), list)
    assert api.refresh_checkpoints() is None
    for read in (api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles, api.get_latent_upscale_modes):
        assert read() == []
    api.util_wait_for_ready(0.1)


def test_png_info_of_its_own_picture(api: webuiapi.WebUIApi) -> None:
    assert "a cat" in api.png_info(api.txt2img(**SMALL).image).info


def test_every_call_of_the_facts(node: Node) -> None:
    hold_to_the_facts(node.client)


def test_progress_and_interrupt(lasting: Node) -> None:
    api = client_for(lasting)
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    call = Background(lambda: api.txt2img(**SMALL, steps=100, animatediff=webuiapi.AnimateDiff(video_length=4)))
    other = client_for(lasting)
    seen = wait_for(lambda: (told := other.get_progress())["state"]["sampling_step"] > 1 and told)
    assert 0.01 < seen["progress"] < 0.5
    assert (seen["state"]["sampling_steps"], seen["state"]["job_count"], seen["state"]["job_no"]) == (100, 1, 0)
    assert seen["eta_relative"] > 0
    wait_for(lambda: other.get_progress()["current_image"])
    assert other.interrupt() == {}
    with pytest.raises(RuntimeError) as caught:
        call.wait(5)
    assert caught.value.args[0] == 409
    assert json.loads(caught.value.args[1])["error"] == "InterruptedError"
    assert other.get_progress()["state"]["job_count"] == 0


def test_options_that_a_call_is_to_keep_hold_from_its_start(lasting: Node) -> None:
    """So that what somebody sets while it runs is newer, and stays."""
    api = client_for(lasting)
    body = SMALL | {"steps": 100, "override_settings": {"CLIP_stop_at_last_layers": 2}}
    body |= {"override_settings_restore_afterwards": False} | animated()
    call = Background(lambda: api.session.post(f"{api.baseurl}/txt2img", json=body))
    other = client_for(lasting)
    try:
        wait_for(lambda: other.get_progress()["state"]["sampling_step"] > 1)
        assert other.get_options()["CLIP_stop_at_last_layers"] == 2
    finally:
        other.interrupt()
        call.wait(5)
        other.set_options({"CLIP_stop_at_last_layers": 1})


def test_an_interrupt_keeps_what_is_done(lasting: Node) -> None:
    api = client_for(lasting)
    call = Background(
        lambda: api.txt2img(**SMALL, steps=4, n_iter=20, animatediff=webuiapi.AnimateDiff(video_length=2))
    )
    other = client_for(lasting)
    wait_for(lambda: other.get_progress()["state"]["job_no"] >= 1)
    other.interrupt()
    assert 1 <= len(call.wait(5).images) < 20


def test_what_was_skipped_is_not_told_of(lasting: Node) -> None:
    """The seeds are those of the images that are there: made again with them, these are the same."""
    api = client_for(lasting)
    body = SMALL | {"steps": 40, "n_iter": 2, "seed": 100} | animated()
    call = Background(lambda: api.session.post(f"{api.baseurl}/txt2img", json=body))
    other = client_for(lasting)
    wait_for(lambda: other.get_progress()["state"]["sampling_step"] > 1)
    other.skip()
    answer = call.wait(20).json()
    info = json.loads(answer["info"])
    assert (len(answer["images"]), info["seed"], info["all_seeds"]) == (1, 101, [101])
    assert "Seed: 101" in info["infotexts"][0]


# --- fields ----------------------------------------------------------------------------------------------------


def test_formats_in_upstreams_order(node: Node) -> None:
    answer = post(node, "txt2img", **animated(format=["WEBM", "WEBP", "MP4", "GIF", "Frame"]))
    images = [base64.b64decode(image) for image in answer.json()["images"]]
    heads = [image[:4] for image in images]
    assert (heads[0], images[1][4:8], heads[2], heads[3]) == (b"GIF8", b"ftyp", b"RIFF", b"\x1aE\xdf\xa3")
    assert heads[4:] == [b"\x89PNG"] * 4
    frames = post(node, "txt2img", **animated(format=["PNG"]))
    assert [image.format for image in opened(frames)] == ["PNG"] * 4


def test_loops_and_speed_reach_the_file(node: Node) -> None:
    (gif,) = opened(post(node, "txt2img", **animated(fps=10, loop_number=3)))
    assert (gif.info["duration"], gif.info["loop"]) == (100, 3)


def test_windows_free_init_and_travel(node: Node) -> None:
    body = animated(video_length=20, batch_size=8, overlap=2, freeinit_enable=True, freeinit_iters=2)
    (gif,) = opened(post(node, "txt2img", steps=2, **body | {"prompt": "calm\n0: a cat\n10: a dog\nsea"}))
    assert gif.n_frames == 20


def test_parameters_echo_and_images_may_stay(node: Node) -> None:
    answer = post(node, "txt2img", send_images=False, colour="red", seed=-1).json()
    assert answer["images"] == []
    assert answer["parameters"]["steps"] == 3
    assert "colour" not in answer["parameters"]
    assert 0 <= json.loads(answer["info"])["seed"] < 2**32


def test_a_task_is_followed_by_its_name(lasting: Node) -> None:
    asking = client_for(lasting)
    body = SMALL | {"steps": 60, "force_task_id": "task(mine)"} | animated(request_id="r-1")
    call = Background(lambda: asking.session.post(f"{asking.baseurl}/txt2img", json=body))

    def ask(name: str = "task(mine)", **more: object) -> dict[str, Any]:
        told: dict[str, Any] = lasting.client.post("/internal/progress", json={"id_task": name, **more}).json()
        return told

    told = wait_for(lambda: (now := ask())["live_preview"] and now)
    assert (told["active"], told["queued"], told["completed"]) == (True, False, False)
    assert told["live_preview"].startswith("data:image/jpeg;base64,")
    assert ask(live_preview=False)["live_preview"] is None
    assert ask("another")["active"] is False
    second = Background(lambda: asking.session.post(f"{asking.baseurl}/txt2img", json=SMALL | {"force_task_id": "b"}))
    pending = wait_for(lambda: (now := lasting.client.get("/internal/pending-tasks").json())["size"] and now)
    assert pending == {"size": 1, "tasks": ["b"]}
    assert (ask("b")["queued"], ask("b")["active"]) == (True, False)
    named = lasting.client.get("/sdapi/v1/progress", params={"id_task": "r-1"}).json()
    assert named["state"]["job"] == "task(mine)"
    lasting.client.post("/sdapi/v1/interrupt", params={"id_task": "r-1"})
    assert call.wait(5).status_code == 409
    assert second.wait(15).status_code == 200
    assert ask()["completed"] is True


def test_a_client_that_leaves_takes_its_run_with_it(lasting: Node) -> None:
    with pytest.raises(httpx.TimeoutException):
        lasting.client.post("/sdapi/v1/txt2img", json=SMALL | {"steps": 100}, timeout=0.5)
    wait_for(lambda: lasting.client.get("/internal/ping").json()["busy"] is None, 3)


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("txt2img", {"sampler_name": "Nonsense"}, 400, "Sampler not found"),
        ("img2img", {}, 404, "Init image not found"),
        ("txt2img", {"script_name": "x/y plot"}, 422, "Script 'x/y plot' not found"),
        ("txt2img", {"alwayson_scripts": {"adetailer": {"args": [False]}}}, 422, "Script 'adetailer' not found"),
        ("img2img", {"init_images": ["bm90IGEgcGljdHVyZQ=="]}, 422, None),
        ("txt2img", {"steps": 0}, 422, None),
        ("txt2img", animated(video_length=129), 422, None),
        ("txt2img", animated(model="mm_v9.ckpt"), 422, None),
        ("txt2img", {"prompt": "<lora:nobody:1>"}, 422, None),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "nothing"}}, 422, ""),
    ],
)
def test_errors_in_upstreams_shapes(
    node: Node, path: str, body: dict[str, Any], status: int, detail: str | None
) -> None:
    answer = post(node, path, **body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    if detail is None:
        assert {"loc", "msg", "type"} <= told["detail"][0].keys()
    else:
        assert (set(told), told["detail"]) == (SHAPE, detail)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "nothing", 404), ("POST", "nothing", 404), ("GET", "txt2img", 405), ("POST", "sd-models", 405)],
)
def test_unknown_addresses(node: Node, method: str, path: str, status: int) -> None:
    answer = node.client.request(method, f"/sdapi/v1/{path}")
    assert (answer.status_code, set(answer.json())) == (status, SHAPE)


DEEP = b'{"styles": ' + b"[" * 200 + b"]" * 200 + b"}"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 9000, b'{"prompt": "\\ud800"}', b'{"eta": NaN}', b'{"eta": 1e999}', DEEP]
)
def test_hostile_json_is_the_clients_error(node: Node, content: bytes) -> None:
    answer = node.client.post("/sdapi/v1/txt2img", content=content)
    assert (answer.status_code, set(answer.json())) == (422, {"detail"})


def test_a_foreign_page_may_not_use_its_visitors_password(node: Node) -> None:
    for origin, status in (("https://elsewhere.example", 403), (f"http://127.0.0.1:{node.port}", 200)):
        answer = node.client.post("/sdapi/v1/interrupt", headers={"Origin": origin})
        assert answer.status_code == status


def test_options_that_are_not_there(node: Node) -> None:
    unknown = node.client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nothing"})
    assert (unknown.status_code, unknown.json()["errors"]) == (422, "model 'nothing' not found")
    assert node.client.post("/sdapi/v1/options", json={"colour": 1}).status_code == 422


def test_out_of_memory_is_upstreams_answer_and_the_node_goes_on(slow: Callable[..., Node]) -> None:
    node = slow("oom", oom_above_context=4)
    answer = post(node, "txt2img", **animated(video_length=8))
    assert answer.status_code == 500
    told = answer.json()
    assert (told["error"], told["detail"], told["body"]) == ("OutOfMemoryError", "", "")
    assert told["errors"].startswith("CUDA out of memory. ")
    assert len(opened(post(node, "txt2img", **animated()))) == 1


def test_a_crash_is_an_error_and_the_node_goes_on(slow: Callable[..., Node]) -> None:
    node = slow("crash", crash_at_step=2, only_prompt_contains="crash")
    answer = post(node, "txt2img", **animated() | {"prompt": "crash"})
    assert (answer.status_code, set(answer.json())) == (500, SHAPE)
    node.wait("ok")
    assert post(node, "txt2img").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (BEARER, 200),
        ({"Authorization": "Bearer guess"}, 401),
        ({"Authorization": "Basic " + base64.b64encode(":".join(USER).encode()).decode()}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"eve:other").decode()}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"ada:other").decode()}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"ada").decode()}, 401),
        ({"Authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()}, 401),
        ({"Authorization": "Basic !"}, 401),
    ],
)
def test_who_may_ask(node: Node, headers: dict[str, str], status: int) -> None:
    for path in ("/sdapi/v1/progress", "/sdapi/v1/loras", "/internal/pending-tasks"):
        answer = node.stranger.get(path, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert (set(answer.json()), answer.json()["detail"]) == (SHAPE, "Incorrect username or password")
            assert answer.headers["www-authenticate"] == "Basic"


def test_a_user_of_the_node_is_not_the_agent(node: Node) -> None:
    assert node.stranger.get("/internal/state", auth=USER).status_code == 200
    for path in ("/internal/generate", "/internal/interrupt"):
        assert node.stranger.post(path, json={}, auth=USER).status_code == 401
        assert node.client.post(path, json={"x": 1}).status_code == 422
    assert node.stranger.get("/internal/ping").status_code == 200


def test_the_client_signs_in_with_a_password(node: Node) -> None:
    api = webuiapi.WebUIApi(port=node.port, steps=2, username=USER[0], password=USER[1])
    assert api.has_animatediff
    assert api.txt2img(**SMALL).image.size == (64, 64)
