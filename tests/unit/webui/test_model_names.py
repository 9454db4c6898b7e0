from __future__ import annotations

import pytest

from webui.model_names import find_name, plain_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("toonyou", "toonyou"),
        ("toonyou.safetensors", "toonyou"),
        ("toonyou_beta6.CKPT", "toonyou_beta6"),
        ("toonyou.safetensors [0123abcdef]", "toonyou"),
        ("v1.5-pruned", "v1.5-pruned"),
        (" mm_sd15_v3.safetensors ", "mm_sd15_v3"),
        ("odd [name]", "odd [name]"),
        (".safetensors", ".safetensors"),
    ],
)
def test_endings_and_hashes_are_no_part_of_a_name(text: str, name: str) -> None:
    assert plain_name(text) == name


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        ("a", ["a", "A"], "a"),
        ("A.safetensors", ["a", "b"], "a"),
        ("mm_sd_v15_v3", ["mm_sd15_v3", "other"], "mm_sd15_v3"),
        ("mm_sd15_v3.safetensors", ["mm_sd_v15_v3"], "mm_sd_v15_v3"),
        ("mm_sd15_v3", ["mm_sd_v15_v2"], None),
        ("B", ["b", "Б"], "b"),
        ("x", ["X", "x "], "X"),
        ("ab", ["Ab", "aB"], None),
        ("../a", ["a"], None),
        ("", ["a"], None),
        ("x.ckpt", ["x.ckpt"], "x.ckpt"),
        ("x.ckpt.safetensors", ["x.ckpt"], "x.ckpt"),
        ("x.ckpt", ["x", "x.ckpt"], "x.ckpt"),
    ],
)
def test_the_one_that_is_meant_is_found(wanted: str, there: list[str], found: str | None) -> None:
    assert find_name(wanted, there) == found
