"""Whatever a client sends: 200 with a video that plays, or 4xx with a reason. Never 500, never a hang.

Fields are drawn on the edge of what is right, so that most bodies get far: each is small and valid, or wrong in one of
the ways that JSON allows. The choices repeat; `--long` draws new ones, and many more.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.integration.webui_engine import make_controls, make_lora
from tests.integration.webui_node import Node
from webui.demo_models import make_models
from webui.request import FORMATS

SECONDS = 60  # none of the orders takes two: whatever takes that long hangs
EXAMPLES = {"synthetic": 120, "diffusers": 40}
LONG_EXAMPLES = {"synthetic": 3000, "diffusers": 600}
PLAYED = {"video/mp4", "video/webm", "image/gif"}
TYPES = PLAYED | {"image/webp", "image/png"}


@cache
def picture(kind: str = "PNG", size: tuple[int, int] = (40, 24)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@cache
def moving() -> str:
    file = io.BytesIO()
    shades = [Image.new("RGB", (40, 24), (number * 40, 90, 200)) for number in range(5)]
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:], duration=80)
    return base64.b64encode(file.getvalue()).decode()


def damaged(text: str) -> str:
    content = bytearray(base64.b64decode(text))
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    return base64.b64encode(content).decode()


OTHER_NAMES = st.sampled_from(
    [*["tiny"] * 6, "sparse", "synthetic", "tiny.safetensors", "other", "../x", ".", "a" * 201]
)
NAMES = st.one_of(st.none(), st.just(""), st.none(), OTHER_NAMES)
RIGHT_PICTURES = (
    picture(),
    picture("JPEG"),
    picture("WEBP"),
    f"data:image/png;base64,{picture()}",
    picture(size=(1, 1)),
)
WRONG_PICTURES = (picture()[:60], damaged(picture()), "not base64!", "", "AAAA", moving(), picture(size=(4097, 1)))
PICTURES = st.sampled_from([*RIGHT_PICTURES * 3, *WRONG_PICTURES])
CLIPS = st.sampled_from([*[moving()] * 8, picture(), damaged(moving()), moving()[:50], "", "x"])
LORA = st.fixed_dictionaries({"name": NAMES}, optional={"weight": st.floats(-5, 5), "more": st.just(1)})
CONTROL = st.fixed_dictionaries(
    {"model": NAMES},
    optional={
        "image": PICTURES,
        "images": st.lists(PICTURES, max_size=3),
        "weight": st.floats(-1, 3),
        "start": st.floats(0, 1),
        "end": st.floats(0, 1),
    },
)
KEY = st.fixed_dictionaries({"frame": st.integers(-1, 8), "image": PICTURES})
TRAVELS = ["0: a cat\n2: a dog", "a house\n0: by day\n1: by night\nphoto", "9: too late", "0:\n0:", "x\n1: y\n1: z"]
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.one_of(
        st.text(max_size=40), st.sampled_from(["a cat", "(a:1.2) [b] <lora:x:1>", "word " * 200, *TRAVELS])
    ),
    "negative_prompt": st.text(max_size=20),
    "width": st.sampled_from([64, 72, 96]),
    "height": st.sampled_from([64, 80, 128]),
    "frames": st.integers(1, 6),
    "fps": st.integers(1, 60),
    "steps": st.integers(1, 3),
    "cfg_scale": st.floats(0, 30),
    "seed": st.integers(-1, 2**63 - 1),
    "sampler": st.sampled_from([None, "DDIM", "ddim", "Euler a", "DPM++ 2M Karras", "LCM", None, "", "nothing"]),
    "scheduler": st.sampled_from([None, "automatic", "karras", "uniform", None, "", "nothing"]),
    "model": NAMES,
    "motion_module": NAMES,
    "vae": NAMES,
    "clip_skip": st.integers(1, 4),
    "loras": st.lists(LORA, max_size=3),
    "init_image": PICTURES,
    "last_frame": PICTURES,
    "init_video": CLIPS,
    "denoising_strength": st.floats(0, 1),
    "latent_power": st.floats(0.1, 10),
    "latent_scale": st.floats(1, 128),
    "latent_power_last": st.floats(0.1, 10),
    "latent_scale_last": st.floats(1, 128),
    "free_init": st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {},
            optional={
                "iterations": st.integers(1, 2),
                "filter": st.sampled_from(["butterworth", "gaussian", "ideal", "x"]),
                "spatial_stop_frequency": st.floats(0, 1),
                "temporal_stop_frequency": st.floats(0, 1),
            },
        ),
    ),
    "controlnets": st.lists(CONTROL, max_size=2),
    "sparse_control": st.one_of(
        st.none(), st.fixed_dictionaries({"model": NAMES, "images": st.lists(KEY, max_size=2)})
    ),
    "format": st.lists(st.sampled_from(FORMATS), min_size=1, max_size=5),
    "loop_number": st.integers(0, 65535),
    "priority": st.sampled_from(["high", "normal", "low"]),
    "deadline_seconds": st.one_of(st.none(), st.floats(1, 1000)),
    "context_batch_size": st.one_of(st.none(), st.integers(1, 8)),
    "context_overlap": st.one_of(st.none(), st.integers(-1, 8)),
    "context_stride": st.one_of(st.none(), st.integers(1, 8)),
    "closed_loop": st.booleans(),
    "metadata": st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
}
HUGE = st.sampled_from([2**63, -(2**63), 10**400, 1e308, -0.0])
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), HUGE, st.floats(allow_nan=True), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Small by itself. One half varies a field or two, so that it gets as far as a video; in the other most fields are
    right, some wrong, some twice the trouble.
    """
    request: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "frames": 2, "steps": 1}
    careful = draw(st.booleans())
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=2 if careful else 6, unique=True)):
        request[name] = draw(GOOD[name])
    if careful:
        return request
    for name in draw(st.one_of(st.just([]), st.lists(st.sampled_from([*sorted(GOOD), "colour", ""]), max_size=2))):
        request[name] = draw(JUNK)
    return request


def order(request: object) -> dict[str, Any]:
    job = str(uuid.uuid4())
    folder = f"2026/11/22/{job}"
    return {"job": job, "fence": 1, "output_dir": f"{folder}/attempts/1", "request": request}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=40), JUNK.map(lambda value: json.dumps(value).encode())))
    body = order(draw(requests()))
    if draw(st.integers(0, 5)) == 0:
        body[draw(st.sampled_from([*body, "memory", "checkpoint_dir", "more"]))] = draw(JUNK)
    return json.dumps(body).encode()


@pytest.fixture(scope="module", params=["synthetic", "diffusers"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    root = tmp_path_factory.mktemp(request.param)
    environ = {"APPLIANCE_ENGINE": request.param, "APPLIANCE_SYNTHETIC_STEP_SECONDS": "0"}
    if request.param == "diffusers":
        list(make_models(root / "models"))
        make_lora(root / "models" / "lora" / "tiny.safetensors")
        make_controls(root / "models" / "controlnet")
        environ |= {"APPLIANCE_CHECKPOINT": "tiny", "APPLIANCE_MOTION_MODULE": "tiny"}
    running = Node(root, **environ)
    try:
        running.wait("ok", 60)
        yield running
    finally:
        running.close()


def show(path: Path, media_type: str, frames: int) -> None:
    if media_type in PLAYED:
        with av.open(str(path)) as video:
            assert len(list(video.decode(video=0))) == frames, path.name
    else:
        with Image.open(path) as image:
            image.load()


def judge(node: Node, body: bytes) -> str:
    """What became of it: `done`, or the status of a refusal."""
    answer = node.client.post("/internal/generate", content=body, timeout=SECONDS)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        problem = answer.json()
        assert problem["detail"], problem
        if answer.status_code == 422:
            assert problem["reason"] == "INVALID_INPUT"
        return str(answer.status_code)
    last = json.loads(answer.text.splitlines()[-1])
    if last["event"] == "error":  # what only the loaded checkpoint can know
        assert (last["reason"], last["message"].partition(" ")[0]) == ("INVALID_INPUT", "clip_skip"), last
        return "refused by the model"
    assert last["event"] == "done", last
    sent = json.loads(body)
    folder = node.jobs / sent["output_dir"]
    assert last["files"]
    for file in last["files"]:
        assert file["media_type"] in TYPES
        show(folder / file["name"], file["media_type"], sent["request"].get("frames", 16))
    shutil.rmtree(folder)
    return "done"


def test_every_answer_is_a_video_or_a_reason(node: Node, request: pytest.FixtureRequest) -> None:
    kind = node.environ["APPLIANCE_ENGINE"]
    thorough = bool(request.config.getoption("--long"))
    outcomes: dict[str, int] = {}
    engine = node.child()

    @settings(
        max_examples=(LONG_EXAMPLES if thorough else EXAMPLES)[kind],
        derandomize=not thorough,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(bodies())
    def send(body: bytes) -> None:
        outcome = judge(node, body)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    send()
    print(f"\n{kind}: {outcomes}")
    assert node.child() == engine, "nothing that was sent has killed the engine"
    assert node.wait("ok")["busy"] is None
    assert outcomes.get("done", 0) >= sum(outcomes.values()) // 5, "too few get as far as a video to say anything"
    assert outcomes.get("422", 0) > 0
