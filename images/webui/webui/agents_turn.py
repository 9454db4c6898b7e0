"""When the engine is kept free for the cluster's agent, so that it is not always too late for it."""

from __future__ import annotations

import time

GAP_SECONDS = 1.0  # an agent that found the engine busy looks again every 0.5 s
ORDER_GAP_SECONDS = 5.0  # it came with an order, too late: between looking and ordering its storage takes that long
SEEN_SECONDS = 2.0  # an agent that did not look for so long does not wait


class AgentsTurn:
    """`missed` while a local run is in the agent's way, `begin` when that is over, `end` when the agent got it."""

    def __init__(self) -> None:
        self._missed_at = self._ends_at = float("-inf")
        self._had_order = False

    def missed(self, *, with_order: bool) -> None:
        self._missed_at = time.monotonic()
        self._had_order = self._had_order or with_order

    def begin(self) -> None:
        """Of no length if nobody waits."""
        now = time.monotonic()
        if self._had_order:
            self._ends_at = now + ORDER_GAP_SECONDS
        elif now - self._missed_at < SEEN_SECONDS:
            self._ends_at = now + GAP_SECONDS
        self._missed_at, self._had_order = float("-inf"), False

    def end(self) -> None:
        self._ends_at = float("-inf")

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._ends_at
