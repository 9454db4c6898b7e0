"""Prompt travel: what every frame is told, between the prompts of the key frames."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def per_frame(keys: Mapping[int, torch.Tensor], frames: int, closed: bool = False) -> torch.Tensor:
    """(frames, tokens, width) from (1, tokens, width) at key frames: exact there, and in between in proportion.

    Before the first key frame all is as there; after the last one, too, or `closed` on the way back to the first.
    """
    known = sorted(keys)
    if len(known) == 1:
        return keys[known[0]].expand(frames, -1, -1)
    points = [(frame, keys[frame]) for frame in known]
    if closed:
        points = [(known[-1] - frames, keys[known[-1]]), *points, (known[0] + frames, keys[known[0]])]
    return torch.cat([_at(frame, points) for frame in range(frames)])


def _at(frame: int, points: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    before = [point for point in points if point[0] <= frame]
    after = [point for point in points if point[0] > frame]
    if not before or not after or before[-1][0] == frame:
        return (before or after)[-1 if before else 0][1]
    (start, one), (end, other) = before[-1], after[0]
    return torch.lerp(one, other, (frame - start) / (end - start))
