"""What a request says, with A1111's default for each of its fields: the `parameters` of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMMON: dict[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "styles": None,
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_name": None,
    "scheduler": None,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 50,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 512,
    "restore_faces": None,
    "tiling": None,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": None,
    "s_churn": None,
    "s_tmax": None,
    "s_tmin": None,
    "s_noise": None,
    "s_min_uncond": None,
    "override_settings": None,
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": None,
    "disable_extra_networks": False,
    "comments": None,
    "firstpass_image": None,
    "sampler_index": "Euler",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
    "force_task_id": None,
    "infotext": None,
}
TXT2IMG: dict[str, Any] = {
    "enable_hr": False,
    "denoising_strength": None,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2.0,
    "hr_upscaler": None,
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_scheduler": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
}
IMG2IMG: dict[str, Any] = {
    "init_images": None,
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "image_cfg_scale": None,
    "mask": None,
    "mask_blur": None,
    "mask_blur_x": 4,
    "mask_blur_y": 4,
    "mask_round": True,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": None,
    "latent_mask": None,
    "include_init_images": False,
}


# Longer texts are pictures, or nothing that anybody reads; kept while a call waits, they would fill the memory.
TEXT_LIMIT = 8192


def echo(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that A1111 does not know are left out, as it does; so are the pictures, unless they are asked back."""
    known = COMMON | (IMG2IMG if kind == "img2img" else TXT2IMG)
    told = {name: _without_pictures(value) for name, value in body.items() if name in known and value is not None}
    if kind == "img2img" and body.get("include_init_images") is True:
        told["init_images"] = body.get("init_images")
    elif kind == "img2img":
        told |= {"init_images": None, "mask": None}
    return known | told


def _without_pictures(value: Any) -> Any:
    """`value` is nested as deep as `reader.NESTING_LIMIT` at most."""
    if isinstance(value, dict):
        return {name: _without_pictures(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    return None if isinstance(value, str) and len(value) > TEXT_LIMIT else value
