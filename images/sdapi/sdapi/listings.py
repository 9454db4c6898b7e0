"""The lists that clients read: models, scripts, memory, flags. No path of the server is told but a name's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdapi import options
from sdapi.errors import http_error
from sdapi.offer import Offer
from sdapi.options import Chosen
from sdapi.samplers import list_samplers, list_schedulers

SCRIPTS = ("animatediff", "controlnet")
# Asked for by clients when they start; there is nothing of the kind here.
EMPTY_LISTS = ("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "latent-upscale-modes")


def sd_models(offer: Offer) -> list[dict[str, Any]]:
    empty = {"hash": None, "sha256": None, "config": None}
    return [
        {"title": name, "model_name": name, **empty, "filename": f"models/checkpoint/{name}"}
        for name in offer.models or ()
    ]


def sd_vaes(offer: Offer) -> list[dict[str, Any]]:
    return [{"model_name": name, "filename": f"models/vae/{name}"} for name in offer.vaes or ()]


def loras(offer: Offer) -> list[dict[str, Any]]:
    return [{"name": name, "alias": name, "path": f"models/lora/{name}", "metadata": {}} for name in offer.loras or ()]


def upscalers() -> list[dict[str, Any]]:
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}]


def embeddings() -> dict[str, Any]:
    return {"loaded": {}, "skipped": {}}


def scripts() -> dict[str, Any]:
    return {"txt2img": list(SCRIPTS), "img2img": list(SCRIPTS)}


def script_info() -> list[dict[str, Any]]:
    return [
        {"name": name, "is_alwayson": True, "is_img2img": is_img2img, "args": []}
        for name in SCRIPTS
        for is_img2img in (False, True)
    ]


def extensions() -> list[dict[str, Any]]:
    names = ("sd-webui-animatediff", "sd-webui-controlnet")
    told = {"remote": "", "branch": "", "commit_hash": "", "version": "built in", "commit_date": 0, "enabled": True}
    return [{"name": name, **told} for name in names]


def cmd_flags() -> dict[str, Any]:
    """Of hundreds, those that clients ask for; never a secret."""
    return {"api": True, "api_auth": None, "nowebui": False, "listen": True, "share": False, "lowvram": False}


def memory(ram: Mapping[str, int] | None, gpu: Mapping[str, Any] | None) -> dict[str, Any]:
    """`ram` in bytes: free, used, total; `gpu`: name, memory_total_mib, memory_used_mib, as an engine tells it."""
    told = {"free": 0, "used": 0, "total": 0} | dict(ram or {})
    return {"ram": told, "cuda": {"error": "unavailable"} if gpu is None else _cuda(gpu)}


def _cuda(gpu: Mapping[str, Any]) -> dict[str, Any]:
    total, used = (_bytes(gpu.get(name)) for name in ("memory_total_mib", "memory_used_mib"))
    both = {"current": used, "peak": used}
    return {
        "system": {"free": max(0, total - used), "used": used, "total": total},
        **{name: dict(both) for name in ("active", "allocated", "reserved")},
        "inactive": {"current": 0, "peak": 0},
        "events": {"retries": 0, "oom": 0},
    }


def _bytes(mib: object) -> int:
    return int(mib) << 20 if isinstance(mib, int | float) and not isinstance(mib, bool) and mib > 0 else 0


def read(name: str, offer: Offer, chosen: Chosen, method: str = "GET") -> Any:
    """The answer of `GET /sdapi/v1/<name>`, for what can be told without asking anything. Raises ApiError 404, 405."""
    told: dict[str, Callable[[], Any]] = {
        "sd-models": lambda: sd_models(offer),
        "sd-vae": lambda: sd_vaes(offer),
        "loras": lambda: loras(offer),
        "samplers": lambda: list_samplers(offer),
        "schedulers": lambda: list_schedulers(offer),
        "options": lambda: options.show(chosen, offer),
        "upscalers": upscalers,
        "embeddings": embeddings,
        "scripts": scripts,
        "script-info": script_info,
        "extensions": extensions,
        "cmd-flags": cmd_flags,
        **dict.fromkeys(EMPTY_LISTS, list),
    }
    if method != "POST" and (name in POSTED or name in COMMANDS):
        raise http_error(405, "Method Not Allowed", {"Allow": "POST"})
    if name not in told:
        raise http_error(404, "Not Found")
    if method == "POST":
        raise http_error(405, "Method Not Allowed", {"Allow": "GET"})
    return told[name]()


POSTED = ("txt2img", "img2img", "interrupt", "skip", "png-info")
# Nothing to do: lists are always of now, and what is loaded is the engine's own business.
COMMANDS: Mapping[str, Any] = {
    "refresh-checkpoints": None,
    "refresh-loras": None,
    "refresh-vae": None,
    "refresh-embeddings": None,
    "unload-checkpoint": {},
    "reload-checkpoint": {},
}
