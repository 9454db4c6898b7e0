from __future__ import annotations

from typing import Any

import pytest

from webui.engine.base import Capabilities
from webui.request import RequestError, VideoRequest, check_supported, parse_order, request_problems

JOB = "0192f0c1-2345-7abc-8def-0123456789ab"
FOLDER = f"2026/11/22/{JOB}/attempts/7"
LOADED = Capabilities("diffusers-cpu", "f", False, "tiny", "mm", max_frames=32, samplers=("DDIM",))


def order(**changes: Any) -> dict[str, Any]:
    return {"job": JOB, "fence": 7, "output_dir": FOLDER, "request": {"prompt": "a cat"}} | changes


def problems_of(body: object) -> set[str]:
    with pytest.raises(RequestError) as raised:
        parse_order(body)
    return {name for name, _ in raised.value.problems}


def test_only_the_prompt_is_needed() -> None:
    parsed = parse_order(order())
    assert parsed.request == VideoRequest("a cat")
    assert (parsed.job, parsed.fence, parsed.output_dir) == (JOB, 7, FOLDER)


def test_what_asks_for_nothing_unsupported_is_accepted() -> None:
    request = {
        "prompt": "a cat",
        "loras": [],
        "init_image": None,
        "closed_loop": False,
        "format": ["mp4"],
        "priority": "low",
        "deadline_seconds": None,
        "metadata": {"a": 1},
        "sampler": None,
    }
    assert parse_order(order(request=request)).request == VideoRequest("a cat")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 3),
        ("prompt", "x" * 4001),
        ("negative_prompt", None),
        ("width", 63),
        ("width", 100),
        ("width", 1032),
        ("height", 64.0),
        ("height", True),
        ("frames", 0),
        ("frames", 129),
        ("fps", 61),
        ("steps", 151),
        ("cfg_scale", float("inf")),
        ("cfg_scale", "7"),
        ("seed", -2),
        ("seed", 2**63),
        ("sampler", "s" * 65),
        ("model", "../x"),
        ("motion_module", "a\\b"),
        ("loras", [{"name": "x"}]),
        ("init_image", "data"),
        ("context_batch_size", 16),
        ("context_stride", 1),
        ("context_overlap", -1),
        ("closed_loop", True),
        ("format", ["gif"]),
        ("format", ["mp4", "webp"]),
        ("format", "mp4"),
        ("format", []),
        ("format", [["mp4"]]),
        ("priority", []),
        ("metadata", {"x": "y" * 4096}),
        ("metadata", []),
        ("colour", "red"),
    ],
)
def test_a_bad_field_is_refused_by_name(field: str, value: object) -> None:
    assert [name for name, _ in request_problems({"prompt": "a cat", field: value})] == [field]


@pytest.mark.parametrize(
    "folder",
    [
        "../../etc",
        f"/2026/11/22/{JOB}/attempts/7",
        f"2026/11/22/{JOB}/attempts/8",
        f"2026/11/22/{JOB}/attempts/7/..",
        f"2026/11/22/{JOB}/attempts/7\n",
        "2026/11/22/0192f0c1-2345-7abc-8def-000000000000/attempts/7",
        None,
    ],
)
def test_the_folder_must_be_this_attempts_own(folder: object) -> None:
    assert problems_of(order(output_dir=folder)) == {"output_dir"}


def test_all_problems_are_told_at_once() -> None:
    body = {"job": "../x", "fence": 0, "output_dir": "/", "request": {"width": 1, "loras": [1]}, "more": 1}
    assert problems_of(body) == {
        "job",
        "fence",
        "output_dir",
        "request.width",
        "request.loras",
        "request.prompt",
        "more",
    }
    assert problems_of([]) == {"body"}
    assert problems_of(order(request="a cat")) == {"request"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (VideoRequest("x", frames=33), "request.frames"),
        (VideoRequest("x", model="sd15"), "request.model"),
        (VideoRequest("x", motion_module="v3"), "request.motion_module"),
        (VideoRequest("x", sampler="Euler"), "request.sampler"),
    ],
)
def test_the_engine_refuses_what_it_cannot_do(request_: VideoRequest, field: str) -> None:
    with pytest.raises(RequestError) as raised:
        check_supported(request_, LOADED)
    assert [name for name, _ in raised.value.problems] == [field]


def test_the_engine_takes_what_it_can_do() -> None:
    check_supported(VideoRequest("x", frames=32, model="tiny", motion_module="mm", sampler="ddim"), LOADED)
