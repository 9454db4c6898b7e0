"""AUTOMATIC1111's names for samplers and noise schedules, as far as the engine offers them; knows no torch.

Offered is only what can be stopped after any step and gone on with to the same bytes; tests hold each to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

AUTOMATIC, UNIFORM, KARRAS, EXPONENTIAL, SGM_UNIFORM = "Automatic", "Uniform", "Karras", "Exponential", "SGM Uniform"
SCHEDULES: tuple[str, ...] = (AUTOMATIC, UNIFORM, KARRAS, EXPONENTIAL, SGM_UNIFORM)
BY_TIME = (AUTOMATIC, UNIFORM, SGM_UNIFORM)  # samplers whose steps are the model's own time steps


@dataclass(frozen=True)
class Sampler:
    schedules: tuple[str, ...] = SCHEDULES
    automatic: str = UNIFORM
    aliases: tuple[str, ...] = ()


SAMPLERS: Mapping[str, Sampler] = {
    "DPM++ 2M": Sampler(automatic=KARRAS, aliases=("k_dpmpp_2m",)),
    "DPM++ SDE": Sampler((AUTOMATIC, UNIFORM, KARRAS, EXPONENTIAL), automatic=KARRAS, aliases=("k_dpmpp_sde",)),
    "DPM++ 2M SDE": Sampler(automatic=EXPONENTIAL, aliases=("k_dpmpp_2m_sde",)),
    "DPM++ 2M SDE Heun": Sampler(automatic=EXPONENTIAL, aliases=("k_dpmpp_2m_sde_heun",)),
    "DPM++ 3M SDE": Sampler(automatic=EXPONENTIAL, aliases=("k_dpmpp_3m_sde",)),
    "Euler a": Sampler(BY_TIME, aliases=("k_euler_a", "k_euler_ancestral", "euler ancestral")),
    "Euler": Sampler(aliases=("k_euler",)),
    "LCM": Sampler((AUTOMATIC,), AUTOMATIC, aliases=("k_lcm",)),
    "DDIM": Sampler(BY_TIME, AUTOMATIC),
    "UniPC": Sampler(aliases=("uni_pc",)),
}
DEFAULT_SAMPLER = "DDIM"


class UnknownChoiceError(Exception):
    """`field` is sampler or scheduler."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(frozen=True)
class Choice:
    """Both by their canonical names; the schedule is never Automatic where the sampler has one of its own for that."""

    sampler: str
    schedule: str


def choose(sampler: str | None, scheduler: str | None, motion_module: str = "") -> Choice:
    """What the two texts mean, in any case; a schedule that ends the sampler's name wins, as it does upstream.

    Without a sampler the motion module decides: AnimateDiff-Lightning is made for Euler on trailing steps, AnimateLCM
    for LCM. Raises UnknownChoiceError.
    """
    module = motion_module.lower()
    schedule = _schedule(scheduler) if scheduler and scheduler.strip() else AUTOMATIC
    if not sampler or not sampler.strip():
        name = "Euler" if "lightning" in module else "LCM" if "lcm" in module else DEFAULT_SAMPLER
    else:
        name, ending = _split(sampler)
        schedule = ending or schedule
    known = SAMPLERS[name]
    if schedule not in known.schedules:
        raise UnknownChoiceError("scheduler", f"{name} has no schedule {schedule}; use {', '.join(known.schedules)}")
    if schedule == AUTOMATIC:
        lightning = "lightning" in module and SGM_UNIFORM in known.schedules
        schedule = SGM_UNIFORM if lightning else known.automatic
    return Choice(name, schedule)


def _split(text: str) -> tuple[str, str | None]:
    """ "DPM++ 2M Karras" is a sampler and a schedule."""
    wanted = _plain(text)
    if name := _SAMPLER_NAMES.get(wanted):
        return name, None
    for ending, schedule in _SCHEDULE_NAMES.items():
        if wanted.endswith(" " + ending) and (name := _SAMPLER_NAMES.get(wanted.removesuffix(ending).strip())):
            return name, schedule
    raise UnknownChoiceError("sampler", f"is not known here; use {', '.join(SAMPLERS)}")


def _schedule(text: str) -> str:
    found = _SCHEDULE_NAMES.get(_plain(text))
    if found is None:
        raise UnknownChoiceError("scheduler", f"is not known here; use {', '.join(SCHEDULES)}")
    return found


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().lower())


_SAMPLER_NAMES = {_plain(name): name for name in SAMPLERS} | {
    alias: name for name, sampler in SAMPLERS.items() for alias in sampler.aliases
}
_SCHEDULE_NAMES = {_plain(name): name for name in SCHEDULES} | {"sgm_uniform": SGM_UNIFORM, "sgmuniform": SGM_UNIFORM}
