from __future__ import annotations

import pytest

from appliance.agent.ending import Failed
from appliance.agent.memory import Memory, after_oom, ladder, memory_for
from appliance.job import Reason
from appliance.queue import FailKind


def labels(**request: object) -> list[str]:
    return [memory.label for memory in ladder({"prompt": "x", **request})]


FULL = ["", "context 12", "context 8", "context 8, vae tiling", "context 8, vae tiling, cpu offload"]


@pytest.mark.parametrize(
    ("request_fields", "rungs"),
    [
        ({}, FULL),  # 16 frames unless asked otherwise
        ({"frames": 128}, FULL),
        ({"frames": 13}, FULL),
        ({"frames": 12}, ["", *FULL[2:]]),
        ({"frames": 64, "context_batch_size": 12}, ["", *FULL[2:]]),
        ({"frames": 8}, ["", "vae tiling", "vae tiling, cpu offload"]),
        ({"frames": 64, "context_batch_size": 8}, ["", "vae tiling", "vae tiling, cpu offload"]),
        ({"frames": 64, "context_batch_size": None}, FULL),
        ({"frames": 1}, ["", "vae tiling", "vae tiling, cpu offload"]),
    ],
)
def test_rungs_that_change_nothing_are_left_out(request_fields: dict[str, object], rungs: list[str]) -> None:
    assert labels(**request_fields) == rungs


def test_every_rung_is_cheaper_than_the_one_before() -> None:
    for frames in range(1, 129):
        rungs = ladder({"frames": frames})
        assert len(set(rungs)) == len(rungs)
        contexts = [min(frames, rung.context_batch_size or frames) for rung in rungs]
        assert contexts == sorted(contexts, reverse=True)


@pytest.mark.parametrize(("ooms", "label"), [(-1, ""), (0, ""), (1, FULL[1]), (4, FULL[4]), (9, FULL[4])])
def test_the_number_of_times_out_of_memory_chooses_the_rung(ooms: int, label: str) -> None:
    assert memory_for({}, ooms).label == label


def test_only_the_last_rung_is_the_end() -> None:
    request = {"frames": 24, "width": 768, "height": 512}
    oom = Failed(FailKind.OOM, Reason.OOM, "CUDA out of memory")
    for memory in ladder(request)[:-1]:
        assert after_oom(oom, request, memory) == oom
    end = after_oom(oom, request, ladder(request)[-1])
    assert (end.kind, end.reason) == (FailKind.PERMANENT, Reason.OOM)
    assert "context 8, vae tiling, cpu offload" in end.message
    assert "smaller picture than 768x512 or fewer frames than 24" in end.message
    other = Failed(FailKind.ERROR, Reason.CUDA_ERROR, "x")
    assert after_oom(other, request, ladder(request)[-1]) == other


def test_one_picture_cannot_have_fewer_frames() -> None:
    request = {"frames": 1}
    end = after_oom(Failed(FailKind.OOM, Reason.OOM, "x"), request, ladder(request)[-1])
    assert "fewer frames" not in end.message


def test_what_the_webui_is_told() -> None:
    assert Memory(8, vae_tiling=True).as_dict() == {
        "context_batch_size": 8,
        "vae_tiling": True,
        "cpu_offload": False,
    }
