"""Results to answers, progress, options, lists and PNG texts."""

from __future__ import annotations

import base64
import io
import json
import zlib

import pytest
from PIL import Image, PngImagePlugin

from sdapi import answers, errors, generation, listings, options, pnginfo, progress
from sdapi.answers import ResultFile
from sdapi.errors import ApiError
from sdapi.generation import Generation
from sdapi.offer import Offer, find, stem
from sdapi.options import Chosen
from sdapi.progress import Progress
from sdapi.prompts import TagError, take_loras

OFFER = Offer(models=("real", "toon"), motion_modules=("mm",), vaes=("soft",), samplers=("DDIM",), loras=("look",))
GIF, MP4, WEBP, WEBM = (ResultFile("video", kind, 1) for kind in ("image/gif", "video/mp4", "image/webp", "video/webm"))
FRAME = ResultFile("frame.png", "image/png", 1)
INFO_FIELDS = {
    *("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed"),
    *("all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size"),
    *("restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash"),
    *("seed_resize_from_w", "seed_resize_from_h", "denoising_strength", "extra_generation_params"),
    *("index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip"),
    *("is_using_inpainting_conditioning", "version"),
}


def asked(formats: list[str] | None = None, **body: object) -> Generation:
    if formats is not None:
        body["alwayson_scripts"] = {"animatediff": {"args": [{"enable": True, "format": formats, "video_length": 2}]}}
    return generation.read("txt2img", body, OFFER, Chosen(), 7)


def test_videos_come_in_upstreams_order_and_frames_after_them() -> None:
    made = asked(["MP4", "WEBM", "GIF", "WEBP", "Frame"], n_iter=2)
    files = [[MP4, GIF, WEBP, WEBM, FRAME, FRAME]] * 2
    videos = [(job, index) for job in (0, 1) for index in (1, 0, 2, 3)]
    assert answers.choose_files(made, files) == [*videos, (0, 4), (0, 5), (1, 4), (1, 5)]


def test_only_what_was_asked_for_is_told() -> None:
    assert answers.choose_files(asked(["GIF"]), [[MP4, GIF, FRAME]]) == [(0, 1)]
    assert answers.choose_files(asked(["PNG"]), [[MP4, FRAME]]) == [(0, 1)]
    assert answers.choose_files(asked(), [[FRAME]]) == [(0, 0)]


def test_the_answer_and_its_info() -> None:
    made = asked(prompt="a cat", negative_prompt="dog", seed=5, steps=3, sampler_name="DDIM")
    answer = answers.build(made, [b"one"], [{"checkpoint": "real"}], "20261123010203")
    assert set(answer) == {"images", "parameters", "info"}
    assert base64.b64decode(answer["images"][0]) == b"one"
    assert answer["parameters"]["prompt"] == "a cat"
    told = json.loads(answer["info"])
    assert set(told) == INFO_FIELDS
    assert (told["seed"], told["all_seeds"], told["sd_model_name"], told["sampler_name"]) == (5, [5], "real", "DDIM")
    assert told["infotexts"][0].startswith("a cat\nNegative prompt: dog\nSteps: 3, Sampler: DDIM, ")
    assert pnginfo.parameters(told["infotexts"][0])["Seed"] == "5"


def test_the_streamed_answer_is_the_same_json() -> None:
    made = asked(["GIF"], n_iter=2)
    images = [b"one", b"three"]
    head, tail = answers.around_images(made, [{}, {}], "now")
    encoded = b",".join(b'"' + base64.b64encode(image) + b'"' for image in images)
    assert json.loads(head + encoded + tail) == answers.build(made, images, [{}, {}], "now")
    assert len(encoded) == answers.encoded_size([3, 5])
    assert json.loads(head + tail)["images"] == []


def test_no_images_where_none_are_to_be_sent() -> None:
    assert answers.build(asked(send_images=False), [b"x"], [{}], "now")["images"] == []


def test_animatediff_is_told_in_the_info() -> None:
    told = answers.info(asked(["GIF"]), [{"motion_module": "mm_real"}], "now")
    assert "model: mm_real" in told["extra_generation_params"]["AnimateDiff"]
    assert told["batch_size"] == 2


def test_idle_is_no_progress_and_no_job() -> None:
    idle = progress.show(None)
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    assert set(idle) == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    assert set(idle["state"]) == {
        *("skipped", "interrupted", "stopping_generation", "job", "job_count", "job_timestamp", "job_no"),
        *("sampling_step", "sampling_steps"),
    }


def test_progress_by_upstreams_formula() -> None:
    now = Progress("t", job_count=2, job_no=1, step=5, steps=10, timestamp="x", elapsed=76.0, preview="jpeg")
    assert now.fraction == pytest.approx(0.01 + 1 / 2 + 5 / 20)
    assert now.eta == pytest.approx(24.0)
    assert Progress("t", 1, 0, 10, 10, "x").fraction == 1.0
    assert Progress("t", 1, 0, 0, 0, "x").fraction == 0.01
    assert progress.show(now)["current_image"] == "jpeg"
    assert progress.show(now, skip_image=True)["current_image"] is None


def test_a_tasks_progress() -> None:
    now = Progress("t", 1, 0, 5, 10, "x", preview="jpeg")
    told = progress.show_task(now, completed=False, request={"id_task": "t"})
    assert set(told) == {
        *("active", "queued", "completed", "progress", "eta", "live_preview", "id_live_preview", "textinfo")
    }
    assert (told["active"], told["live_preview"], told["id_live_preview"]) == (True, "data:image/jpeg;base64,jpeg", 5)
    seen = progress.show_task(now, completed=False, request={"id_task": "t", "id_live_preview": 5})
    assert seen["live_preview"] is None
    waiting = progress.show_task(Progress("t", 1, 0, 0, 9, "x", queued=True), completed=False, request={})
    assert (waiting["active"], waiting["queued"]) == (False, True)
    over = progress.show_task(None, completed=True, request={})
    assert (over["active"], over["queued"], over["completed"]) == (False, False, True)


def test_options_are_shown_and_changed() -> None:
    shown = options.show(Chosen(), OFFER)
    assert (shown["sd_model_checkpoint"], shown["CLIP_stop_at_last_layers"]) == ("real", 1)
    chosen = options.change(Chosen(), {"sd_model_checkpoint": "Toon.safetensors", "samples_format": "png"}, OFFER)
    assert options.show(chosen, OFFER)["sd_model_checkpoint"] == "toon"
    assert Chosen.parse(json.loads(json.dumps(chosen.as_dict()))) == chosen
    assert options.change(chosen, {"sd_vae": "None", "outdir_samples": "x"}, OFFER) == chosen
    # What was shown may be sent back whole.
    assert options.change(chosen, options.show(chosen, OFFER), OFFER) == chosen


@pytest.mark.parametrize(
    "body", [{"colour": 1}, {"sd_vae": "hard"}, {"CLIP_stop_at_last_layers": 9}, {"samples_format": "jpg"}, [], None]
)
def test_options_that_cannot_be_set(body: object) -> None:
    with pytest.raises(ApiError) as caught:
        options.change(Chosen(), body, OFFER)
    assert caught.value.status == 422


@pytest.mark.parametrize("raw", [None, [], "x", {"model": 3, "clip_skip": "x"}, {"clip_skip": 99}])
def test_options_of_another_version_are_not_chosen(raw: object) -> None:
    assert Chosen.parse(raw) == Chosen()


def test_lists_have_upstreams_fields() -> None:
    def fields(name: str) -> set[str]:
        return set(listings.read(name, OFFER, Chosen())[0])

    assert fields("sd-models") == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert fields("samplers") == {"name", "aliases", "options"}
    assert fields("schedulers") == {"name", "label", "aliases", "default_rho", "need_inner_model"}
    assert fields("loras") == {"name", "alias", "path", "metadata"}
    assert fields("sd-vae") == {"model_name", "filename"}
    assert "animatediff" in listings.read("scripts", OFFER, Chosen())["txt2img"]
    for name in (*listings.EMPTY_LISTS, "upscalers", "embeddings", "script-info", "extensions", "cmd-flags", "options"):
        json.dumps(listings.read(name, OFFER, Chosen()))
        json.dumps(listings.read(name, Offer(), Chosen()))


@pytest.mark.parametrize(("name", "status"), [("nothing", 404), ("txt2img", 405), ("refresh-loras", 405)])
def test_what_is_no_list(name: str, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        listings.read(name, OFFER, Chosen())
    assert caught.value.status == status
    assert set(caught.value.body) == {"error", "detail", "body", "errors"}


def test_memory_with_and_without_a_gpu() -> None:
    assert listings.memory(None, None) == {"ram": {"free": 0, "used": 0, "total": 0}, "cuda": {"error": "unavailable"}}
    cuda = listings.memory({"free": 1, "used": 2, "total": 3}, {"memory_total_mib": 4, "memory_used_mib": 1})["cuda"]
    assert cuda["system"] == {"free": 3 << 20, "used": 1 << 20, "total": 4 << 20}
    assert set(cuda) == {"system", "active", "allocated", "reserved", "inactive", "events"}


@pytest.mark.parametrize(
    ("reason", "status", "kind"),
    [
        ("OOM", 500, "OutOfMemoryError"),
        ("HOST_OOM", 500, "OutOfMemoryError"),
        ("INVALID_INPUT", 422, "HTTPException"),
        ("CANCELLED", 409, "InterruptedError"),
        ("TIMEOUT", 504, "TimeoutError"),
        ("WORKER_LOST", 503, "ConnectionError"),
        ("CUDA_ERROR", 500, "RuntimeError"),
    ],
)
def test_reasons_are_told_in_upstreams_shape(reason: str, status: int, kind: str) -> None:
    error = errors.of_reason(reason, "because")
    assert (error.status, error.body["error"]) == (status, kind)
    assert set(error.body) == {"error", "detail", "body", "errors"}


def test_out_of_memory_is_told_exactly_as_upstream_does() -> None:
    text = "CUDA out of memory. Tried to allocate 20.00 MiB"
    body = {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": text}
    assert errors.of_reason("OOM", text).body == body
    assert errors.of_reason("OOM", "no room").body["errors"] == "CUDA out of memory. no room"


def test_names() -> None:
    assert [stem(name) for name in ("a.ckpt", "a.safetensors [0123abcdef]", "a [v2]", ".ckpt")] == [
        *("a", "a", "a [v2]", ".ckpt")
    ]
    assert find("mm_sd15_v3", ("mm_sd_v15_v3",)) == "mm_sd_v15_v3"
    assert find("x", ("y",)) is None


def test_the_cluster_offers_what_any_worker_does() -> None:
    both = Offer.union([Offer(models=("a", "b"), loras=("x",)), Offer(models=("b", "c")), Offer()])
    assert (both.models, both.loras, both.vaes) == (("a", "b", "c"), ("x",), None)
    assert Offer.union([]) == Offer.union([Offer()]) == Offer()


def test_lora_tags() -> None:
    assert take_loras("a <lora:x:0.5:0.5> b<lyco:y>") == ("a  b", [("x", 0.5), ("y", 1.0)])
    assert take_loras("a < b > c") == ("a < b > c", [])
    with pytest.raises(TagError, match="two different"):
        take_loras("<lora:x:te=1:unet=0>")


def png(**texts: str) -> str:
    told = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        told.add_itxt(name, text, zip=True) if name == "zipped" else told.add_text(name, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=told)
    return base64.b64encode(file.getvalue()).decode()


def test_png_texts() -> None:
    info = "a cat, a dog\nNegative prompt: bad\nSteps: 3, Sampler: Euler a, Seed: 5"
    told = pnginfo.read({"image": f"data:image/png;base64,{png(parameters=info, Software='x', zipped='ü')}"})
    assert told["info"] == info
    assert told["items"] == {"Software": "x", "zipped": "ü"}
    assert (told["parameters"]["Prompt"], told["parameters"]["Sampler"]) == ("a cat, a dog", "Euler a")
    assert pnginfo.read({"image": png()}) == {"info": "", "items": {}, "parameters": {}}


@pytest.mark.parametrize("body", [None, {}, {"image": ""}, {"image": 3}, {"image": "!"}, {"image": "QUJD"}])
def test_png_texts_of_what_is_no_png(body: object) -> None:
    with pytest.raises(ApiError) as caught:
        pnginfo.read(body)
    assert caught.value.status == 422


def test_bombs_in_a_png_stay_small_together() -> None:
    packed = zlib.compress(b"x" * (1 << 20), 9)
    bombs = []
    for number in range(50):
        content = b"bomb %d\0\0" % number + packed
        bombs.append(len(content).to_bytes(4, "big") + b"zTXt" + content + b"\0" * 4)
    found = pnginfo.texts(pnginfo.SIGNATURE + b"".join(bombs))
    assert 0 < sum(map(len, [*found.keys(), *found.values()])) <= pnginfo.TEXTS_LIMIT + 100


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a", " ", 'a: "', "a:", '"', "\\", "a b:,"])
def test_a_text_that_is_no_list_of_settings_is_soon_seen_through(piece: str) -> None:
    """In no more than milliseconds; from each of its letters anew it would be hours."""
    for size in (pnginfo.LINE_LIMIT, pnginfo.TEXTS_LIMIT):
        assert len(pnginfo.parameters(piece * (size // len(piece)))) <= 5
