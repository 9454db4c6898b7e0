from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from webui.engine.base import Capabilities
from webui.request import (
    ControlNet,
    FreeInit,
    KeyImage,
    Lora,
    MemorySettings,
    RequestError,
    SparseControl,
    VideoRequest,
    check_supported,
    context_of,
    parse_interrupt,
    parse_order,
    request_problems,
    video_request,
)

JOB = "0192f0c1-2345-7abc-8def-0123456789ab"
FOLDER = f"2026/11/22/{JOB}/attempts/7"
LOADED = Capabilities("diffusers-cpu", "f", False, "tiny", "mm", max_frames=32, samplers=("DDIM",), loras=("there",))


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
        ("scheduler", 3),
        ("vae", "../x"),
        ("clip_skip", 0),
        ("clip_skip", 5),
        ("loras", [{"name": "x"}] * 9),
        ("loras", {}),
        ("denoising_strength", 1.01),
        ("denoising_strength", float("nan")),
        ("latent_power", 0),
        ("latent_scale", 129),
        ("latent_power_last", 11),
        ("latent_scale_last", "32"),
        ("controlnets", None),
        ("controlnets", [{}] * 3),
        ("free_init", 3),
        ("sparse_control", []),
        ("context_batch_size", 0),
        ("context_batch_size", 129),
        ("context_stride", 0),
        ("context_stride", 9),
        ("context_stride", True),
        ("context_overlap", -2),
        ("closed_loop", 1),
        ("format", ["mp4", "exe"]),
        ("format", ["mp4"] * 6),
        ("format", "mp4"),
        ("format", []),
        ("format", [["mp4"]]),
        ("loop_number", -1),
        ("loop_number", 65536),
        ("loop_number", True),
        ("priority", []),
        ("metadata", {"x": "y" * 4096}),
        ("metadata", []),
        ("colour", "red"),
    ],
)
def test_a_bad_field_is_refused_by_name(field: str, value: object) -> None:
    assert [name for name, _ in request_problems({"prompt": "a cat", field: value})] == [field]


def test_every_format_can_be_asked_for() -> None:
    asked = {"prompt": "a cat", "format": ["frames", "webm", "gif", "mp4", "webp"], "loop_number": 65535}
    assert request_problems(asked) == []
    request = video_request(asked)
    assert (list(request.format), request.loop_number) == (asked["format"], 65535)
    assert list(VideoRequest("a cat").format) == ["mp4"]


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
        "request.loras[0]",
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
        (VideoRequest("x", sampler="DDIM", scheduler="crooked"), "request.scheduler"),
        (VideoRequest("x", vae="ft-mse"), "request.vae"),
        (VideoRequest("x", loras=(Lora("there"), Lora("not there"))), "request.loras[1].name"),
        (VideoRequest("x", controlnets=(ControlNet("depth", "…"),)), "request.controlnets[0].model"),
        (VideoRequest("x", sparse_control=SparseControl("rgb", (KeyImage(0, "…"),))), "request.sparse_control.model"),
    ],
)
def test_the_engine_refuses_what_it_cannot_do(request_: VideoRequest, field: str) -> None:
    with pytest.raises(RequestError) as raised:
        check_supported(request_, LOADED)
    assert [name for name, _ in raised.value.problems] == [field]


def test_the_engine_takes_what_it_can_do() -> None:
    check_supported(VideoRequest("x", frames=32, model="tiny", motion_module="mm", sampler="ddim"), LOADED)
    check_supported(VideoRequest("x", frames=128, context_batch_size=32), LOADED)


def test_a_model_may_be_named_with_its_file_s_ending_or_in_another_case() -> None:
    lora = Lora("There.safetensors")
    check_supported(VideoRequest("x", model="tiny.safetensors", motion_module="mm.ckpt", loras=(lora,)), LOADED)
    other = replace(LOADED, checkpoints=("tiny", "other"), motion_modules=("mm_sd15_v3",))
    check_supported(VideoRequest("x", model="other", motion_module="mm_sd_v15_v3.safetensors"), other)


def test_all_fields_come_through_json_as_they_were() -> None:
    asked = {
        "prompt": "0: a cat\n4: a dog",
        "sampler": "Euler a",
        "scheduler": "karras",
        "vae": "ft-mse",
        "clip_skip": 2,
        "loras": [{"name": "x", "weight": -1.5}, {"name": "y"}],
        "denoising_strength": 0.4,
        "latent_power": 2,
        "latent_scale": 4,
        "latent_power_last": 3,
        "latent_scale_last": 5,
        "free_init": {"iterations": 2, "filter": "ideal"},
        "context_stride": 3,
        "closed_loop": True,
    }
    assert request_problems(asked) == []
    request = video_request(asked)
    assert request.loras == (Lora("x", -1.5), Lora("y", 1.0))
    assert request.free_init == FreeInit(2, "ideal", 0.25, 0.25)
    assert video_request(json.loads(json.dumps(request.as_dict()))) == request
    nothing = {"prompt": "a cat", "loras": None, "context_stride": None, "closed_loop": None, "free_init": None}
    assert request_problems(nothing) == []
    assert video_request(nothing) == VideoRequest("a cat")


def test_what_an_old_request_says_about_itself_has_not_changed() -> None:
    old = ["prompt", "negative_prompt", "width", "height", "frames", "fps", "steps", "cfg_scale", "seed", "sampler"]
    old += ["model", "motion_module", "context_batch_size", "context_overlap"]
    assert list(VideoRequest("a cat").described()) == old
    assert VideoRequest("a cat", clip_skip=2).described()["clip_skip"] == 2


@pytest.mark.parametrize(
    ("request_", "total"),
    [
        (VideoRequest("x", steps=20, denoising_strength=0.1), 20),
        (VideoRequest("x", steps=20, init_image="…", denoising_strength=0.1), 2),
        (VideoRequest("x", steps=20, last_frame="…", denoising_strength=0.001), 1),
        (VideoRequest("x", steps=20, init_video="…", denoising_strength=0), 0),
        (VideoRequest("x", steps=20, init_video="…", denoising_strength=1), 20),
        (VideoRequest("x", steps=20, free_init=FreeInit(3)), 60),
        (VideoRequest("x", steps=20, init_image="…", denoising_strength=0.5, free_init=FreeInit(2)), 20),
    ],
)
def test_the_steps_that_will_be_run_are_known_before(request_: VideoRequest, total: int) -> None:
    assert request_.total_steps == total


@pytest.mark.parametrize(
    ("prompt", "frames"), [("0: a cat\n16: a dog", 16), ("3: a cat\n3: a dog", 16), ("head\n 9 : x", 9)]
)
def test_a_prompt_that_travels_too_far_or_nowhere_is_refused(prompt: str, frames: int) -> None:
    assert [name for name, _ in request_problems({"prompt": prompt, "frames": frames})] == ["prompt"]
