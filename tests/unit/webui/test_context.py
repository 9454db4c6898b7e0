from __future__ import annotations

import pytest

from webui.engine.context import windows


@pytest.mark.parametrize(
    ("frames", "context", "overlap", "expected"),
    [
        (16, 12, None, [(0, 12), (4, 16)]),
        (16, 8, -1, [(0, 8), (6, 14), (8, 16)]),
        (16, 8, 0, [(0, 8), (8, 16)]),
        (4, 2, 99, [(0, 2), (1, 3), (2, 4)]),
        (3, 1, None, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_windows_follow_one_another(
    frames: int, context: int, overlap: int | None, expected: list[tuple[int, int]]
) -> None:
    assert windows(frames, context, overlap) == expected


@pytest.mark.parametrize("overlap", [None, -1, 0, 3, 127])
def test_every_frame_is_seen_and_none_that_is_not_there(overlap: int | None) -> None:
    for frames in range(2, 129, 7):
        for context in range(1, frames):
            made = windows(frames, context, overlap)
            assert {frame for start, end in made for frame in range(start, end)} == set(range(frames))
            assert {end - start for start, end in made} == {context}
