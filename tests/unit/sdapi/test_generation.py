"""Bodies of txt2img and img2img as clients send them, and the job requests or errors that they become."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.job import JobRequest
from sdapi import generation
from sdapi.errors import ApiError
from sdapi.generation import Generation, Kind
from sdapi.offer import Offer
from sdapi.options import Chosen

OFFER = Offer(
    models=("real", "toon"),
    motion_modules=("mm_sd15_v3", "mm_v2"),
    loras=("Film Look",),
    vaes=("soft",),
    controlnets=("canny",),
    samplers=("DDIM", "Euler a", "Euler", "DPM++ 2M"),
    schedulers=("Automatic", "Karras", "SGM Uniform"),
)
PICTURE = "iVBORw0KGgo="


def read(body: object, kind: Kind = "txt2img", offer: Offer = OFFER, chosen: Chosen | None = None) -> Generation:
    return generation.read(kind, body, offer, chosen or Chosen(), 7)


def animated(more: object = None, **arguments: Any) -> dict[str, Any]:
    script = {"animatediff": {"args": [{"enable": True, **arguments}]}}
    return {"prompt": "a cat", "alwayson_scripts": script, **(more if isinstance(more, dict) else {})}


def job_of(body: object, kind: Kind = "txt2img") -> dict[str, Any]:
    (job,) = read(body, kind).jobs
    return dict(job)


def refusal(body: object, kind: Kind = "txt2img", offer: Offer = OFFER) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, kind, offer)
    return caught.value


def fields_of(error: ApiError) -> set[str]:
    assert error.status == 422
    return {str(item["loc"][-1]) for item in error.body["detail"]}


def test_an_empty_body_is_upstreams_defaults() -> None:
    job = job_of({})
    assert job == {
        "prompt": " ",
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "steps": 50,
        "cfg_scale": 7.0,
        "seed": 7,
        "frames": 1,
        "format": ["frames"],
        "sampler": "Euler",
    }
    JobRequest.model_validate(job)


def test_null_is_the_default() -> None:
    body = dict.fromkeys(("prompt", "steps", "seed", "sampler_name", "scheduler", "alwayson_scripts", "styles"))
    assert job_of(body) == job_of({})


def test_animatediffs_defaults_are_a_gif_of_one_context() -> None:
    made = read(animatediff := animated())
    job = dict(made.jobs[0])
    assert {name: job[name] for name in ("frames", "fps", "loop_number", "format")} == {
        "frames": 16,
        "fps": 8,
        "loop_number": 0,
        "format": ["gif"],
    }
    assert not {"context_batch_size", "closed_loop", "free_init", "motion_module"} & job.keys()
    assert (made.animated, made.videos, made.frames) == (True, ("gif",), False)
    assert made.echo["alwayson_scripts"] == animatediff["alwayson_scripts"]
    JobRequest.model_validate(job)


@pytest.mark.parametrize("key", ["AnimateDiff", "animatediff", "ANIMATEDIFF"])
def test_the_scripts_name_is_known_in_any_case(key: str) -> None:
    assert read({"alwayson_scripts": {key: {"args": [{"enable": True}]}}}).animated


@pytest.mark.parametrize(
    ("args", "frames"),
    [
        ([False], None),
        ([], None),
        ([{"enable": False, "video_length": 9}], None),
        ([{}], None),
        ([False, 0, 24, 6, "mm_v2.ckpt"], None),
        ([True], 16),
        ([True, 0, 24, 6, "mm_v2.ckpt"], 24),
        ({"enable": True, "video_length": 8}, 8),
        ([{"enable": "true", "video_length": "8"}], 8),
    ],
)
def test_every_form_of_its_arguments(args: object, frames: int | None) -> None:
    made = read({"alwayson_scripts": {"AnimateDiff": {"args": args}}})
    assert made.animated == (frames is not None)
    assert made.jobs[0]["frames"] == (frames or 1)


def test_the_old_row_of_values() -> None:
    job = job_of({"alwayson_scripts": {"AnimateDiff": {"args": [True, 3, 24, 6, "mm_v2.ckpt"]}}})
    assert (job["loop_number"], job["frames"], job["fps"], job["motion_module"]) == (3, 24, 6, "mm_v2")
    assert job["context_batch_size"] == 16


@pytest.mark.parametrize("args", [[True, 0, 24, 6, "mm_v2", 1], ["x"], [{}, {}], "x", [1]])
def test_arguments_that_are_none_of_these_are_never_a_still_image(args: object) -> None:
    assert refusal({"alwayson_scripts": {"AnimateDiff": {"args": args}}}).status == 422


def test_long_clips_slide_a_window() -> None:
    job = job_of(animated(video_length=48, batch_size=12, stride=2, overlap=3, closed_loop="A"))
    context = {name: job[name] for name in job if name.startswith("context_") or name == "closed_loop"}
    assert context == {"context_batch_size": 12, "context_stride": 2, "context_overlap": 3, "closed_loop": True}
    assert job_of(animated(video_length=48, closed_loop="N"))["closed_loop"] is False
    JobRequest.model_validate(job)


@pytest.mark.parametrize(
    ("formats", "job", "videos", "frames"),
    [
        (["GIF", "PNG"], ["gif"], ("gif",), False),
        (["MP4", "GIF", "WEBM", "WEBP"], ["gif", "mp4", "webp", "webm"], ("gif", "mp4", "webp", "webm"), False),
        (["PNG"], ["frames"], (), True),
        (["Frame"], ["frames"], (), True),
        (["TXT"], ["frames"], (), True),
        (["gif", "Frame"], ["gif", "frames"], ("gif",), True),
        ("MP4", ["mp4"], ("mp4",), False),
    ],
)
def test_formats(formats: object, job: list[str], videos: tuple[str, ...], frames: bool) -> None:
    made = read(animated(format=formats))
    assert (made.jobs[0]["format"], made.videos, made.frames) == (job, videos, frames)


def test_free_init() -> None:
    job = job_of(animated(freeinit_enable=True, freeinit_filter="Gaussian", freeinit_ds=0.3, freeinit_iters=2))
    assert job["free_init"] == {
        "iterations": 2,
        "filter": "gaussian",
        "spatial_stop_frequency": 0.3,
        "temporal_stop_frequency": 0.25,
    }
    JobRequest.model_validate(job)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mm_v2.ckpt", "mm_v2"),
        ("mm_sd15_v3.safetensors", "mm_sd15_v3"),
        ("mm_sd_v15_v3", "mm_sd15_v3"),
        ("MM_V2", "mm_v2"),
        ("", None),
    ],
)
def test_motion_modules_by_their_names(name: str, module: str | None) -> None:
    assert job_of(animated(model=name)).get("motion_module") == module


def test_upstreams_default_module_means_the_nodes_own_where_there_is_none() -> None:
    made = read(animated(model="mm_sd15_v3.safetensors"), offer=Offer(motion_modules=("tiny",)))
    assert "motion_module" not in made.jobs[0]
    assert made.default_module == "tiny"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", "mm_v9.ckpt"),
        ("video_length", 129),
        ("video_length", -1),
        ("fps", 0),
        ("batch_size", 33),
        ("stride", 0),
        ("overlap", 16),
        ("closed_loop", "B"),
        ("format", ["EXE"]),
        ("format", [1]),
        ("interp", "FILM"),
        ("video_source", "/etc/passwd"),
        ("video_path", "/etc"),
        ("mask_path", "/etc"),
        ("freeinit_iters", 9),
        ("freeinit_filter", "box"),
        ("colour", "red"),
        ("enable", "perhaps"),
    ],
)
def test_bad_arguments_are_refused_by_name(argument: str, value: object) -> None:
    assert argument in fields_of(refusal(animated(**{argument: value})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 151),
        ("steps", "many"),
        ("steps", 1.5),
        ("steps", True),
        ("width", 65),
        ("height", 2048),
        ("cfg_scale", "nan"),
        ("cfg_scale", 31),
        ("seed", 2**63),
        ("seed", -2),
        ("n_iter", 33),
        ("batch_size", 0),
        ("prompt", 3),
        ("prompt", "x" * 4001),
        ("prompt", "<lora:nobody:1>"),
        ("prompt", "<lora:Film Look:x>"),
        ("prompt", "<lora:Film Look:9>"),
        ("prompt", "<lora::1>"),
        ("prompt", "<hypernet:x:1>"),
        ("enable_hr", True),
        ("restore_faces", True),
        ("tiling", True),
        ("subseed_strength", 0.5),
        ("refiner_checkpoint", "x"),
        ("alwayson_scripts", []),
        ("send_images", "x"),
    ],
)
def test_bad_fields_are_refused_by_name(field: str, value: object) -> None:
    error = refusal({field: value})
    assert fields_of(error) == {field}
    assert all({"loc", "msg", "type"} <= item.keys() for item in error.body["detail"])


def test_everything_wrong_is_told_at_once() -> None:
    assert fields_of(refusal(animated({"steps": 0, "width": 3}, fps=0))) == {"steps", "width", "fps"}


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_what_is_no_object_is_refused(body: object) -> None:
    assert refusal(body).status == 422


@pytest.mark.parametrize(
    ("body", "sampler", "scheduler"),
    [
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "dpm++ 2m sgm uniform"}, "DPM++ 2M", "SGM Uniform"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "sgm_uniform"}, "DPM++ 2M", "SGM Uniform"),
        ({"sampler_name": "euler a", "scheduler": "automatic"}, "Euler a", None),
        ({"sampler_name": "k_euler_a"}, "Euler a", None),
        ({"sampler_index": "DDIM"}, "DDIM", None),
        ({"sampler_name": "DDIM", "sampler_index": "Euler"}, "DDIM", None),
    ],
)
def test_samplers_and_schedulers(body: dict[str, str], sampler: str, scheduler: str | None) -> None:
    job = job_of(body)
    assert (job["sampler"], job.get("scheduler")) == (sampler, scheduler)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"sampler_name": "Nonsense"}, "Sampler not found"),
        ({"sampler_name": "LMS Karras"}, "Sampler not found"),
        ({"sampler_name": "DDIM", "scheduler": "nonsense"}, "Scheduler not found"),
    ],
)
def test_unknown_samplers(body: dict[str, str], detail: str) -> None:
    error = refusal(body)
    assert (error.status, error.body) == (400, {"error": "HTTPException", "detail": detail, "body": "", "errors": ""})


@pytest.mark.parametrize("body", [{"script_name": "x/y plot"}, {"alwayson_scripts": {"x/y plot": {"args": [False]}}}])
def test_unknown_scripts(body: object) -> None:
    error = refusal(body)
    assert (error.status, error.body["detail"]) == (422, "Script 'x/y plot' not found")


def test_loras_leave_the_prompt() -> None:
    job = job_of({"prompt": "a cat<lora:film look:0.5> runs <lora:Film Look>"})
    assert job["prompt"] == "a cat runs "
    assert job["loras"] == [{"name": "Film Look", "weight": 0.5}, {"name": "Film Look", "weight": 1.0}]


def test_several_results_are_several_jobs_with_growing_seeds() -> None:
    assert read({"n_iter": 2, "batch_size": 3, "seed": 10}).seeds == [10, 11, 12, 13, 14, 15]
    assert read(animated({"n_iter": 2, "batch_size": 3, "seed": 10})).seeds == [10, 11]
    assert read({"n_iter": 2}).seeds == [7, 8]
    assert fields_of(refusal({"n_iter": 8, "batch_size": 8})) == {"n_iter"}


def test_override_settings_hold_for_the_call() -> None:
    overrides = {
        "sd_model_checkpoint": "toon.safetensors [0123abcdef]",
        "sd_vae": "soft",
        "CLIP_stop_at_last_layers": 2,
    }
    made = read({"override_settings": overrides}, chosen=Chosen("real", None, 3))
    assert {name: made.jobs[0].get(name) for name in ("model", "vae", "clip_skip")} == {
        "model": "toon",
        "vae": "soft",
        "clip_skip": 2,
    }
    assert made.chosen == Chosen("toon", "soft", 2)


def test_options_hold_without_them() -> None:
    assert read({}, chosen=Chosen("toon")).jobs[0]["model"] == "toon"


def test_an_unknown_checkpoint_is_an_error() -> None:
    error = refusal({"override_settings": {"sd_model_checkpoint": "nothing"}})
    assert (error.status, error.body["error"]) == (422, "RuntimeError")
    assert error.body["errors"] == "model 'nothing' not found"


def test_img2img_starts_from_a_picture() -> None:
    body = {"init_images": [PICTURE], "denoising_strength": 0.4}
    job = job_of(body, "img2img")
    assert (job["init_image"], job["denoising_strength"], job["frames"]) == (PICTURE, 0.4, 1)
    made = read(animated(body, latent_power=2, latent_scale=16, last_frame=PICTURE), "img2img")
    assert {name: made.jobs[0][name] for name in ("latent_power", "latent_scale", "latent_scale_last")} == {
        "latent_power": 2,
        "latent_scale": 16,
        "latent_scale_last": 32,
    }
    assert made.jobs[0]["last_frame"] == PICTURE


@pytest.mark.parametrize("images", [[], None])
def test_img2img_without_a_picture(images: object) -> None:
    error = refusal({"init_images": images}, "img2img")
    assert (error.status, error.body["detail"]) == (404, "Init image not found")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"init_images": [PICTURE, PICTURE]}, "init_images"),
        ({"init_images": [3]}, "init_images"),
        ({"mask": PICTURE}, "mask"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"denoising_strength": 1.1}, "denoising_strength"),
    ],
)
def test_img2img_refuses_by_name(more: dict[str, object], field: str) -> None:
    assert fields_of(refusal({"init_images": [PICTURE], **more}, "img2img")) == {field}


def test_the_echo_gives_pictures_back_only_when_asked() -> None:
    body = {"init_images": [PICTURE], "colour": "red"}
    assert read(body, "img2img").echo["init_images"] is None
    assert read({**body, "include_init_images": True}, "img2img").echo["init_images"] == [PICTURE]
    assert "colour" not in read(body, "img2img").echo


def test_control_nets() -> None:
    unit = {"model": "canny [0123abcdef]", "image": PICTURE, "weight": 0.5, "guidance_end": 0.8, "module": "none"}
    script = {"ControlNet": {"args": [unit, {**unit, "enabled": False}]}}
    job = job_of({"alwayson_scripts": script})
    expected = {"model": "canny", "image": PICTURE, "weight": 0.5, "start": 0.0, "end": 0.8}
    assert job["controlnets"] == [expected]
    assert "controlnets" not in job_of({"alwayson_scripts": {"ControlNet": {"args": []}}})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "depth"}, "model"),
        ({"model": "None"}, "model"),
        ({"image": ""}, "image"),
        ({"module": "canny"}, "module"),
        ({"mask": PICTURE}, "mask"),
        ({"control_mode": "My prompt is more important"}, "control_mode"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "guidance_start"),
        ({"weight": 3}, "weight"),
    ],
)
def test_control_nets_refuse_by_name(change: dict[str, object], field: str) -> None:
    unit = {"model": "canny", "image": PICTURE, **change}
    assert field in fields_of(refusal({"alwayson_scripts": {"controlnet": {"args": [unit]}}}))


def test_what_nobody_told_about_may_be_asked_for() -> None:
    body = {"prompt": "<lora:any:1>", "override_settings": {"sd_model_checkpoint": "any.safetensors"}}
    made = read(animated(body, model="mm_any.ckpt"), offer=Offer())
    assert (made.jobs[0]["model"], made.jobs[0]["motion_module"]) == ("any", "mm_any")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(
    st.sampled_from(
        ["enable", "model", "video_length", "fps", "batch_size", "format", "overlap", "stride", "closed_loop", "interp"]
    ),
    json_values,
)
NAMES = (
    *("prompt", "negative_prompt", "steps", "width", "height", "seed", "n_iter", "batch_size", "sampler_name"),
    *("scheduler", "override_settings", "init_images", "denoising_strength", "send_images", "force_task_id"),
)
bodies = st.dictionaries(st.sampled_from(NAMES), json_values)


@settings(max_examples=25, deadline=None)
@given(body=bodies, arguments=arguments | json_values, kind=st.sampled_from(["txt2img", "img2img"]))
def test_any_body_is_a_request_or_the_clients_error(body: dict[str, object], arguments: object, kind: Kind) -> None:
    body["alwayson_scripts"] = {"AnimateDiff": {"args": [arguments]}}
    try:
        jobs = read(body, kind).jobs
    except ApiError as error:
        jobs = ()
        refused = error.status
    else:
        refused = 400
    assert 400 <= refused < 500
    for job in jobs:
        plain = {name: value for name, value in job.items() if name not in ("init_image", "last_frame")}
        JobRequest.model_validate(plain)


def test_what_is_wrong_a_thousand_times_is_told_some_times() -> None:
    units = [{"weight": 9}] * 1000
    error = refusal({"alwayson_scripts": {"controlnet": {"args": units}}})
    assert [item["msg"] for item in error.body["detail"]] == ["at most 16 units can be listed"]
    settings = {f"nothing_{number}": 1 for number in range(1000)}
    assert len(refusal({"override_settings": settings}).body["detail"]) == 50
    arguments = [{"enable": True, **settings}]
    error = refusal({"alwayson_scripts": {"AnimateDiff": {"args": arguments}}})
    assert len(error.body["detail"]) == 50


def test_too_many_loras_are_not_looked_for() -> None:
    offer = Offer(loras=tuple(f"lora {number}" for number in range(1000)))
    (item,) = refusal({"prompt": "<lora:nothing>" * 9}, offer=offer).body["detail"]
    assert item["msg"] == "names 9 LoRAs; at most 8 can be loaded"
    (item,) = refusal({"prompt": "<lora:nothing>"}, offer=offer).body["detail"]
    assert item["msg"].endswith("lora 19 and 980 more")


def test_extra_networks_can_be_switched_off() -> None:
    (job,) = read({"prompt": "a <lora:nothing>cat", "disable_extra_networks": True}).jobs
    assert (job["prompt"], job.get("loras")) == ("a cat", None)


@pytest.mark.parametrize(
    ("name", "other", "neutral"),
    [
        ("s_churn", 0.5, 0), ("s_noise", 1.1, 1.0), ("initial_noise_multiplier", 0.5, 1), ("infotext", "Steps: 3", ""),
        ("seed_resize_from_h", 512, -1), ("seed_resize_from_w", 512, 0), ("subseed_strength", 0.5, None),
    ],
)  # fmt: skip
def test_what_would_make_another_picture_is_refused_and_its_neutral_value_is_not(
    name: str, other: object, neutral: object
) -> None:
    assert [item["loc"][-1] for item in refusal({name: other}).body["detail"]] == [name]
    read({name: neutral})


def test_a_weight_for_the_unet_alone_is_two_different_ones() -> None:
    assert "two different weights" in str(refusal({"prompt": "<lora:x:unet=0.5>"}, offer=Offer()).body)
    (job,) = read({"prompt": "<lora:x:unet=1>"}, offer=Offer()).jobs
    assert job["loras"] == [{"name": "x", "weight": 1.0}]


def test_a_prompt_that_its_held_ends_make_too_long_is_refused_as_such() -> None:
    prompt = "0: spring\n16: " + "a" * (4000 - 14 - 20)
    error = refusal(animated({"prompt": prompt}, closed_loop="R-P", video_length=32))
    assert fields_of(error) == {"prompt"}
    assert "closed_loop R-P" in str(error.body)
    assert read(animated({"prompt": prompt}, closed_loop="N", video_length=32)).jobs[0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("loop", "frames", "prompt", "read_as"),
    [
        ("R-P", 32, "0: spring\n16: autumn", "0: spring\n16: autumn\n31: autumn"),
        (
            "R-P",
            32,
            "a tree\n4: spring\n16: autumn\nbest",
            "a tree\n0: spring\n4: spring\n16: autumn\n31: autumn\nbest",
        ),
        ("R-P", 32, "16: autumn\n4: spring", "16: autumn\n0: spring\n31: autumn\n4: spring"),
        ("R-P", 32, "0: spring\n31: autumn", "0: spring\n31: autumn"),
        ("R-P", 32, "a tree, at 4: noon", "a tree, at 4: noon"),
        ("R-P", 16, "0: spring\n8: autumn", "0: spring\n8: autumn"),
        ("R+P", 32, "0: spring\n16: autumn", "0: spring\n16: autumn"),
        ("N", 32, "0: spring\n16: autumn", "0: spring\n16: autumn"),
    ],
)
def test_only_some_loops_are_closed_for_the_prompt_too(loop: str, frames: int, prompt: str, read_as: str) -> None:
    """Upstream's R-P, which is what clients get that say nothing, leaves the prompt where its last line is."""
    made = read(animated({"prompt": prompt}, closed_loop=loop, video_length=frames))
    assert sorted(made.jobs[0]["prompt"].splitlines()) == sorted(read_as.splitlines())
    assert made.jobs[0]["prompt"].splitlines()[0] == read_as.splitlines()[0]
    assert made.prompt == prompt
    assert made.jobs[0].get("closed_loop", False) is (loop != "N" and frames > 16)
