"""Samplers and schedulers by the names that A1111 has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdapi.errors import http_error
from sdapi.offer import Offer

# name: other names
SAMPLERS: dict[str, tuple[str, ...]] = {
    "DPM++ 2M": ("k_dpmpp_2m",),
    "DPM++ SDE": ("k_dpmpp_sde",),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
    "DPM++ 2M SDE Heun": ("k_dpmpp_2m_sde_heun",),
    "DPM++ 2S a": ("k_dpmpp_2s_a",),
    "DPM++ 3M SDE": ("k_dpmpp_3m_sde",),
    "Euler a": ("k_euler_a", "k_euler_ancestral"),
    "Euler": ("k_euler",),
    "LMS": ("k_lms",),
    "Heun": ("k_heun",),
    "DPM2": ("k_dpm_2",),
    "DPM2 a": ("k_dpm_2_a", "k_dpm_2_ancestral"),
    "DPM fast": ("k_dpm_fast",),
    "DPM adaptive": ("k_dpm_ad",),
    "Restart": ("restart",),
    "DDIM": ("ddim",),
    "DDIM CFG++": ("ddim_cfgpp",),
    "PLMS": ("plms",),
    "UniPC": ("unipc",),
    "LCM": ("k_lcm",),
}
# name: label, other names, default rho (-1: none), whether it needs the inner model
SCHEDULERS: dict[str, tuple[str, tuple[str, ...], float, bool]] = {
    "automatic": ("Automatic", (), -1, False),
    "uniform": ("Uniform", (), -1, True),
    "karras": ("Karras", (), 7.0, False),
    "exponential": ("Exponential", (), -1, False),
    "polyexponential": ("Polyexponential", (), 1.0, False),
    "sgm_uniform": ("SGM Uniform", ("SGMUniform",), -1, True),
    "kl_optimal": ("KL Optimal", (), -1, False),
    "align_your_steps": ("Align Your Steps", (), -1, False),
    "simple": ("Simple", (), -1, True),
    "normal": ("Normal", (), -1, True),
    "ddim": ("DDIM", (), -1, True),
    "beta": ("Beta", (), -1, True),
}
DEFAULT = "Euler"


def choose_sampler(name: str, scheduler: str, offer: Offer) -> tuple[str | None, str | None]:
    """(sampler, scheduler) for a job; None stands for the engine's own. "" as a name is no choice. Raises ApiError 400.

    "DPM++ 2M Karras" is a sampler with a schedule, unless the schedule is told apart.
    """
    schedule = None if _key(scheduler) in ("", "automatic", "usesamescheduler") else _known_scheduler(scheduler, offer)
    if not name:
        return (_offered(DEFAULT, offer.samplers) if offer.samplers is not None else None), schedule
    sampler = _offered(name, offer.samplers)
    if sampler is not None:
        return sampler, schedule
    for label, *_ in SCHEDULERS.values():
        base = name[: -len(label)].strip() if _is_suffix(name, label) else ""
        if base and (sampler := _offered(base, offer.samplers)) is not None:
            return sampler, schedule or _known_scheduler(label, offer)
    raise http_error(400, "Sampler not found")


def _is_suffix(name: str, label: str) -> bool:
    return name.lower().endswith(f" {label.lower()}")


def _offered(name: str, offered: Sequence[str] | None) -> str | None:
    names = {_key(name)} | {_key(known) for known, others in SAMPLERS.items() if _key(name) in map(_key, others)}
    pool = SAMPLERS if offered is None else offered
    return next((item for item in pool if _key(item) in names), None)


def _known_scheduler(name: str, offer: Offer) -> str:
    keys = {_key(name)}
    for known, (label, others, _, _) in SCHEDULERS.items():
        if _key(name) in {_key(known), _key(label), *map(_key, others)}:
            keys |= {_key(known), _key(label)}
    pool = tuple(SCHEDULERS) if offer.schedulers is None else offer.schedulers
    for item in pool:
        if _key(item) in keys:
            return item
    raise http_error(400, "Scheduler not found")


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " _-")


def list_samplers(offer: Offer) -> list[dict[str, Any]]:
    names = tuple(SAMPLERS) if offer.samplers is None else offer.samplers
    aliases = {_key(name): list(others) for name, others in SAMPLERS.items()}
    return [{"name": name, "aliases": aliases.get(_key(name), []), "options": {}} for name in names]


def list_schedulers(offer: Offer) -> list[dict[str, Any]]:
    offered = None if offer.schedulers is None else {_key(name) for name in offer.schedulers} | {"automatic"}
    listed = []
    for name, (label, others, rho, inner) in SCHEDULERS.items():
        if offered is None or {_key(name), _key(label)} & offered:
            row = {"name": name, "label": label, "aliases": list(others) or None}
            listed.append(row | {"default_rho": rho, "need_inner_model": inner})
    return listed
