"""Acts on what the policy decides: pushes the state to the gateway, on change and every 2 s. Where a push fails, or
this process does, the gateway keeps the last state it has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from async_timeout import timeout

from appliance.controller import outliers
from appliance.controller.facts import Facts
from appliance.controller.gateway import Gateway, PushError, encode, tallies
from appliance.controller.judgement import Known, Standings, due_quarantines, judge, usual_fingerprint
from appliance.controller.policy import Node, Observation, Peers, Rules, Standing, State, Target, decide, observe
from appliance.lifecycle import start_task, touch_heartbeat
from appliance.logs import OnceUntilChanged, fields
from appliance.queue.orders import Order

log = logging.getLogger(__name__)
PUSH_SECONDS = 2.0
TICK_SECONDS = 0.25


class Reconciler:
    """Keeps the nodes' records and the gateway's state in step. `on_change` hears of each node that stands differently;
    it must not wait."""

    def __init__(
        self,
        targets: Iterable[Target],
        rules: Rules,
        gateway: Gateway,
        facts: Facts,
        *,
        name: str,
        on_change: Callable[[Standing], None],
    ) -> None:
        self._nodes = {(target.pool, target.name): Node(target) for target in targets}
        self._rules = rules
        self._gateway = gateway
        self._facts = facts
        self._name = name
        self._usual = ""
        self._standings: Standings = {}
        self._outliers: outliers.Records = {}
        self._counts: Mapping[str, Any] = {}
        self._changes: Counter[str] = Counter()
        self._on_change = on_change
        self._quarantining: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._epoch = str(time.time_ns() // 1000)
        self._version = 0
        self._stated: tuple[Peers, Mapping[str, Order]] | None = None
        self._pushed_at = float("-inf")
        self._trouble = OnceUntilChanged(log)

    def note(self, target: Target, seen: Observation) -> None:
        key = target.pool, target.name
        before, after = self._nodes[key], observe(self._nodes[key], seen, self._rules)
        self._nodes[key] = after
        if after.verdict is not before.verdict or after.address != before.address:
            self._changed.set()

    async def run(self) -> None:
        while True:
            touch_heartbeat("controller")
            self._changed.clear()
            await self._step()
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(TICK_SECONDS):
                    await self._changed.wait()

    async def _step(self) -> None:
        await self._read_counts()
        now = time.monotonic()
        known = self._known(now)
        standings = judge(self._nodes.values(), known, now, self._rules, self._standings)
        self._announce(standings, now)
        self._standings = standings
        self._quarantine(known)
        peers = decide(self._nodes.values(), now, self._rules, standings)
        if peers is None:
            return
        if (peers, known.orders) != self._stated:
            self._version += 1
            self._stated = peers, known.orders
            self._pushed_at = float("-inf")
            log.debug("state %d: %s", self._version, _summary(peers), extra=fields(event="state_changed"))
        if now - self._pushed_at >= PUSH_SECONDS:
            await self._push(peers, known.orders)

    def _known(self, now: float) -> Known:
        known = replace(self._facts.known, usual=self._usual)
        self._usual = usual_fingerprint(self._nodes.values(), known)
        records = self._outliers.items()
        failing = {name: outliers.describe(one, self._rules) for name, one in records if one.is_out(now)}
        on_trial = frozenset(name for name, one in records if one.is_on_trial(now))
        return replace(known, failing=failing, on_trial=on_trial)

    async def _read_counts(self) -> None:
        try:
            self._counts = await self._gateway.counts()
        except PushError:
            return  # the push tells
        seen = tallies(self._counts, "webui")
        here = {name: tally for name, tally in seen.items() if ("webui", name) in self._nodes}
        self._outliers = outliers.look(self._outliers, here, time.monotonic(), self._rules)

    async def _push(self, peers: Peers, orders: Mapping[str, Order]) -> None:
        try:
            await self._gateway.push(encode(self._epoch, self._version, peers, orders))
        except PushError as error:
            self._trouble.failing(f"cannot push the state: {error}", event="push_failed")
        else:
            self._pushed_at = time.monotonic()
            self._trouble.fine("the gateway takes the state again", event="push_works")

    def _quarantine(self, known: Known) -> None:
        """Beside the loop: Redis may take its time."""
        if self._quarantining is not None and not self._quarantining.done():
            return
        due = due_quarantines(self._standings.values(), known, self._rules, self._facts.server_now)
        if due:
            order = self._facts.quarantine(due, f"the controller of {self._name}", self._rules.trial_seconds)
            self._quarantining = start_task("quarantine", order)

    def _announce(self, standings: Standings, now: float) -> None:
        for key, standing in standings.items():
            earlier = self._standings.get(key)
            if (earlier.state if earlier else State.UNKNOWN) is standing.state:
                continue
            self._changes[f"{key[0]} {key[1]} {standing.state.value}"] += 1
            _log_change(standing, now)
            self._on_change(standing)

    def view(self) -> dict[str, Any]:
        """For the cluster: where each node stands and why, and what became of its requests."""
        now = time.monotonic()
        nodes = {f"{pool} {name}": _view(one, now) for (pool, name), one in self._standings.items()}
        counts = {key: numbers for key, numbers in self._counts.items() if key in nodes}
        return {
            "at": round(time.time(), 3),
            "epoch": self._epoch,
            "version": self._version,
            "nodes": nodes,
            "changes": dict(self._changes),
            "counts": counts,
        }


def _view(standing: Standing, now: float) -> dict[str, Any]:
    return {
        "state": standing.state.value,
        "reason": standing.reason,
        "since_seconds": round(max(0.0, now - standing.since), 1),
        "share": standing.share,
        "fingerprint": standing.node.fingerprint,
        "busy": standing.node.busy,
    }


def _summary(peers: Peers) -> str:
    return "; ".join(f"{pool} [{', '.join(peer.name for peer in members)}]" for pool, members in peers.items())


def _log_change(standing: Standing, now: float) -> None:
    target, up = standing.node.target, standing.state is State.UP
    held = standing.node.held_until - now
    log.log(
        logging.INFO if up else logging.WARNING,
        "%s %s is %s: %s%s",
        target.pool, target.name, standing.state.value, standing.reason,
        f"; held down for {held:.0f} s, it fell {len(standing.node.falls)} times" if not up and held > 0 else "",
        extra=fields(
            event=f"node_{standing.state.value.lower()}", reason=standing.reason, pool=target.pool, peer=target.name,
            address=f"{standing.node.address or target.host}:{target.port}",
        ),
    )  # fmt: skip
