"""What visitors saw of one fault, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.integration.fault_stage.visitors import Diary


@dataclass(frozen=True)
class Figures:
    """Seconds, and counts. `failed`: requests without a good answer. `window`: from the fault until the last request
    that failed was sent. `elsewhere`: failed requests of visitors who were with a sound node when it began; `broken`:
    WebSockets of sound nodes that broke. `held`: the longest time that a WebSocket of the sick node stayed open and
    silent. `back`: from the end of the fault to the first visitor of that node. `twice`: posts that came twice."""

    asked: int
    failed: int
    faults: Counter[str]
    window: float
    elsewhere: int
    broken: int
    held: float
    back: float | None
    twice: int

    def in_words(self) -> str:
        back = "never back" if self.back is None else f"back after {self.back:.1f} s"
        faults = ", ".join(f"{count} {fault}" for fault, count in self.faults.most_common())
        return (
            f"{self.failed} of {self.asked} requests failed ({faults or 'none'}) within {self.window:.2f} s, "
            f"{self.elsewhere} of them elsewhere; {self.broken} WebSockets of sound nodes broken, the sick one's held "
            f"for {self.held:.1f} s; {back}; {self.twice} posts twice"
        )


def figures(diary: Diary, sick: set[str], begin: float, end: float, posts: Counter[str]) -> Figures:
    """Of a fault of the nodes `sick` from `begin` to `end`, monotonic seconds."""
    homes = {one.cookie: one.node for one in diary.requests if one.sent < begin and one.node}
    failed = [one for one in diary.requests if one.fault and one.sent >= begin - 1]
    of_sound = [talk for talk in diary.talks if talk.node and talk.node not in sick]
    of_sick = [talk for talk in diary.talks if talk.node in sick and talk.began < end]
    back = [one.sent for one in diary.requests if one.sent >= end and one.node in sick and not one.fault]
    mine = {one.identity for one in diary.requests}
    return Figures(
        asked=sum(one.sent >= begin for one in diary.requests),
        failed=len(failed),
        faults=Counter(one.fault for one in failed),
        window=max((one.sent - begin for one in failed), default=0.0),
        elsewhere=sum(homes.get(one.cookie, "?") not in {*sick, "?"} for one in failed),
        broken=sum(talk.ended > 0 for talk in of_sound),
        held=max((talk.silent for talk in of_sick), default=0.0),
        back=min(back) - end if back else None,
        twice=sum(posts[identity] > 1 for identity in mine),
    )
