from __future__ import annotations

import pytest

from generator.errors import UserError
from generator.scalar_edit import with_values
from generator.sources import ROOT

TAG, CHECKPOINT = ("images", "tag"), ("models", "checkpoint")


def test_only_the_values_change() -> None:
    text = (ROOT / "config/cluster.example.yaml").read_text()
    edited = with_values(text, {TAG: "9.9", CHECKPOINT: 'a "b".safetensors'}, "cluster.yaml")
    before, after = text.splitlines(), edited.splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new.split("#")[0].strip() for _, new in changed] == ['tag: "9.9"', 'checkpoint: "a \\"b\\".safetensors"']
    assert [old.split("#")[1] for old, _ in changed] == [new.split("#")[1] for _, new in changed]


@pytest.mark.parametrize(
    "text", ["{images: {tag: '1'}, models: {checkpoint: x}}", "models: {checkpoint: x}\r\nimages:\r\n  tag: ä\r\n"]
)
def test_however_it_is_written(text: str) -> None:
    edited = with_values(text, {TAG: "9", CHECKPOINT: "y"}, "cluster.yaml")
    assert ('"9"' in edited, '"y"' in edited, edited.count("\r")) == (True, True, text.count("\r"))


@pytest.mark.parametrize("text", ["", "images: 1\n", "images: {registry: x}\nmodels: {}\n", "- images\n"])
def test_what_does_not_stand_there_is_written_by_hand(text: str) -> None:
    with pytest.raises(UserError, match=r'has no images.tag; write it by hand:\n  images.tag: "9"'):
        with_values(text, {TAG: "9"}, "cluster.yaml")
