"""What the page is told about choices and limits, whom the routes answer, and what a run looks like as JSON."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from sdapi import listings
from webui.engine.base import Capabilities
from webui.headers import is_own_origin
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


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "node:7860"}, True),
        ({"host": "node:7860", "origin": "http://node:7860"}, True),
        ({"host": "node", "origin": "http://node:80"}, True),
        ({"host": "inner", "x-forwarded-host": "studio.example", "origin": "https://studio.example"}, True),
        (
            {
                "host": "studio.example",
                "x-forwarded-host": "studio.example:8443",
                "origin": "https://studio.example:8443",
            },
            True,
        ),
        ({"host": "node:7860", "origin": "http://node:7861"}, False),
        ({"host": "node", "origin": "http://evil.example"}, False),
        ({"host": "node", "origin": "http://node.evil.example"}, False),
        ({"host": "node", "origin": "null"}, False),
        ({"host": "node", "origin": ""}, False),
        ({"host": "node", "origin": "http://node:99999999"}, False),
    ],
)
def test_only_our_own_pages_may_ask(headers: dict[str, str], own: bool) -> None:
    assert is_own_origin(Headers(headers)) is own


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
