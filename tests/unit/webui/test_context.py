from __future__ import annotations

from itertools import pairwise

import pytest

from webui.engine.context import windows


def ranges(*pairs: tuple[int, int]) -> list[tuple[int, ...]]:
    return [tuple(range(start, end)) for start, end in pairs]


@pytest.mark.parametrize(
    ("frames", "context", "overlap", "expected"),
    [
        (16, 12, None, ranges((0, 12), (4, 16))),
        (16, 8, -1, ranges((0, 8), (6, 14), (8, 16))),
        (16, 8, 0, ranges((0, 8), (8, 16))),
        (4, 2, 99, ranges((0, 2), (1, 3), (2, 4))),
        (3, 1, None, ranges((0, 1), (1, 2), (2, 3))),
    ],
)
def test_windows_follow_one_another(
    frames: int, context: int, overlap: int | None, expected: list[tuple[int, ...]]
) -> None:
    assert windows(frames, context, overlap) == expected


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("overlap", [None, 0, 3, 127])
def test_every_frame_is_seen_and_none_twice_in_a_window(overlap: int | None, stride: int, closed: bool) -> None:
    for frames in range(2, 129, 42):
        for context in range(1, frames, 5):
            made = windows(frames, context, overlap, stride, closed)
            assert {frame for window in made for frame in window} == set(range(frames))
            assert {len(window) for window in made} == {context}
            assert all(len(set(window)) == context for window in made)


def test_a_stride_adds_windows_of_every_second_and_fourth_frame_where_they_fit() -> None:
    plain, twice, many = (windows(16, 4, 0, stride) for stride in (1, 2, 8))
    assert twice[: len(plain)] == plain
    assert twice[len(plain) :] == [(0, 2, 4, 6), (8, 10, 12, 14), (1, 3, 5, 7), (9, 11, 13, 15)]
    assert many[len(twice) :] == [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]


def test_a_closed_loop_goes_on_from_the_last_frame_to_the_first() -> None:
    assert windows(6, 4, 2, closed=True) == [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 0, 1)]
    assert windows(6, None, None, closed=True) == [(0, 1, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2)]
    assert (6, 0) in [pair for window in windows(8, 4, 2, 2, closed=True) for pair in pairwise(window)]


def test_without_a_context_all_frames_are_seen_at_once() -> None:
    assert windows(16, None, None) == windows(16, 16, 4, 3) == windows(1, None, None, closed=True) == []
