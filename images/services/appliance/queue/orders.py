"""What operators, or a controller on its own, have ordered about single nodes."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any


class OrderKind(str, enum.Enum):
    DRAIN = "drain"
    """What runs there goes on, nothing new begins."""
    QUARANTINE = "quarantine"
    """Nothing goes there any more, and what runs there is handed back."""
    CANARY = "canary"
    """It may differ from the others, and takes `share` of the new sessions, or as many as anybody."""


@dataclass(frozen=True)
class Order:
    """`at` and `until` (None: until it is taken back) are Unix seconds by the Redis server's clock; `share` is a part
    of 1."""

    kind: OrderKind
    by: str
    at: float = 0.0
    reason: str = ""
    share: float | None = None
    until: float | None = None

    def describe(self) -> str:
        return f"{self.kind.value} ordered by {self.by}" + (f": {self.reason}" if self.reason else "")

    def is_over(self, now: float) -> bool:
        return self.until is not None and now >= self.until

    def to_json(self) -> str:
        """Moments as whole milliseconds: a script compares them."""
        about: dict[str, Any] = {"order": self.kind.value, "by": self.by, "at": round(self.at * 1000)}
        more = {
            "reason": self.reason or None,
            "share": self.share,
            "until": None if self.until is None else round(self.until * 1000),
        }
        return json.dumps(about | {name: value for name, value in more.items() if value is not None})

    @classmethod
    def parse(cls, text: str) -> Order | None:
        """None where this is no order, or none that could be told on (a moment that is no number): one odd entry must
        not keep the others from being obeyed."""
        try:
            raw = json.loads(text)
            share, until = raw.get("share"), raw.get("until")
            order = cls(
                kind=OrderKind(raw["order"]),
                by=str(raw.get("by") or "somebody"),
                at=float(raw.get("at") or 0) / 1000,
                reason=str(raw.get("reason") or ""),
                share=None if share is None else float(share),
                until=None if until is None else float(until) / 1000,
            )
            order.to_json()
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        return order if order.share is None or 0 <= order.share <= 1 else None
