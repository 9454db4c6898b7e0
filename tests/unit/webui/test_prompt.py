from __future__ import annotations

import pytest

from webui.prompt import WEIGHT_LIMIT, key_prompts, travel_problem, weighted


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", {0: "a cat"}),
        ("two\nlines, no: travel", {0: "two\nlines, no: travel"}),
        ("0: a cat\n8: a dog", {0: "a cat", 8: "a dog"}),
        ("8: late\n 2 :early", {2: "early", 8: "late"}),
        ("best quality,\n0: a cat\n8: a dog,\nsoft light", {0: "best quality, a cat, soft light"}),
        ("0: a cat\nand more\n8: a dog", {0: "a cat, and more", 8: "a dog, and more"}),
        ("3:", {0: "3:"}),
    ],
)
def test_travel_lines_have_a_head_and_a_tail(prompt: str, expected: dict[int, str]) -> None:
    made = key_prompts(prompt)
    assert expected.items() <= made.items()
    assert list(made) == sorted(made)


def test_travel_stays_within_the_clip_and_is_at_each_frame_once() -> None:
    assert travel_problem("0: a\n15: b", 16) is None
    assert travel_problem("8: a\n2: b", 16) is None, "in any order"
    assert travel_problem("a: b", 1) is None
    assert "frame 16" in str(travel_problem("0: a\n16: b", 16))
    assert "twice" in str(travel_problem("2: a\n2: b", 16))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 0.909091)]),
        ("(cat:1.5)", [("cat", 1.5)]),
        ("(cat: .5 )", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1)]),
        ("(a (cat:2):1.5)", [("a ", 1.5), ("cat", 3)]),
        ("(a) (b)", [("a", 1.1), (" ", 1), ("b", 1.1)]),
        (r"\(cat\) \[x\] \\ \n", [(r"(cat) [x] \ \n", 1)]),
        ("(cat", [("cat", 1.1)]),
        ("cat) [", [("cat) ", 1)]),
        ("[cat:0.5]", [("cat:0.5", 0.909091)]),
        ("(cat:x)", [("cat:x", 1.1)]),
        ("(cat:1e9)", [("cat:1e9", 1.1)]),
        ("(cat:99)", [("cat", WEIGHT_LIMIT)]),
        ("(a]b)", [("a]b", 1.1)]),
        ("(:1.5)()", []),
        ("", []),
        ("(cat:1.0) cat", [("cat cat", 1)]),
    ],
)
def test_brackets_are_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert weighted(prompt) == [(text, pytest.approx(weight)) for text, weight in expected]


@pytest.mark.parametrize("prompt", ["(" * 4000, "(a" * 2000, ")" * 4000, "[(" * 2000, "(a:" * 1300, "\\" * 4000])
def test_any_nesting_is_read_in_no_time(prompt: str) -> None:
    assert all(abs(weight) <= WEIGHT_LIMIT for _, weight in weighted(prompt))
