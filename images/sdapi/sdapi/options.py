"""A1111's options, as far as they mean anything here: three can be set, a few are shown, others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdapi.errors import PROBLEMS_TOLD, Problem, invalid_body, model_not_found
from sdapi.offer import AUTOMATIC, Offer, find, some
from sdapi.reader import Reader

CHECKPOINT, VAE, CLIP_SKIP = "sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers"
# What clients look at; setting one to the value that it has is fine.
FIXED: dict[str, Any] = {
    "samples_format": "png",
    "grid_format": "png",
    "samples_save": False,
    "grid_save": False,
    "return_grid": False,
    "do_not_show_images": False,
    "enable_pnginfo": True,
    "add_model_hash_to_info": False,
    "eta_noise_seed_delta": 0,
    "sd_vae_as_default": True,
    "sd_checkpoint_hash": "",
    "sd_lora": "None",
    "sd_hypernetwork": "None",
    "live_previews_enable": True,
    "live_previews_image_format": "jpeg",
    "show_progress_every_n_steps": 1,
}
# Of a webui with a disk and a page of its own: whatever they are set to, an answer is the same.
WITHOUT_EFFECT = ("outdir_", "save_", "grid_", "jpeg_", "webp_", "samples_", "img_", "font", "quicksettings", "ui_")


@dataclass(frozen=True)
class Chosen:
    """What a caller has set; None stands for the node's default."""

    model: str | None = None
    vae: str | None = None
    clip_skip: int = 1

    @classmethod
    def parse(cls, raw: object) -> Chosen:
        """From `as_dict`, through JSON; what is not understood is not chosen."""
        if not isinstance(raw, Mapping):
            return cls()
        model, vae, skip = raw.get("model"), raw.get("vae"), raw.get("clip_skip")
        return cls(
            model if isinstance(model, str) else None,
            vae if isinstance(vae, str) else None,
            skip if isinstance(skip, int) and not isinstance(skip, bool) and 1 <= skip <= 4 else 1,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def show(chosen: Chosen, offer: Offer) -> dict[str, Any]:
    default = offer.models[0] if offer.models else ""
    mine = {CHECKPOINT: chosen.model or default, VAE: chosen.vae or "Automatic", CLIP_SKIP: chosen.clip_skip}
    return mine | FIXED


def change(chosen: Chosen, body: object, offer: Offer, *where: str) -> Chosen:
    """`body` as POST options and override_settings have it. Raises ApiError: 422 with the option's name."""
    if not isinstance(body, Mapping):
        raise invalid_body([Problem(where, "value is not a valid dict", "type_error.dict")])
    problems: list[Problem] = []
    reader = Reader(body, problems, *where)
    model, vae = chosen.model, chosen.vae
    if reader.raw(CHECKPOINT) is not None:
        name = reader.text(CHECKPOINT, "", 200)
        model = _found(name, offer.models) if name else None
    if reader.raw(VAE) is not None:
        name = reader.text(VAE, "", 200)
        vae = None if name.lower() in AUTOMATIC else find(name, offer.vaes)
        if vae is None and name.lower() not in AUTOMATIC:
            reader.refuse(VAE, f"VAE {name!r} not found; there are: {some(offer.vaes or ())}")
    skip = reader.whole(CLIP_SKIP, chosen.clip_skip, 1, 4)
    for name, value in body.items():
        if len(problems) >= PROBLEMS_TOLD:
            break
        if name not in (CHECKPOINT, VAE, CLIP_SKIP) and (message := _refusal(str(name), value)):
            reader.refuse(str(name), message)
    if problems:
        raise invalid_body(problems)
    return Chosen(model, vae, skip)


def _found(name: str, offered: tuple[str, ...] | None) -> str:
    found = find(name, offered)
    if found is None:
        raise model_not_found(name)
    return found


def _refusal(name: str, value: object) -> str | None:
    if name in FIXED:
        return None if value == FIXED[name] or value is None else f"is {FIXED[name]!r} here and cannot be changed"
    return None if name.startswith(WITHOUT_EFFECT) else "there is no such option here"
