from __future__ import annotations

import pytest

from webui.sampler_names import SAMPLERS, SCHEDULES, Choice, UnknownChoiceError, choose


@pytest.mark.parametrize(
    ("sampler", "scheduler", "choice"),
    [
        (None, None, Choice("DDIM", "Automatic")),
        ("", " ", Choice("DDIM", "Automatic")),
        ("euler A", None, Choice("Euler a", "Uniform")),
        ("k_euler_a", "automatic", Choice("Euler a", "Uniform")),
        ("Euler", "SGM Uniform", Choice("Euler", "SGM Uniform")),
        ("Euler", "sgm_uniform", Choice("Euler", "SGM Uniform")),
        ("DPM++ 2M", None, Choice("DPM++ 2M", "Karras")),
        ("DPM++ 2M", "Automatic", Choice("DPM++ 2M", "Karras")),
        ("DPM++ 2M", "uniform", Choice("DPM++ 2M", "Uniform")),
        ("dpm++  2m karras", None, Choice("DPM++ 2M", "Karras")),
        ("DPM++ 2M SDE Karras", None, Choice("DPM++ 2M SDE", "Karras")),
        ("DPM++ 2M SDE Heun Exponential", None, Choice("DPM++ 2M SDE Heun", "Exponential")),
        ("DPM++ 2M Karras", "Exponential", Choice("DPM++ 2M", "Karras")),
        ("LCM", None, Choice("LCM", "Automatic")),
    ],
)
def test_names_are_understood_as_upstream_does(sampler: str | None, scheduler: str | None, choice: Choice) -> None:
    assert choose(sampler, scheduler) == choice


@pytest.mark.parametrize(
    ("module", "sampler", "choice"),
    [
        ("AnimateDiff_Lightning_4step", None, Choice("Euler", "SGM Uniform")),
        ("animatediff_lightning_4step", "Euler a", Choice("Euler a", "SGM Uniform")),
        ("animatediff_lightning_4step", "DPM++ 2M Karras", Choice("DPM++ 2M", "Karras")),
        ("AnimateLCM_sd15", None, Choice("LCM", "Automatic")),
        ("AnimateLCM_sd15", "Euler", Choice("Euler", "Uniform")),
    ],
)
def test_modules_of_few_steps_get_the_sampler_they_were_made_for(
    module: str, sampler: str | None, choice: Choice
) -> None:
    assert choose(sampler, None, module) == choice


@pytest.mark.parametrize(
    ("sampler", "scheduler", "field"),
    [
        ("Heun", None, "sampler"),
        ("Karras", None, "sampler"),
        ("Euler b Karras", None, "sampler"),
        ("Euler", "beta", "scheduler"),
        ("DDIM", "karras", "scheduler"),
        ("Euler a Karras", None, "scheduler"),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(sampler: str, scheduler: str | None, field: str) -> None:
    with pytest.raises(UnknownChoiceError, match="use ") as caught:
        choose(sampler, scheduler)
    assert caught.value.field == field


def test_every_name_that_is_told_can_be_asked_for() -> None:
    for name, sampler in SAMPLERS.items():
        for schedule in sampler.schedules:
            assert choose(name.upper(), schedule.lower()).sampler == name
            if schedule != "Automatic":
                assert choose(f"{name} {schedule}", None) == Choice(name, schedule)
    assert all(set(sampler.schedules) <= set(SCHEDULES) for sampler in SAMPLERS.values())
