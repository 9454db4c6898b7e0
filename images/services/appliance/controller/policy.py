"""Who may get traffic: observations in, peers out. Pure; every moment is a monotonic second handed in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

POOLS = ("api", "webui")


class Verdict(enum.Enum):
    """What a node's own answers say of it."""

    UNKNOWN = "unknown"
    UP = "up"
    WARMING = "warming"
    DRAINING = "draining"
    DOWN = "down"


class State(str, enum.Enum):
    """What becomes of a node, its answers and the cluster's rules taken together."""

    UNKNOWN = "UNKNOWN"
    UP = "UP"
    WARMING = "WARMING"
    DRAINING = "DRAINING"
    DOWN = "DOWN"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True)
class Target:
    """One address to watch. `host` is a DNS name or an IP; the name is what clients are hashed to."""

    pool: str
    name: str
    host: str
    port: int
    weight: float = 1.0


@dataclass(frozen=True)
class Rules:
    failures_to_fall: int = 2
    successes_to_rise: int = 2
    flaps_allowed: int = 3
    flap_window_seconds: float = 300.0
    first_hold_seconds: float = 2.0
    longest_hold_seconds: float = 60.0
    doubt_seconds: float = 1.0
    silent_seconds: float = 5.0
    """An agent whose heartbeat number stands still this long, by our own clock, is silent."""
    streak: int = 3
    streak_seconds: float = 300.0
    trial_seconds: float = 60.0
    """After this long a worker that failed a whole streak may try again."""
    failures_in_a_row: int = 5
    """Of visitors' requests, after which a node is out for `first_out_seconds`, doubled each time."""
    first_out_seconds: float = 5.0
    trial_failures: int = 2
    trial_share: float = 0.25


@dataclass(frozen=True)
class Observation:
    """One probe's outcome; `failure` is None where the peer is fine. A refused connection is certain, not a doubt.

    What it told besides, where it answered at all (`answered`): `said` is its status, `busy` how much it has to do,
    None where it told nothing of that.
    """

    at: float
    address: str | None
    failure: str | None = None
    refused: bool = False
    answered: bool = False
    said: str = ""
    fingerprint: str = ""
    busy: int | None = None


@dataclass(frozen=True)
class Node:
    target: Target
    verdict: Verdict = Verdict.UNKNOWN
    address: str | None = None
    failures: int = 0
    successes: int = 0
    falls: tuple[float, ...] = ()
    held_until: float = 0.0
    reason: str = "not probed yet"
    since: float = 0.0
    answers: bool = False
    """It says something when it is asked, if only that it is not ready; as patiently judged as `verdict`."""
    silences: int = 0
    """Probes in a row without any answer."""
    fingerprint: str = ""
    """The last one it told: what it is when it comes back is most likely what it was."""
    busy: int = 0
    """What it told last: one that says nothing may well be at work."""


@dataclass(frozen=True)
class Standing:
    """`share` is the node's part of the new sessions; 0 where it takes none. `trial`: it only gets requests that can be
    asked elsewhere after it. `since` is a monotonic second."""

    node: Node
    state: State
    reason: str
    share: float = 0.0
    since: float = 0.0
    trial: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.node.target.pool, self.node.target.name


@dataclass(frozen=True)
class Peer:
    name: str
    ip: str
    port: int
    weight: float
    busy: int = 0
    trial: bool = False


Peers = Mapping[str, tuple[Peer, ...]]


def observe(node: Node, seen: Observation, rules: Rules) -> Node:
    """The node after one more probe."""
    told = replace(node, busy=_busy(node, seen), fingerprint=seen.fingerprint or node.fingerprint)
    node = _heard(told, seen, rules)
    if seen.failure is None:
        return _succeed(node, seen, rules)
    failed = replace(node, failures=node.failures + 1, successes=0)
    verdict = _verdict_of(seen)
    if verdict is Verdict.DRAINING:  # its own word: it ends by itself, and until then it is there
        return _turn(replace(failed, failures=0), verdict, seen)
    if not (seen.refused or failed.failures >= rules.failures_to_fall):
        return failed
    fallen = _turn(failed, verdict, seen)
    return _fall(fallen, seen.at, rules) if node.verdict is Verdict.UP else fallen


def _busy(node: Node, seen: Observation) -> int:
    """Nobody listens any more where the connection is refused: then nothing runs there, either."""
    if seen.refused:
        return 0
    return node.busy if seen.busy is None else seen.busy


def _heard(node: Node, seen: Observation, rules: Rules) -> Node:
    if seen.answered:
        return replace(node, answers=True, silences=0, address=seen.address)
    silences = node.silences + 1
    gone = seen.refused or silences >= rules.failures_to_fall
    return replace(node, answers=node.answers and not gone, silences=silences)


def _verdict_of(seen: Observation) -> Verdict:
    return {"loading": Verdict.WARMING, "draining": Verdict.DRAINING}.get(seen.said, Verdict.DOWN)


def _turn(node: Node, verdict: Verdict, seen: Observation) -> Node:
    since = node.since if node.verdict is verdict else seen.at
    return replace(node, verdict=verdict, reason=seen.failure or node.reason, since=since)


def _succeed(node: Node, seen: Observation, rules: Rules) -> Node:
    node = replace(node, successes=node.successes + 1, failures=0)
    if node.verdict is Verdict.UP or node.successes < rules.successes_to_rise:
        return node
    if seen.at < node.held_until:
        return replace(node, reason=f"it answers again, but fell {len(node.falls)} times: held down for a while")
    return replace(node, verdict=Verdict.UP, reason=f"{node.successes} probes in a row succeeded", since=seen.at)


def _fall(node: Node, at: float, rules: Rules) -> Node:
    """A node that keeps going up and down stays down, twice as long each time."""
    falls = (*(fall for fall in node.falls if fall > at - rules.flap_window_seconds), at)
    excess = len(falls) - rules.flaps_allowed
    if excess <= 0:
        return replace(node, falls=falls, held_until=0.0)
    hold = min(rules.longest_hold_seconds, rules.first_hold_seconds * 2 ** min(excess - 1, 16))
    return replace(node, falls=falls, held_until=at + hold)


def decide(
    nodes: Iterable[Node], now: float, rules: Rules, standings: Mapping[tuple[str, str], Standing] | None = None
) -> Peers | None:
    """The peers of each pool; None while a node has no verdict yet, so that a restarted controller breaks nothing.

    A node that `standings` say nothing of stands as its own answers say.
    """
    all_nodes = list(nodes)
    if any(node.verdict is Verdict.UNKNOWN for node in all_nodes):
        return None
    stand = {**{(node.target.pool, node.target.name): as_it_answers(node) for node in all_nodes}, **(standings or {})}
    pools: dict[str, list[Standing]] = {pool: [] for pool in POOLS}
    for node in sorted(all_nodes, key=lambda node: node.target.name):
        pools[node.target.pool].append(stand[node.target.pool, node.target.name])
    return {pool: _pool(standing, now, rules) for pool, standing in pools.items()}


def as_it_answers(node: Node) -> Standing:
    share = node.target.weight if node.verdict is Verdict.UP else 0.0
    return Standing(node, State[node.verdict.name], node.reason, share, node.since)


def _pool(standings: list[Standing], now: float, rules: Rules) -> tuple[Peer, ...]:
    last: list[Node] = []
    if not any(one.state is State.UP for one in standings):
        # What was taken out on purpose is not put back because the rest has gone.
        fallen = [one.node for one in standings if one.state is State.DOWN]
        # To be held down is for who has others: one that answers again is better than nobody.
        held = [node for node in fallen if node.successes >= rules.successes_to_rise]
        last = held or _doubted(fallen, now, rules)
    return tuple(
        _peer(one.node, one.node.target.weight if one.node in last else one.share, one.trial)
        for one in standings
        if one.state in (State.UP, State.DRAINING) or one.node in last or _is_of_use(one.node)
    )


def _is_of_use(node: Node) -> bool:
    """An api that answers but is not ready, for want of Redis: it takes nothing new, but it still says whose key is
    good, which the nodes' visitors need, and goes on with its streams."""
    return node.target.pool == "api" and node.answers


def _doubted(nodes: list[Node], now: float, rules: Rules) -> list[Node]:
    """All failed: perhaps it was the prober. Those that fell together are kept for a moment."""
    fallen = [node for node in nodes if node.falls]
    last = max((node.falls[-1] for node in fallen), default=float("-inf"))
    if now - last >= rules.doubt_seconds:
        return []
    return [node for node in fallen if last - node.falls[-1] <= rules.doubt_seconds]


def _peer(node: Node, weight: float, trial: bool) -> Peer:
    if node.address is None:  # an up node has answered, so it has an address
        raise ValueError(f"{node.target.name} is up without an address")
    return Peer(node.target.name, node.address, node.target.port, weight, node.busy, trial)
