"""The cluster's rules over what the nodes' own answers say: orders, fingerprints, outcomes, heartbeats. Pure.

Nothing here takes the last usable node of a pool out of service: a doubtful answer is better than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from appliance.controller.policy import Node, Rules, Standing, State, as_it_answers
from appliance.queue.orders import Order, OrderKind


@dataclass(frozen=True)
class Worker:
    """What Redis has of one worker. `failed_at`: when its last attempts in a row failed by its engine's fault, oldest
    first; `done_at`: when one last succeeded; both in seconds of the Redis server's clock."""

    silent_seconds: float = 0.0
    failed_at: tuple[float, ...] = ()
    failure: str = ""
    done_at: float = 0.0


@dataclass(frozen=True)
class Known:
    """What is known besides the probes. Where Redis cannot be asked it stays as it was."""

    workers: Mapping[str, Worker] = field(default_factory=dict)
    orders: Mapping[str, Order] = field(default_factory=dict)
    usual: str = ""
    """The fingerprint in use so far."""
    failing: Mapping[str, str] = field(default_factory=dict)
    """Nodes that fail their visitors although their own answers are good, and how that was seen."""
    on_trial: frozenset[str] = frozenset()
    """Nodes that were failing lately."""


NOTHING_KNOWN = Known()
Standings = Mapping[tuple[str, str], Standing]
# Where one has to stay of those that should go: who does the least harm. One without an order only differs.
_HARM = {OrderKind.DRAIN: 1, OrderKind.QUARANTINE: 2}


def judge(
    nodes: Iterable[Node], known: Known, now: float, rules: Rules, before: Standings | None = None
) -> dict[tuple[str, str], Standing]:
    """Where each node stands, by pool and name; `since` goes on from `before` where the state is the same."""
    all_nodes = list(nodes)
    others = [as_it_answers(node) for node in all_nodes if node.target.pool != "webui"]
    webuis = [_told(as_it_answers(node), known, rules) for node in all_nodes if node.target.pool == "webui"]
    held = _held(webuis, known, before or {})
    standings = [*others, *_with_shares([_tried(one, known, rules) for one in held], known)]
    return {one.key: _since(one, now, (before or {}).get(one.key)) for one in standings}


def usual_fingerprint(nodes: Iterable[Node], known: Known) -> str:
    """That of most nodes, those that are away included: two that restart do not make the third one's the usual. Of
    equally many: the one in use so far. A canary has no say, and neither has who tells none (a foreign A1111)."""
    counts = Counter(
        node.fingerprint
        for node in nodes
        if node.target.pool == "webui" and node.fingerprint and _order(node, known) is not OrderKind.CANARY
    )
    return min(counts, key=lambda print_: (-counts[print_], print_ != known.usual, print_), default="")


def due_quarantines(standings: Iterable[Standing], known: Known, rules: Rules, now: float) -> dict[str, str]:
    """Workers whose last attempts all failed by their engine's fault while others succeed, and why; `now` by the
    Redis server's clock. A streak that has grown old is none: after the hold-down comes one trial."""
    webuis = [one for one in standings if one.node.target.pool == "webui"]
    usable = {one.node.target.name for one in webuis if one.state is State.UP}
    due: dict[str, str] = {}
    for name in sorted(usable):
        worker = known.workers.get(name)
        if worker is None or name in known.orders or not _failed_a_streak(worker, rules, now):
            continue
        begin = worker.failed_at[-rules.streak]
        if any(other.done_at > begin for key, other in known.workers.items() if key != name) and len(usable) > 1:
            due[name] = f"its last {rules.streak} attempts failed with {worker.failure} while others succeed"
            usable = usable - {name}
    return due


def _failed_a_streak(worker: Worker, rules: Rules, now: float) -> bool:
    last = worker.failed_at[-rules.streak :]
    if len(last) < rules.streak:
        return False
    return last[-1] - last[0] <= rules.streak_seconds and now - last[-1] < rules.trial_seconds


def _order(node: Node, known: Known) -> OrderKind | None:
    order = known.orders.get(node.target.name)
    return order.kind if order else None


def _told(standing: Standing, known: Known, rules: Rules) -> Standing:
    """With what its agent's heartbeat adds to the reason. It decides nothing: pages need no agent."""
    worker = known.workers.get(standing.node.target.name)
    if worker is None or worker.silent_seconds < rules.silent_seconds:
        return standing
    silent = f"its agent has been silent for {_rounded(worker.silent_seconds)} s"
    if standing.state is State.UP:
        silent += ": it takes no jobs of the queue, its pages work"
    return replace(standing, reason=f"{standing.reason}; {silent}")


def _rounded(seconds: float) -> int:
    """Coarser with time: a reason that changed with every second would be a change each second."""
    for step in (3600, 60, 5):
        if seconds >= step:
            return int(seconds // step * step)
    return int(seconds)


def _held(webuis: Sequence[Standing], known: Known, before: Standings) -> list[Standing]:
    usual = usual_fingerprint([one.node for one in webuis], known)
    held = {one.key: _demote(one, usual, known) for one in webuis}
    if any(one.state is State.UP for one in held.values()):
        return list(held.values())
    able = [one for one in webuis if one.state is State.UP]
    if able:
        stays = min(able, key=lambda one: (_harm(one, known), not _was_up(one, before), one.node.target.name))
        why = held[stays.key].reason
        held[stays.key] = replace(stays, reason=f"kept up, being the last usable node, although: {why}")
    return list(held.values())


def _was_up(standing: Standing, before: Standings) -> bool:
    earlier = before.get(standing.key)
    return earlier is not None and earlier.state is State.UP


def _harm(standing: Standing, known: Known) -> int:
    order = _order(standing.node, known)
    return _HARM.get(order, 0) if order else 0


def _demote(standing: Standing, usual: str, known: Known) -> Standing:
    order = known.orders.get(standing.node.target.name)
    if order and order.kind is OrderKind.QUARANTINE and standing.state is not State.DOWN:
        return replace(standing, state=State.QUARANTINED, reason=order.describe(), share=0.0)
    if standing.state is not State.UP:
        return standing
    if order and order.kind is OrderKind.DRAIN:
        return replace(standing, state=State.DRAINING, reason=order.describe(), share=0.0)
    failing = known.failing.get(standing.node.target.name)
    if failing:
        # Only guessed from outside: what it has going on may well be fine.
        return replace(standing, state=State.DRAINING, reason=failing, share=0.0)
    own = standing.node.fingerprint
    if own and usual and own != usual and not (order and order.kind is OrderKind.CANARY):
        differs = f"fingerprint differs: {own[:12]} where most have {usual[:12]}"
        return replace(standing, state=State.WARMING, reason=differs, share=0.0)
    return standing


def _tried(standing: Standing, known: Known, rules: Rules) -> Standing:
    if standing.state is not State.UP or standing.node.target.name not in known.on_trial:
        return standing
    reason = f"{standing.reason}; on trial"
    return replace(standing, share=standing.share * rules.trial_share, reason=reason, trial=True)


def _with_shares(webuis: list[Standing], known: Known) -> list[Standing]:
    """The canaries that were given a share of the new sessions get just that together, however many there are."""
    up = [one for one in webuis if one.state is State.UP]
    canaries = {one.key: share for one in up if (share := _canary_share(one, known)) is not None}
    others = len(up) - len(canaries)
    if not canaries or not others:
        return webuis
    together = min(1.0, sum(canaries.values()) / len(canaries))
    parts = {one.key: (1 - together) / others for one in up} | {key: together / len(canaries) for key in canaries}
    return [replace(one, share=round(parts[one.key] * one.share, 6)) if one.key in parts else one for one in webuis]


def _canary_share(standing: Standing, known: Known) -> float | None:
    order = known.orders.get(standing.node.target.name)
    return order.share if order and order.kind is OrderKind.CANARY else None


def _since(standing: Standing, now: float, earlier: Standing | None) -> Standing:
    if earlier is None:
        return standing
    return replace(standing, since=earlier.since if earlier.state is standing.state else now)
