"""What the page is told about choices and limits, whom the routes answer, and what a run looks like as JSON."""

from __future__ import annotations

import pytest

from sdapi import listings
from webui.engine.base import Capabilities
from webui.local_routes import LIMITS, choices
from webui.page import FILES, Page
from webui.request import request_problems

LOADED = Capabilities("synthetic", "f", True, "base", "mm", 32, ("DDIM", "Euler a"), loras=("one",))


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_told_are_the_limits_held(name: str) -> None:
    low, high = (int(LIMITS[name][end]) for end in ("min", "max"))
    assert request_problems({"prompt": "", name: low}) == []
    assert request_problems({"prompt": "", name: high}) == []
    assert [field for field, _ in request_problems({"prompt": "", name: low - 1})] == [name]
    assert [field for field, _ in request_problems({"prompt": "", name: high + 1})] == [name]


def test_choices_are_the_capabilities() -> None:
    offered = choices(LOADED)
    assert (offered["checkpoints"], offered["motion_modules"]) == (["base"], ["mm"])
    assert (offered["samplers"], offered["loras"], offered["vaes"]) == (["DDIM", "Euler a"], ["one"], [])
    assert offered["limits"]["context_frames"]["max"] == 32
    assert offered["defaults"] | {"frames": 16, "steps": 20, "model": "base"} == offered["defaults"]


def test_every_file_of_the_page_is_there_and_nothing_comes_from_elsewhere() -> None:
    page = Page()
    assert len(page.routes()) == len(FILES)
    for path, content in page._contents.items():
        text = content.decode()
        assert content, path
        for foreign in ("https://", "//cdn", "<style", " style=", "onclick=", "innerHTML", "eval("):
            assert foreign not in text, f"{path} holds {foreign}"
        if path.endswith((".js", ".css")):
            assert "http://" not in text.replace("http://www.w3.org", ""), path


def test_the_documentation_names_every_call() -> None:
    text = Page()._contents["/docs"].decode()
    for name in (*listings.COMMANDS, *listings.EMPTY_LISTS, "txt2img", "img2img", "progress", "options", "sd-models"):
        assert name in text, name
