"""This host's gateway: how many requests it has had and how its peers answered, as nginx counts (GET /counts), and what
its controller thinks of the nodes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.controller.exchange import Exchange
from appliance.errors import ApplianceError

LONGEST_ANSWER = 4 << 20


class GatewayError(ApplianceError):
    """The gateway does not answer, or answers what cannot be understood."""


@dataclass(frozen=True)
class PeerCounts:
    """Since nginx was started. `cumulative`: upper bound in seconds → answers at most as late; the last is infinite."""

    pool: str
    name: str
    answers_by_status: Mapping[str, int]
    cumulative: tuple[tuple[float, int], ...]
    seconds: float

    @property
    def answers(self) -> int:
        return self.cumulative[-1][1]


@dataclass(frozen=True)
class GatewayCounts:
    requests: int
    peers: tuple[PeerCounts, ...]


@dataclass(frozen=True)
class NodeView:
    pool: str
    name: str
    state: str


@dataclass(frozen=True)
class NodesView:
    """`changes`: how often a node (pool, name) came into a state, since the controller began."""

    nodes: tuple[NodeView, ...]
    changes: Mapping[tuple[str, str, str], int]


async def read_counts(socket: Path) -> GatewayCounts:
    """Raises GatewayError. The caller bounds the time."""
    asking = Exchange("GET /counts", "state", longest=LONGEST_ANSWER)
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: asking, str(socket))
        answer = await asking.answer
    except (OSError, ApplianceError) as error:
        raise GatewayError(f"{socket}: {error}") from error
    finally:
        asking.abort()
    if answer.status != 200:
        raise GatewayError(f"{socket}: answers {answer.status}")
    return parse_counts(answer.body)


def parse_counts(body: bytes) -> GatewayCounts:
    """Raises GatewayError; a peer that cannot be understood is one for all."""
    try:
        document = json.loads(body)
        peers = tuple(_peer(key, numbers) for key, numbers in sorted(document["peers"].items()))
        return GatewayCounts(_count(document["requests"]), peers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise GatewayError(f"its counts cannot be understood: {error!r}") from error


def _peer(key: str, numbers: Mapping[str, Any]) -> PeerCounts:
    pool, _, name = key.partition(" ")
    by_status = {str(status): _count(number) for status, number in numbers["status"].items()}
    bounds = [float(bound) for bound in numbers["bounds"]]
    within = [_count(number) for number in numbers["within"]]
    total = sum(by_status.values())
    steps = (*zip(bounds, within, strict=True), (math.inf, max([total, *within])))
    if sorted(steps) != list(steps) or sorted(within) != within:
        raise ValueError(f"{key}: its bounds do not rise")
    return PeerCounts(pool, name, by_status, steps, float(numbers["seconds_sum"]))


def parse_view(view: Mapping[str, Any], states: tuple[str, ...]) -> NodesView:
    """As `NodeBook.put_view` has it. What cannot be understood is left out; a state that is none of `states` counts as
    the last one of them."""
    nodes = []
    for key, node in _mapping(view.get("nodes")).items():
        pool, _, name = key.partition(" ")
        state = str(_mapping(node).get("state"))
        if name:
            nodes.append(NodeView(pool, name, state if state in states else states[-1]))
    changes = {}
    for key, number in _mapping(view.get("changes")).items():
        parts = key.split(" ")
        if len(parts) == 3 and parts[2] in states and isinstance(number, int):
            changes[parts[0], parts[1], parts[2]] = number
    return NodesView(tuple(nodes), changes)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    if not isinstance(value, (int, float)) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no count")
    return int(value)
