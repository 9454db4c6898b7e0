"""The agent's words for a foreign A1111 and back, without any connection."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from appliance.agent.a1111.answer import WrongAnswerError, read_answer, read_error
from appliance.agent.a1111.client import Unanswered
from appliance.agent.a1111.request import InvalidOrderError, Known, Order, make_call, trial_call
from appliance.agent.a1111.trial import Pause
from appliance.agent.a1111.watch import State, Watch
from appliance.agent.webui import WebuiBroke, WebuiNotThere
from appliance.job import JobRequest, Reason

KNOWN = Known(("Good",), ("A", "B"), ("v.safetensors",), ("Euler a", "DPM++ 2M"), ("Karras",))


def body_of(known: Known = KNOWN, context: int | None = None, **request: Any) -> dict[str, Any]:
    order = Order("job", 7, JobRequest.model_validate({"prompt": "a cat", **request}), context)
    body: dict[str, Any] = json.loads(make_call(order, known, "mm_sd15_v3").body)
    return body


def arguments_of(**request: Any) -> dict[str, Any]:
    (arguments,) = body_of(**request)["alwayson_scripts"]["AnimateDiff"]["args"]
    return dict(arguments)


def moving(kind: str, frames: int) -> bytes:
    target = io.BytesIO()
    first, *rest = (Image.new("RGB", (16, 16), (20 * n, 0, 0)) for n in range(frames))
    first.save(target, kind, save_all=True, append_images=rest, duration=100)
    return target.getvalue()


def answer(*files: bytes, info: object = "{}") -> bytes:
    images = [base64.b64encode(content).decode() for content in files]
    return json.dumps({"images": images, "parameters": {}, "info": info}).encode()


# --- out -------------------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_the_default_of_the_cluster_not_of_the_a1111() -> None:
    body, arguments = body_of(), arguments_of()
    assert (body["steps"], body["cfg_scale"], body["seed"], body["width"]) == (20, 7.5, -1, 512)
    assert "sampler_name" not in body
    assert body["override_settings"] == {"CLIP_stop_at_last_layers": 1}
    assert (arguments["model"], arguments["video_length"], arguments["fps"]) == ("mm_sd15_v3.safetensors", 16, 8)
    assert (arguments["batch_size"], arguments["stride"], arguments["overlap"]) == (16, 1, -1)
    assert (arguments["format"], arguments["closed_loop"], arguments["freeinit_enable"]) == (["MP4"], "N", False)


def test_names_are_written_as_the_a1111_knows_them() -> None:
    body = body_of(model="good.safetensors", vae="V", sampler="euler A", scheduler="karras", loras=[{"name": "b"}])
    assert body["override_settings"] == {
        "CLIP_stop_at_last_layers": 1,
        "sd_model_checkpoint": "Good",
        "sd_vae": "v.safetensors",
    }
    assert (body["sampler_name"], body["scheduler"]) == ("Euler a", "Karras")
    assert body["prompt"] == "a cat <lora:B:1>"
    assert body_of(sampler="dpm++ 2M Karras")["sampler_name"] == "dpm++ 2M Karras", "the A1111 splits it itself"


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "bad"},
        {"vae": "bad"},
        {"sampler": "bad"},
        {"scheduler": "bad"},
        {"loras": [{"name": "bad"}]},
    ],
)
def test_what_it_would_drop_without_a_word_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidOrderError, match=r"bad' is not known"):
        body_of(**request_)
    assert body_of(Known(), **request_), "where it does not list what it has, its own answer counts"


def test_less_memory_is_a_smaller_context() -> None:
    assert [
        body_of(context=context, frames=frames)["alwayson_scripts"]["AnimateDiff"]["args"][0]["batch_size"]
        for context, frames in [(None, 32), (12, 32), (8, 4)]
    ] == [16, 12, 4]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"job":"a","fence":1}',
        b'{"job":"a","fence":1,"request":{}}',
        b'{"job":"a","fence":1,"request":[]}',
    ],
)
def test_an_order_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidOrderError):
        Order.parse(body)


def test_the_trial_is_small() -> None:
    body = json.loads(trial_call("mm").body)
    assert (body["width"], body["steps"], body["alwayson_scripts"]["AnimateDiff"]["args"][0]["video_length"]) == (
        64,
        1,
        2,
    )


# --- back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_a_file_of_one_picture_is_no_video(kind: str) -> None:
    name = kind.lower()
    (file,), _ = read_answer(answer(moving(kind, 3)), [name], 3)
    assert (file.name, file.media_type) == (f"video.{name}", f"image/{name}")
    with pytest.raises(WrongAnswerError, match="still image"):
        read_answer(answer(moving(kind, 1)), [name], 3)
    assert read_answer(answer(moving(kind, 1)), [name], 1), "unless one frame was asked for"


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_gif_that_is_cut_off_breaks_nothing(cut: int) -> None:
    content = moving("GIF", 1)[:cut]
    with pytest.raises(WrongAnswerError):
        read_answer(answer(content), ["gif"], 3)


def test_files_are_told_by_their_bytes_and_named_by_their_kind() -> None:
    mp4, webm, png = b"\x00\x00\x00\x18ftypmp42", b"\x1a\x45\xdf\xa3....", b"\x89PNG\r\n\x1a\n...."
    files, info = read_answer(answer(mp4, webm, png, png, info='{"seed": 3}'), ["mp4", "webm", "frames"], 2)
    assert [file.name for file in files] == ["video.mp4", "video.webm", "frame-0000.png", "frame-0001.png"]
    assert info == {"seed": 3}
    with pytest.raises(WrongAnswerError, match="1 frames came back instead of 2"):
        read_answer(answer(mp4, png), ["mp4", "frames"], 2)
    with pytest.raises(WrongAnswerError, match="no mp4 came back, but frames"):
        read_answer(answer(png), ["mp4"], 2)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'{"images": null}', b'{"images": ["%%"]}', b'{"images": [5]}', b'{"images": []}',
     b'{"images": [], "info": "{"}'],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_wrong(body: bytes) -> None:
    with pytest.raises(WrongAnswerError):
        read_answer(body, ["mp4"], 2)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": "CUDA out of memory."}, Reason.OOM),
        (500, {"error": "RuntimeError", "errors": "CUDA out of memory. Tried"}, Reason.OOM),
        (500, {"error": "MemoryError", "errors": ""}, Reason.HOST_OOM),
        (500, {"error": "RuntimeError", "errors": "CUDA error: an illegal memory access"}, Reason.CUDA_ERROR),
        (500, {"error": "RuntimeError", "errors": "CUDA error: GPU is lost"}, Reason.GPU_LOST),
        (500, {"error": "KeyError", "errors": "'x'"}, Reason.UNKNOWN),
        (400, {"detail": "Sampler not found"}, Reason.INVALID_INPUT),
        (422, {"detail": [{"loc": ["body", "steps"], "msg": "not a number"}]}, Reason.INVALID_INPUT),
        (404, {"detail": "Init image not found"}, Reason.INVALID_INPUT),
        (500, [], Reason.UNKNOWN),
    ],
)
def test_errors_have_reasons(status: int, body: object, reason: Reason) -> None:
    found, message = read_error(status, json.dumps(body).encode())
    assert found is reason
    assert 0 < len(message) <= 500


def test_an_error_page_is_cut_short() -> None:
    reason, message = read_error(502, b"<html>" + b"x" * 10_000)
    assert (reason, len(message)) == (Reason.UNKNOWN, 500)


def told(watch: Watch, *steps: int, each: int = 4) -> list[tuple[str, object, object]]:
    for step in steps:
        watch.hear(State(True, step, each, False))
    events = watch.events()
    return [(event["event"], event.get("step", event.get("phase")), event.get("total_steps")) for event in events]


def test_steps_are_told_once_and_what_follows_them_is_decoding() -> None:
    watch = Watch(4, 1, 10)
    assert told(watch) == [("alive", "load", None)]
    assert told(watch, 0, 1, 1) == [("started", None, 4), ("step", 1, 4), ("alive", "step", None)]
    assert told(watch, 4) == [("step", 4, 4), ("alive", "decode", None)]


def test_rounds_that_count_from_zero_again_are_progress() -> None:
    """Otherwise a long FreeInit would be taken for one that hangs."""
    watch = Watch(4, 2, 10)
    assert told(watch, 4)[1:] == [("step", 4, 8), ("alive", "step", None)]
    assert told(watch, 1) == [("step", 5, 8), ("alive", "step", None)]
    assert told(watch, 4) == [("step", 8, 8), ("alive", "decode", None)]
    assert told(watch, 1) == [("step", 9, 9), ("alive", "decode", None)], "more rounds than were known of"


def test_silence_is_no_sign_of_life() -> None:
    silent = Watch(4, 1, -1)
    silent.trouble = "no route"
    with pytest.raises(WebuiBroke, match="no route"):
        silent.events()


@pytest.mark.parametrize("raw", [None, [], {}, {"state": None}, {"state": []}])
def test_progress_that_is_none(raw: object) -> None:
    with pytest.raises(Unanswered):
        State.parse(raw)


def test_progress_of_several_rounds_is_counted_through() -> None:
    state = {"job_count": 3, "job_no": 1, "sampling_step": 4, "sampling_steps": 10, "interrupted": False}
    assert State.parse({"state": state}) == State(True, 14, 30, False)
    assert State.parse({"state": {"job_count": 0, "sampling_step": "x"}}, 20) == State(False, 0, 20, False)


def test_a_run_that_still_loads_is_one() -> None:
    """Until it knows how many pictures it makes it counts -1, and the steps are those of the run before."""
    state = {"job_count": -1, "job_no": 0, "sampling_step": 0, "sampling_steps": 50, "interrupted": False}
    assert State.parse({"state": state}, 6) == State(True, 0, 6, False)


def test_a_run_that_was_skipped_is_as_one_that_was_interrupted() -> None:
    state = {"job_count": 0, "job_no": 1, "sampling_step": 0, "sampling_steps": 6}
    assert State.parse({"state": {**state, "skipped": True}}).interrupted
    assert not State.parse({"state": {**state, "skipped": False}}).interrupted


def test_one_that_fails_for_days_is_asked_every_half_minute() -> None:
    pause = Pause()
    for _ in range(2000):
        pause.after(WebuiBroke("always"))
    assert not pause.over
    pause.after(WebuiNotThere("gone"))
    assert pause.over, "one that is not there costs nothing"
