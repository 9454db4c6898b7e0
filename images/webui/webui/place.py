"""Where in the code a failure comes from: short, and the same for the same failure on every worker."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType, TracebackType

PLACE_CHARS = 100
OWN = __name__.partition(".")[0]
TOLD_AS = {"__main__": f"{OWN}.worker"}


def place_of(error: BaseException) -> str:
    """`module:function` of the innermost frame of our own code, of the error that caused the others; without one, the
    innermost of all. No line number: it would differ from version to version."""
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:  # `raise error from error` is a circle
        error = error.__cause__
        seen.add(id(error))
    places = [_describe(frame) for frame in _frames(error.__traceback__)]
    own = [place for place in places if place.startswith(f"{OWN}.")]
    return (own or places or [""])[-1][:PLACE_CHARS]


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _describe(frame: FrameType) -> str:
    module = str(frame.f_globals.get("__name__", ""))
    return f"{TOLD_AS.get(module, module)}:{frame.f_code.co_name}"
