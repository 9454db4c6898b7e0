"""Which frames the model looks at together. Pure."""

from __future__ import annotations

Window = tuple[int, ...]


def windows(
    frames: int, context: int | None, overlap: int | None, stride: int = 1, closed: bool = False
) -> list[Window]:
    """Frame numbers, window by window, that together cover all frames; none means all frames at once.

    An overlap of None or -1 is a quarter of the context. A stride of n adds, as AnimateDiff's authors' and
    AUTOMATIC1111's context does, windows of every 2nd, 4th … 2^(n-1)th frame, as far as the clip is long enough for
    them. `closed` lets windows go on from the last frame to the first: what plays in a loop then has no seam. Without
    a context that is a second look at all frames, from the middle on.
    """
    if context is None or context >= frames:
        if not closed or frames < 2:
            return []
        return [tuple(range(frames)), _around(frames // 2, frames, frames)]
    if overlap is None or overlap < 0:
        overlap = context // 4
    hop = max(1, context - overlap)
    found: list[Window] = []
    for step in (2**level for level in range(stride)):
        if frames // step < context:
            break
        for first in range(step):
            some = range(first, frames, step)
            found += [tuple(some[at] for at in window) for window in _plain(len(some), context, hop, closed)]
    return found


def _plain(frames: int, context: int, hop: int, closed: bool) -> list[Window]:
    if closed:
        return [_around(start, context, frames) for start in range(0, frames, hop)]
    starts = [*range(0, frames - context, hop), frames - context]
    return [tuple(range(start, start + context)) for start in starts]


def _around(start: int, count: int, frames: int) -> Window:
    return tuple(at % frames for at in range(start, start + count))
