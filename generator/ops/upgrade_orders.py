"""What is ordered about workers while they are upgraded: by the upgrade, for as long as it needs it, and by operators,
whose orders outlive it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from generator.errors import Unhealthy
from generator.journal import Order, is_held
from generator.ops import nodes
from generator.ops.client import Client

POLL_SECONDS = 2.0
READY_SECONDS = 120.0
CONTROLLERS = "the controller of "
"""So begins who has ordered a quarantine that no operator has: it is for a minute, and for what ran there until now."""


class Orders:
    """`reason` tells the upgrade's own orders from everybody else's."""

    def __init__(self, running: nodes.Cluster, reason: str) -> None:
        self._running = running
        self._reason = " ".join(reason[:200].split())

    def nodes(self) -> list[dict[str, Any]]:
        """A gateway may be on its way to another host."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self._running.ask(Client.nodes)
            except Unhealthy:
                if time.monotonic() > end:
                    raise
            time.sleep(POLL_SECONDS)

    def standing(self, worker: str) -> Order | None:
        return orders_in(self.nodes()).get(worker)

    def is_ours(self, order: Order | None) -> bool:
        return order is not None and order["reason"] == self._reason

    def take_out(self, worker: str, before: Order | None, *, force: bool) -> None:
        """Nobody new comes to it. An order that keeps it out of work already is left alone: it is somebody else's to
        prolong or to take back, and where it ends meanwhile, a worker that is stopped hands its job back."""
        if before is None or not is_held(before):
            self._give(worker, {"order": "drain", "force": force})

    def try_out(self, worker: str, share: float | None) -> None:
        self._give(worker, {"order": "canary", "share": share})

    def give_back(self, worker: str, before: Order | None) -> None:
        """What was ordered before the upgrade, if it is not over; but what somebody has ordered since stays."""
        standing = self.standing(worker)
        if standing is None or not self.is_ours(standing):
            return
        seconds = None
        if before is not None and before["until"] is not None:
            # Given once more, for it answers with the time by the queue's clock.
            again = {"order": standing["order"], "share": standing["share"], "force": True}
            seconds = before["until"] - self._give(worker, again)["at"]
        if before is None or (seconds is not None and seconds <= 0):
            nodes.take_back(self._running, [worker])
            return
        order = {name: before[name] for name in ("order", "reason", "share")} | {"seconds": seconds, "force": True}
        self._running.ask(partial(Client.order, worker=worker, order=order))

    def _give(self, worker: str, order: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {**order, "reason": self._reason}
        return self._running.ask(partial(Client.order, worker=worker, order=wanted))


def orders_in(seen: Sequence[Mapping[str, Any]]) -> dict[str, Order]:
    """Those of operators, and upgrades, by worker."""
    orders = {node["name"]: node["order"] for node in seen if node["pool"] == "webui" and node["order"]}
    return {worker: order for worker, order in orders.items() if not order["by"].startswith(CONTROLLERS)}


def held_in(seen: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Workers that are ordered out of work."""
    return frozenset(worker for worker, order in orders_in(seen).items() if is_held(order))


def in_sequence(workers: Sequence[str], orders: Mapping[str, Order]) -> tuple[str, ...]:
    """Those that an operator keeps out of work last: nothing can be seen of the new release there."""
    return tuple(sorted(workers, key=lambda worker: worker in orders and is_held(orders[worker])))
