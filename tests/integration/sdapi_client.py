"""A1111's own client, `webuiapi` as it is on PyPI, and what tests of its API share."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import requests
import webuiapi
from PIL import Image


def client_of(url: str, headers: dict[str, str] | None = None, **more: Any) -> webuiapi.WebUIApi:
    """`url` of the server; small steps, since every test waits for them."""
    api = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", sampler="Euler", steps=3, **more)
    api.session.trust_env = False
    api.session.headers.update(headers or {})
    api.check_extensions()
    return api


def picture(colour: str = "teal") -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


class Background:
    """A call in a thread of its own: the client's calls block until their video is done."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except (RuntimeError, requests.RequestException) as error:
            self.error = error

    def wait(self, seconds: float = 30) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"no answer within {seconds} s"
        if self.error is not None:
            raise self.error
        return self.result


SMALL = {"width": 64, "height": 64, "prompt": "a cat"}


def use_everything(api: webuiapi.WebUIApi) -> None:
    """What `webuiapi` does for its users, call by call, in front of the queue and the synthetic engine."""
    assert api.has_animatediff
    (model,) = api.util_get_model_names()
    still = api.txt2img(**SMALL, seed=5, n_iter=2)
    assert [image.format for image in still.images] == ["PNG", "PNG"]
    assert (still.info["all_seeds"], still.info["sd_model_name"]) == ([5, 6], model)
    clip = api.txt2img(**SMALL, seed=5, animatediff=webuiapi.AnimateDiff(video_length=4))
    assert (clip.image.format, clip.image.n_frames) == ("GIF", 4)
    again = api.txt2img(**SMALL, seed=5, animatediff=webuiapi.AnimateDiff(video_length=4))
    assert again.json["images"] == clip.json["images"]
    assert api.get_progress()["state"]["job_count"] == 0
    api.util_set_model(model)
    assert api.util_get_current_model() == model
    assert "animatediff" in api.get_scripts()["txt2img"]
    assert set(api.get_embeddings()) == {"loaded", "skipped"}
    assert api.get_upscalers()[0]["name"] == "None"
    assert "Euler" in api.util_get_sampler_names()
    assert "automatic" in api.util_get_scheduler_names()
    assert (api.get_loras(), api.get_sd_vae()) == ([], [])
    assert api.get_memory()["cuda"] == {"error": "unavailable"}
    assert api.get_cmd_flags()["api"] is True
    assert (api.refresh_checkpoints(), api.skip(), api.interrupt()) == (None, None, {})
    assert api.png_info(still.image).info is not None
    api.util_wait_for_ready(0.1)


SHAPE = {"error", "detail", "body", "errors"}
STATE = {"skipped", "interrupted", "stopping_generation", "job", "job_count", "job_timestamp", "job_no"}
STATE |= {"sampling_step", "sampling_steps"}
TASK = {"active", "queued", "completed", "progress", "eta", "live_preview", "id_live_preview", "textinfo"}
INFO = {"prompt", "all_prompts", "negative_prompt", "seed", "all_seeds", "subseed", "all_subseeds", "width", "height"}
INFO |= {"sampler_name", "cfg_scale", "steps", "batch_size", "sd_model_name", "sd_model_hash", "sd_vae_name"}
INFO |= {"sd_vae_hash", "denoising_strength", "extra_generation_params", "index_of_first_image", "infotexts"}
INFO |= {"styles", "job_timestamp", "clip_skip", "version"}
ROWS = {
    "sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "samplers": {"name", "aliases", "options"},
    "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "loras": {"name", "alias", "path", "metadata"},
    "sd-vae": {"model_name", "filename"},
    "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    "script-info": {"name", "is_alwayson", "is_img2img", "args"},
    "extensions": {"name", "remote", "branch", "commit_hash", "version", "commit_date", "enabled"},
}
POSTS: dict[str, Any] = {
    "interrupt": {}, "skip": None, "unload-checkpoint": {}, "reload-checkpoint": {},
    "refresh-loras": None, "refresh-checkpoints": None,
}  # fmt: skip
ERRORS: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("txt2img", {"sampler_name": "Nonsense"}, 400, "HTTPException", "Sampler not found"),
    ("img2img", {}, 404, "HTTPException", "Init image not found"),
    ("txt2img", {"script_name": "x"}, 422, "HTTPException", "Script 'x' not found"),
    ("txt2img", {"alwayson_scripts": {"x": {"args": []}}}, 422, "HTTPException", "Script 'x' not found"),
    ("options", {"sd_model_checkpoint": "nothing"}, 422, "RuntimeError", ""),
]


def hold_to_the_facts(client: httpx.Client) -> None:
    """Every call that A1111 has for generation: its fields, its errors; on a node and in front of the queue alike."""

    def get(path: str) -> Any:
        return client.get(f"/sdapi/v1/{path}").raise_for_status().json()

    for name, fields in ROWS.items():
        rows = get(name)
        assert isinstance(rows, list), name
        assert all(set(row) == fields for row in rows), name
        assert rows or name in ("loras", "sd-vae"), name
    for name, answer in POSTS.items():
        assert client.post(f"/sdapi/v1/{name}").raise_for_status().json() == answer, name
    assert get("scripts") == {kind: ["animatediff", "controlnet"] for kind in ("txt2img", "img2img")}
    assert get("embeddings") == {"loaded": {}, "skipped": {}}
    assert (set(get("memory")), set(get("memory")["ram"])) == ({"ram", "cuda"}, {"free", "used", "total"})
    assert "api_auth" not in {name for name, value in get("cmd-flags").items() if value}
    assert client.post("/sdapi/v1/options", json=get("options")).raise_for_status().json() is None
    _hold_progress(client)
    for path, body, status, error, detail in ERRORS:
        told = client.post(f"/sdapi/v1/{path}", json=body)
        assert (told.status_code, set(told.json())) == (status, SHAPE), (path, body)
        assert (told.json()["error"], told.json()["detail"]) == (error, detail)
    wrong = client.post("/sdapi/v1/txt2img", json={"steps": "many", "width": 3}).json()
    assert [item["loc"] for item in wrong["detail"]] == [["body", "width"], ["body", "steps"]]
    _hold_answer(client)


def _hold_progress(client: httpx.Client) -> None:
    idle = client.get("/sdapi/v1/progress").json()
    assert set(idle) == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    assert (set(idle["state"]), idle["progress"], idle["state"]["job_count"]) == (STATE, 0, 0)
    task = client.post("/internal/progress", json={"id_task": "nobody's"}).json()
    assert (set(task), task["active"], task["queued"], task["completed"]) == (TASK, False, False, False)
    assert client.get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}
    assert client.get("/internal/ping").json()["status"] == "ok"


def _hold_answer(client: httpx.Client) -> None:
    clip = {"alwayson_scripts": {"AnimateDiff": {"args": [{"enable": True, "video_length": 2}]}}}
    answer = client.post("/sdapi/v1/txt2img", json=SMALL | clip | {"steps": 2, "seed": 7}).raise_for_status().json()
    assert set(answer) == {"images", "parameters", "info"}
    assert base64.b64decode(answer["images"][0]).startswith(b"GIF8")
    assert set(json.loads(answer["info"])) >= INFO
    assert (answer["parameters"]["steps"], answer["parameters"]["n_iter"]) == (2, 1)
    assert answer["parameters"]["sampler_index"] == "Euler"
