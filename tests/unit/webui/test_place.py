"""A failure's place in the code: our own, the innermost, of the error that began it."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from webui.place import PLACE_CHARS, place_of


def module(name: str, source: str) -> ModuleType:
    made = ModuleType(name)
    exec(source, vars(made))  # noqa: S102 - modules of names that cannot be imported here
    return made


LIBRARY = module("diffusers.attention", "def forward():\n    raise ValueError('shape')")
ENGINE = module(
    "webui.engine.denoise",
    """
def step(forward):
    forward()
def run(forward):
    try:
        step(forward)
    except ValueError as error:
        raise RuntimeError("as the engine tells it") from error
""",
)


def place(function: str, *arguments: object, of: ModuleType = ENGINE) -> str:
    try:
        getattr(of, function)(*arguments)
    except Exception as error:
        return place_of(error)
    raise AssertionError("nothing was raised")


def test_our_innermost_frame_is_named_not_the_librarys() -> None:
    assert place("step", LIBRARY.forward) == "webui.engine.denoise:step"


def test_the_error_that_began_it_counts() -> None:
    assert place("run", LIBRARY.forward) == "webui.engine.denoise:step"


def test_without_a_frame_of_ours_the_innermost_is_named() -> None:
    assert place("forward", of=LIBRARY) == "diffusers.attention:forward"
    assert place("loads", "{", of=json).startswith("json.decoder:")


def test_the_engine_process_has_another_name_for_itself() -> None:
    assert place("run", of=module("__main__", "def run():\n    raise ValueError")) == "webui.worker:run"


def test_a_place_is_short_and_an_error_that_was_never_raised_has_none() -> None:
    long = module("webui." + "x" * 500, "def run():\n    raise ValueError")
    assert len(place("run", of=long)) == PLACE_CHARS
    assert place_of(ValueError()) == ""


@pytest.mark.timeout(10)
def test_errors_that_name_each_other_as_their_cause_are_gone_round_once() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    alone = ValueError()
    alone.__cause__ = alone
    assert [place_of(error) for error in (first, second, alone)] == ["", "", ""]
