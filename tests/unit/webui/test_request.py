from __future__ import annotations

from typing import Any

import pytest

from webui.engine.base import Capabilities
from webui.request import (
    MemorySettings,
    RequestError,
    VideoRequest,
    check_supported,
    context_of,
    parse_interrupt,
    parse_order,
    request_problems,
)

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
        "context_stride": 1,
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
        ("context_batch_size", 0),
        ("context_batch_size", 129),
        ("context_stride", 2),
        ("context_stride", True),
        ("context_overlap", -2),
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


@pytest.mark.parametrize(
    "folder",
    [
        f"2026/11/22/{JOB}/attempts/7",
        f"2026/11/22/{JOB}/checkpoint/..",
        f"../2026/11/22/{JOB}/checkpoint",
        "2026/11/22/0192f0c1-2345-7abc-8def-000000000000/checkpoint",
        3,
    ],
)
def test_the_checkpoints_must_be_this_jobs_own(folder: object) -> None:
    assert problems_of(order(checkpoint_dir=folder)) == {"checkpoint_dir"}


def test_checkpoints_and_memory_settings_are_read() -> None:
    assert parse_order(order(checkpoint_dir=None, memory=None)) == parse_order(order())
    memory = {"context_batch_size": 8, "vae_tiling": True, "cpu_offload": False}
    parsed = parse_order(order(checkpoint_dir=f"2026/11/22/{JOB}/checkpoint", memory=memory))
    assert parsed.checkpoint_dir == f"2026/11/22/{JOB}/checkpoint"
    assert parsed.memory == MemorySettings(8, vae_tiling=True)


@pytest.mark.parametrize(
    ("memory", "field"),
    [
        ([], "memory"),
        (False, "memory"),
        ({"more": 1}, "memory.more"),
        ({"context_batch_size": 0}, "memory.context_batch_size"),
        ({"vae_tiling": 1}, "memory.vae_tiling"),
        ({"cpu_offload": None}, "memory.cpu_offload"),
    ],
)
def test_bad_memory_settings_are_refused_by_name(memory: object, field: str) -> None:
    assert problems_of(order(memory=memory)) == {field}


@pytest.mark.parametrize(
    ("asked", "rung", "context"),
    [(None, None, None), (16, None, None), (20, 12, 12), (12, None, 12), (8, 12, 8), (None, 8, 8), (None, 99, None)],
)
def test_the_smaller_context_counts_if_it_is_smaller_than_the_clip(
    asked: int | None, rung: int | None, context: int | None
) -> None:
    request = VideoRequest("x", frames=16, context_batch_size=asked)
    assert context_of(request, MemorySettings(rung)) == context


def test_an_interrupt_means_what_it_names() -> None:
    running = parse_order(order())
    for body, means in [
        ({}, True),
        ({"job": JOB}, True),
        ({"job": "other"}, False),
        ({"job": JOB, "fence": 7}, True),
        ({"job": JOB, "fence": 6}, False),
        ({"fence": None, "checkpoint": True}, True),
    ]:
        assert parse_interrupt(body).means(running) is means, body


@pytest.mark.parametrize(
    ("body", "field"),
    [([], "body"), ({"job": 3}, "job"), ({"fence": "7"}, "fence"), ({"checkpoint": 1}, "checkpoint"), ({"x": 1}, "x")],
)
def test_a_bad_interrupt_is_refused_by_name(body: object, field: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse_interrupt(body)
    assert [name for name, _ in raised.value.problems] == [field]


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
    check_supported(VideoRequest("x", frames=128, context_batch_size=32), LOADED)
