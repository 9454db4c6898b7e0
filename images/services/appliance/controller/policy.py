"""Who may get traffic: observations in, peers out. Pure; every moment is a monotonic second handed in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

POOLS = ("api", "webui")


class Verdict(enum.Enum):
    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


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


@dataclass(frozen=True)
class Observation:
    """One probe's outcome; `failure` is None where the peer is fine. A refused connection is certain, not a doubt."""

    at: float
    address: str | None
    failure: str | None = None
    refused: bool = False


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


@dataclass(frozen=True)
class Peer:
    name: str
    ip: str
    port: int
    weight: float


Peers = Mapping[str, tuple[Peer, ...]]


def observe(node: Node, seen: Observation, rules: Rules) -> Node:
    """The node after one more probe."""
    if seen.failure is None:
        return _succeed(node, seen, rules)
    failed = replace(node, failures=node.failures + 1, successes=0)
    certain = seen.refused or failed.failures >= rules.failures_to_fall
    if node.verdict is Verdict.DOWN or not certain:
        return failed
    fallen = replace(failed, verdict=Verdict.DOWN, reason=seen.failure)
    return _fall(fallen, seen.at, rules) if node.verdict is Verdict.UP else fallen


def _succeed(node: Node, seen: Observation, rules: Rules) -> Node:
    node = replace(node, successes=node.successes + 1, failures=0, address=seen.address)
    if node.verdict is Verdict.UP or node.successes < rules.successes_to_rise or seen.at < node.held_until:
        return node
    return replace(node, verdict=Verdict.UP, reason=f"{node.successes} probes in a row succeeded")


def _fall(node: Node, at: float, rules: Rules) -> Node:
    """A node that keeps going up and down stays down, twice as long each time."""
    falls = (*(fall for fall in node.falls if fall > at - rules.flap_window_seconds), at)
    excess = len(falls) - rules.flaps_allowed
    if excess <= 0:
        return replace(node, falls=falls, held_until=0.0)
    hold = min(rules.longest_hold_seconds, rules.first_hold_seconds * 2 ** min(excess - 1, 16))
    return replace(node, falls=falls, held_until=at + hold)


def decide(nodes: Iterable[Node], now: float, rules: Rules) -> Peers | None:
    """The peers of each pool; None while a node has no verdict yet, so that a restarted controller breaks nothing."""
    all_nodes = list(nodes)
    if any(node.verdict is Verdict.UNKNOWN for node in all_nodes):
        return None
    return {pool: _pool([node for node in all_nodes if node.target.pool == pool], now, rules) for pool in POOLS}


def _pool(nodes: list[Node], now: float, rules: Rules) -> tuple[Peer, ...]:
    chosen = [node for node in nodes if node.verdict is Verdict.UP]
    if not chosen:
        chosen = _doubted(nodes, now, rules)
    return tuple(_peer(node) for node in sorted(chosen, key=lambda node: node.target.name))


def _doubted(nodes: list[Node], now: float, rules: Rules) -> list[Node]:
    """All failed: perhaps it was the prober. Those that fell together are kept for a moment."""
    fallen = [node for node in nodes if node.falls]
    last = max((node.falls[-1] for node in fallen), default=float("-inf"))
    if now - last >= rules.doubt_seconds:
        return []
    return [node for node in fallen if last - node.falls[-1] <= rules.doubt_seconds]


def _peer(node: Node) -> Peer:
    if node.address is None:  # an up node has answered, so it has an address
        raise ValueError(f"{node.target.name} is up without an address")
    return Peer(node.target.name, node.address, node.target.port, node.target.weight)
