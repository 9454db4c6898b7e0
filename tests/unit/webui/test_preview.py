"""Previews from latents: the right shape, a real JPEG, never a reason for a generation to fail."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest

from webui import preview
from webui.engine.base import Snapshot
from webui.preview import Previewer, encode_jpeg, picture_of


def snapshot(latents: Any, **more: Any) -> Snapshot:
    return Snapshot(3, 1, {"latents": latents}, **more)


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_the_middle_frame_is_shown_in_colour(channels: int) -> None:
    latents = np.zeros((1, channels, 5, 6, 8), np.float16)
    latents[0, 0, 2] = 1
    picture = picture_of(snapshot(latents))
    assert picture is not None
    assert (picture.shape, picture.dtype) == ((6, 8, 3), np.uint8)
    assert picture[0, 0, 0] > 127
    latents[0, 0, 2] = 0
    assert (picture_of(snapshot(latents)) == 127).all()


def test_strong_noise_and_broken_numbers_still_make_a_picture() -> None:
    noise = np.random.default_rng(0).normal(scale=14, size=(1, 4, 2, 16, 16)).astype(np.float32)
    noise[0, 0, 1, 0, 0] = np.nan
    picture = picture_of(snapshot(noise))
    assert picture is not None
    assert 20 < picture.std() < 110


@pytest.mark.parametrize("tensors", [{}, {"latents": np.zeros((4, 4))}, {"latents": np.zeros((1, 1, 2, 4, 4))}])
def test_nothing_to_see(tensors: dict[str, Any]) -> None:
    assert picture_of(Snapshot(1, 1, tensors)) is None


def test_a_jpeg_that_decodes_and_is_not_large() -> None:
    picture = np.zeros((700, 400, 3), np.uint8)
    picture[:, :200, 0] = 250
    with av.open(io.BytesIO(encode_jpeg(picture)), format="jpeg_pipe") as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (234, 134, 3)
    assert frame[100, 10, 0] > 230
    assert frame[100, 120, 0] < 20


def test_not_more_often_than_anybody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    previewer, latents = Previewer(), np.zeros((1, 4, 1, 8, 8), np.float32)
    assert previewer.look(snapshot(latents)) is not None
    assert previewer.look(snapshot(latents)) is None
    monkeypatch.setattr(preview.time, "monotonic", lambda: 1e9)
    assert previewer.look(snapshot(latents)) is not None


def test_a_preview_that_fails_is_given_up_quietly(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        raise ZeroDivisionError

    previewer = Previewer()
    assert [previewer.look(snapshot(None, picture=broken)) for _ in range(3)] == [None, None, None]
    assert len(caplog.records) == 1
