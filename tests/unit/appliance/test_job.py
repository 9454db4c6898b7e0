from __future__ import annotations

import base64
import json
import uuid

import pytest
from pydantic import ValidationError

from appliance.job import (
    TRANSITIONS,
    Capabilities,
    JobRequest,
    JobState,
    Needs,
    Priority,
    Reason,
    estimate_cost_ms,
    is_job_id,
    is_legal,
    job_folder,
    needs_of,
    new_job_id,
    resolution_of,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2).decode()
CLIP = base64.b64encode(b"\0\0\0\x18ftypisom").decode()
CONTROL = {"model": "c", "image": PNG}
SPARSE = {"model": "s", "images": [{"frame": 0, "image": PNG}, {"frame": 15, "image": PNG}]}


def test_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_job_id(now_ms=1_700_000_000_000 + n) for n in range(50)]
    parsed = [uuid.UUID(job_id) for job_id in ids]
    assert {(value.version, value.variant) for value in parsed} == {(7, uuid.RFC_4122)}
    assert ids == sorted(ids)
    assert len({new_job_id(now_ms=1) for _ in range(1000)}) == 1000


def test_the_folder_comes_from_the_ids_own_time_in_utc() -> None:
    job_id = new_job_id(now_ms=1_795_391_999_999)  # 2026-11-22T23:59:59.999Z
    assert job_folder(job_id) == f"2026/11/22/{job_id}"


@pytest.mark.parametrize("text", ["", "../../etc", str(uuid.uuid4()), new_job_id().upper(), "{" + new_job_id() + "}"])
def test_only_canonical_ids_become_paths(text: str) -> None:
    assert not is_job_id(text)
    with pytest.raises(ValueError, match="canonical"):
        job_folder(text)


def test_final_states_lead_nowhere_but_for_a_replay_and_every_state_is_reachable() -> None:
    assert {state for state in JobState if state.is_final} == {JobState.DONE, JobState.CANCELLED, JobState.DEAD}
    assert {state for state in JobState if not TRANSITIONS[state]} == {JobState.DONE, JobState.CANCELLED}
    assert is_legal(JobState.DEAD, JobState.QUEUED)
    assert set().union(*TRANSITIONS.values()) == set(JobState)
    assert is_legal(JobState.RUNNING, JobState.QUEUED)
    assert not is_legal(JobState.DONE, JobState.RUNNING)
    assert not is_legal(JobState.QUEUED, JobState.DONE)


def test_unknown_reasons_are_unknown() -> None:
    assert [Reason.parse(value) for value in ("OOM", "PANIC", None, 7)] == [
        Reason.OOM,
        Reason.UNKNOWN,
        Reason.UNKNOWN,
        Reason.UNKNOWN,
    ]


def test_equal_requests_are_equal_texts_and_only_what_was_said() -> None:
    first = JobRequest.model_validate_json('{"prompt": "é", "steps": 5}')
    second = JobRequest.model_validate_json('{"steps":5,"prompt":"\\u00e9"}')
    assert first.canonical_json() == second.canonical_json()
    assert json.loads(first.canonical_json()) == {"prompt": "é", "steps": 5}


def test_one_format_may_be_given_as_a_word() -> None:
    assert json.loads(JobRequest.model_validate({"prompt": "a", "format": "mp4"}).canonical_json())["format"] == ["mp4"]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("width", [64, 1024], [56, 1032, 65]),
        ("frames", [1, 128], [0, 129]),
        ("fps", [1, 60], [0, 61]),
        ("steps", [1, 150], [0, 151]),
        ("cfg_scale", [0, 30], [-0.1, 30.1, float("nan"), float("inf")]),
        ("seed", [-1, 2**63 - 1], [-2, 2**63]),
        ("sampler", ["Euler", None], ["x" * 65]),
        ("model", ["v1.5.safetensors"], ["a/b", "a\\b", "x" * 201, ""]),
        ("prompt", ["x" * 4000], ["x" * 4001, ""]),
        ("negative_prompt", ["", "x" * 4000], ["x" * 4001]),
        ("loras", [[{"name": "a"}] * 8], [[{"name": "a"}] * 9, [{"name": "a", "strength": 1}]]),
        ("metadata", [{"a": "x" * 4000}], [{"a": "x" * 4096}, {"a": float("nan")}]),
        ("priority", ["high"], ["urgent"]),
        ("deadline_seconds", [1, None], [0, -1]),
        ("scheduler", ["karras", None], ["x" * 65, 3]),
        ("vae", ["soft", None], ["a/b"]),
        ("clip_skip", [1, 4], [0, 5, "2", True]),
        ("denoising_strength", [0, 1], [-0.1, 1.1, "0.5"]),
        ("latent_power", [0.1, 10], [0, 11]),
        ("latent_scale_last", [1, 128], [0.5, 129]),
        ("loop_number", [0, 65535], [-1, 65536]),
        ("context_stride", [1, 8, None], [0, 9]),
        ("format", [["mp4", "gif", "webp", "webm", "frames"]], [[], ["exe"]]),
        ("init_image", [PNG, f"data:image/png;base64,{PNG}", None], ["x", "", PNG[:20], CLIP]),
        ("last_frame", [PNG], [CLIP]),
        ("init_video", [CLIP], [PNG, "x"]),
        (
            "free_init",
            [{}, None, {"iterations": 5, "filter": "ideal"}],
            [{"iterations": 6}, {"filter": "box"}, {"x": 1}],
        ),
        ("controlnets", [[], [CONTROL] * 2], [[CONTROL] * 3, [{"model": "c"}], [CONTROL | {"images": [PNG]}]]),
        ("controlnets", [[{"model": "c", "images": [PNG, PNG]}]], [[CONTROL | {"start": 0.9, "end": 0.1}]]),
        (
            "sparse_control",
            [None, SPARSE],
            [SPARSE | {"images": []}, SPARSE | {"images": [{"frame": 16, "image": PNG}]}],
        ),
        ("sparse_control", [], [SPARSE | {"images": [{"frame": 0, "image": PNG}] * 2}]),
        ("prompt", ["a\n0: b\n15: c\nd"], ["a\n16: b"]),
    ],
)
def test_limits(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        JobRequest.model_validate({"prompt": "a", field: value})
    for value in bad:
        with pytest.raises(ValidationError):
            JobRequest.model_validate({"prompt": "a", field: value})


def test_unknown_fields_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="colour"):
        JobRequest.model_validate({"prompt": "a", "colour": 1})


def test_cost_grows_with_the_work() -> None:
    def cost(**more: int) -> int:
        return estimate_cost_ms(JobRequest.model_validate({"prompt": "a", **more}))

    assert cost() == 10_000
    assert cost(frames=32) == cost(steps=40) == 20_000
    assert cost(width=64, height=64, frames=1, steps=1) == 100


def test_starting_from_a_picture_costs_less_and_free_init_more() -> None:
    assert estimate_cost_ms(request(init_image=PNG, denoising_strength=0.5)) == 5_000
    assert estimate_cost_ms(request(denoising_strength=0.5)) == 10_000
    assert estimate_cost_ms(request(free_init={"iterations": 3})) == 30_000


def test_two_pictures_to_start_from_are_refused() -> None:
    with pytest.raises(ValidationError, match="together with init_image"):
        request(init_image=PNG, init_video=CLIP)


def test_an_old_request_keeps_its_text() -> None:
    text = request(steps=5).canonical_json()
    assert text == '{"prompt":"a","steps":5}'


def test_slack_orders_the_priorities() -> None:
    assert Priority.HIGH.slack_seconds < Priority.NORMAL.slack_seconds < Priority.LOW.slack_seconds


def request(**more: object) -> JobRequest:
    return JobRequest.model_validate({"prompt": "a", **more})


def test_a_plain_job_needs_nothing_special() -> None:
    assert needs_of(request()) == needs_of(request(frames=32, steps=150)) == Needs()
    assert Needs().worker_class() == "default"


def test_needs_follow_the_request() -> None:
    assert needs_of(request(model="toon", motion_module="mm")) == Needs("toon", "mm")
    assert [needs_of(request(frames=frames)).frames for frames in (32, 33, 64, 65, 128)] == [0, 64, 64, 128, 128]
    assert needs_of(request(frames=128, context_batch_size=16)).frames == 0
    assert needs_of(request(model="toon.safetensors", motion_module="mm_sd_v15_v3.ckpt")) == Needs("toon", "mm_sd15_v3")
    assert resolution_of(request(width=640, height=384)) == "640x384"


def test_memory_follows_the_pixels_and_what_is_looked_at_together() -> None:
    def vram(**more: object) -> int:
        return needs_of(request(**more)).vram_mib

    assert vram(width=1024, height=1024) == vram(width=1024, height=1024, frames=128) == 16384
    assert vram(width=1024, height=1024, context_batch_size=8) < vram(width=1024, height=1024)
    assert vram(frames=128, context_batch_size=64) > 0 == vram(frames=16, context_batch_size=16)
    assert vram(width=1024, height=1024, frames=8) < vram(width=1024, height=1024, frames=16)
    assert all(
        vram(width=width, height=512, context_batch_size=32, frames=32) % 2048 == 0 for width in range(64, 1025, 64)
    )


def test_equal_needs_are_one_class() -> None:
    classes = {Needs(model="a"), Needs(motion_module="a"), Needs(vram_mib=10240), Needs(frames=64), Needs("a", "b")}
    names = {needs.worker_class() for needs in classes}
    assert len(names) == len(classes)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert json.loads(Needs(model="a", frames=64).to_json()) == {"model": "a", "frames": 64}


def test_capabilities_say_what_is_lacking() -> None:
    small = Capabilities(models=("a",), motion_modules=(), vram_mib=8192, max_frames=32)
    assert small.lacks(Needs()) == small.lacks(Needs("a", None, 8192, 0)) == ()
    assert small.lacks(Needs("b", "m", 10240, 64)) == ("model", "motion_module", "vram_mib", "frames")
    assert Capabilities().lacks(Needs("b", "m", 10240, 64)) == ()
    assert Capabilities.parse(small.as_dict()) == small


def test_capabilities_know_models_by_one_name_and_long_lists_not_at_all() -> None:
    can = Capabilities.parse(
        {"models": ["a.safetensors", "a"], "motion_modules": ["mm_sd_v15_v3"], "loras": ["l"] * 1001}
    )
    assert (can.models, can.motion_modules, can.loras) == (("a",), ("mm_sd15_v3",), None)
    full = Capabilities(("a",), ("m",), 1, 2, ("l",), ("v",), ("c",), ("DDIM",), ("Karras",))
    assert Capabilities.parse(json.loads(json.dumps(full.as_dict()))) == full
    assert full.for_claim() == {"models": ["a"], "motion_modules": ["m"], "vram_mib": 1, "max_frames": 2}


@pytest.mark.parametrize("raw", [None, [], "x", {"models": "a", "vram_mib": -1, "max_frames": True}, {"vram_mib": 1.5}])
def test_capabilities_that_are_not_understood_limit_nothing(raw: object) -> None:
    assert Capabilities.parse(raw) == Capabilities()
