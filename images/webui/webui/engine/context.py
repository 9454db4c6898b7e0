"""Which frames the model looks at together."""

from __future__ import annotations


def windows(frames: int, context: int, overlap: int | None) -> list[tuple[int, int]]:
    """From-to pairs that cover all frames. An overlap of None or -1 is a quarter of the context."""
    if overlap is None or overlap < 0:
        overlap = context // 4
    stride = max(1, context - overlap)
    starts = [*range(0, frames - context, stride), frames - context]
    return [(start, start + context) for start in starts]
