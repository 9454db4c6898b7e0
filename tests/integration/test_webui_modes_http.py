"""Pictures, clips and controls through the server: refused by name, made, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.webui_engine import make_controls
from tests.integration.webui_media import clip, image, pixels
from tests.integration.webui_modes import MODES
from tests.integration.webui_node import Node, generate, resumed_from
from webui.demo_models import make_models
from webui.request import video_request

PICTURE = image(pixels(1), "WEBP")
REQUEST = {"prompt": "a red circle", "width": 64, "height": 64, "frames": 4, "steps": 8, "seed": 7}
CONTROLS = {"controlnets": [{"model": "tiny", "image": PICTURE}]}
CONTROLS |= {"sparse_control": {"model": "sparse", "images": [{"frame": 0, "image": PICTURE}]}}
WINDOWS = {"context_batch_size": 2, "closed_loop": True}
WAYS: dict[str, dict[str, Any]] = {
    "picture": {"init_image": PICTURE, "last_frame": PICTURE, "sampler": "Euler a"},
    "clip": {"init_video": clip([pixels(seed) for seed in range(4)]), **WINDOWS},
    "travel": {"prompt": "0: a red circle\n3: a (blue:1.2) square", "free_init": {"iterations": 2}, "steps": 4},
    "controls": {**CONTROLS, **WINDOWS, "sampler": "DPM++ 2M Karras"},
}


ENVIRON = {"APPLIANCE_ENGINE": "diffusers", "APPLIANCE_CHECKPOINT": "tiny", "APPLIANCE_MOTION_MODULE": "tiny"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    root = tmp_path_factory.mktemp("node")
    list(make_models(root / "models"))
    make_controls(root / "models" / "controlnet")
    running = Node(root, **ENVIRON, APPLIANCE_CHECKPOINT_SECONDS="600")
    try:
        running.client.timeout = 60
        running.wait("ok", 120)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def impatient(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """On the same volumes; it keeps its state every second."""
    environ = ENVIRON | {"APPLIANCE_MODELS_DIR": str(node.models), "APPLIANCE_CHECKPOINT_SECONDS": "1"}
    running = Node(tmp_path_factory.mktemp("impatient"), jobs=node.jobs, **environ)
    try:
        running.client.timeout = 60
        yield running
    finally:
        running.close()


def order(job: str, fence: int, **fields: Any) -> dict[str, Any]:
    folder = f"2026/11/22/{job}"
    folders = {"output_dir": f"{folder}/attempts/{fence}", "checkpoint_dir": f"{folder}/checkpoint"}
    return {"job": job, "fence": fence, "request": REQUEST | fields, **folders}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in ("clip", "controls") else pytest.mark.long) for way in WAYS]
)
def test_an_interrupted_attempt_goes_on_to_the_same_file(node: Node, way: str) -> None:
    job, total = str(uuid.uuid4()), video_request(REQUEST | WAYS[way]).total_steps
    with node.client.stream("POST", "/internal/generate", json=order(job, 1, **WAYS[way])) as stream:
        events = (json.loads(line) for line in stream.iter_lines())
        assert next(event for event in events if event["event"] == "started")["total_steps"] == total
        next(event for event in events if event["event"] == "step")
        kept = node.client.post("/internal/interrupt", json={"job": job, "checkpoint": True}).json()["checkpoint_step"]
        assert list(events)[-1]["reason"] == "CANCELLED"
    again = generate(node, order(job, 2, **WAYS[way]))
    assert resumed_from(again) == kept
    assert [event["step"] for event in again if event["event"] == "step"] == [*range(kept + 1, total + 1)]
    whole = generate(node, order(str(uuid.uuid4()), 1, **WAYS[way]))
    assert resumed_from(whole) == 0
    assert again[-1]["event"] == "done", again[-1]
    assert again[-1]["files"] == whole[-1]["files"]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_engine_s_job_goes_on_in_another_process_to_the_same_file(
    mode: str, node: Node, impatient: Node
) -> None:
    """At any step, with what was on disk by then."""
    fields = {"frames": 6} | MODES[mode]
    fields["steps"] = 120 // fields.get("free_init", {}).get("iterations", 1)
    job, wait = str(uuid.uuid4()), random.randrange(30)
    impatient.wait("ok", 120)
    with impatient.client.stream("POST", "/internal/generate", json=order(job, 1, **fields)) as stream:
        events = (json.loads(line) for line in stream.iter_lines())
        next(event for event in events if event["event"] == "checkpoint")
        killed_at = [next(event for event in events if event["event"] == "step")["step"] for _ in range(wait + 1)][-1]
        os.kill(impatient.child(), signal.SIGKILL)
        assert list(events)[-1]["event"] == "error"
    there = (impatient.jobs / f"2026/11/22/{job}/checkpoint").glob("1-*.safetensors")  # and perhaps half a file
    kept = max(int(path.stem.split("-")[1]) for path in there)
    again = generate(node, order(job, 2, **fields))
    whole = generate(node, order(str(uuid.uuid4()), 1, **fields))
    told = f"killed at {killed_at}, gone on from {kept}"
    assert 0 < kept == resumed_from(again), told
    assert again[-1]["event"] == whole[-1]["event"] == "done", told
    assert again[-1]["files"] == whole[-1]["files"], told


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"init_image": PICTURE[:300]}, "request.init_image"),
        ({"init_video": PICTURE}, "request.init_video"),
        ({"controlnets": [{"model": "canny", "image": PICTURE}]}, "request.controlnets[0].model"),
        ({"sparse_control": {"model": "sparse", "images": []}}, "request.sparse_control.images"),
        ({"prompt": "0: a\n4: b"}, "request.prompt"),
        ({"loras": [{"name": "nobody"}]}, "request.loras[0].name"),
        ({"sampler": "Eulerian"}, "request.sampler"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(node: Node, fields: dict[str, Any], name: str) -> None:
    answer = node.client.post("/internal/generate", json=order(str(uuid.uuid4()), 1, **fields))
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [name]


def test_what_only_the_models_show_fails_with_the_input_s_reason(node: Node) -> None:
    fields = {"controlnets": [{"model": "sparse", "image": PICTURE}]}
    events = generate(node, order(str(uuid.uuid4()), 1, **fields))
    assert events[-1]["reason"] == "INVALID_INPUT"
    assert "sparse_control" in events[-1]["message"]


def test_a_picture_without_strength_is_made_in_no_step(node: Node) -> None:
    events = generate(node, order(str(uuid.uuid4()), 1, init_image=PICTURE, denoising_strength=0))
    assert events[-1]["event"] == "done"
    assert [event["event"] for event in events if event["event"] == "step"] == []
    told = events[-1]["parameters"]
    assert told["denoising_strength"] == 0
    assert PICTURE not in json.dumps(events)
