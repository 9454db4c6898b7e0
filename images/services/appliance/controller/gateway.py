"""The controller's door to its nginx, a unix socket: PUT /state in, GET /state and /counts out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_timeout import timeout

from appliance.controller.exchange import LONGEST_ANSWER, Answer, Exchange, ExchangeError
from appliance.controller.outliers import Tally
from appliance.controller.policy import Peer, Peers
from appliance.queue.orders import Order

_TIMEOUT_SECONDS = 1.0
_LONGEST_STATE = 2 << 20  # twice what it takes: orders are texts within texts


class PushError(Exception):
    """The gateway did not take the state, or did not tell its counts."""


class Gateway:
    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def push(self, state: bytes) -> None:
        await self._ask("PUT /state", state)

    async def orders(self) -> dict[str, Order]:
        """Those that the state was decided with which it has now: a controller that was here before left them there."""
        try:
            answer = await self._ask("GET /state", longest=_LONGEST_STATE)
            told = json.loads(answer.body)["state"].get("orders", {}) if answer.status == 200 else {}
            parsed = {str(name): Order.parse(text) for name, text in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PushError(f"no orders: {type(error).__name__} {error}") from None
        return {name: order for name, order in parsed.items() if order}

    async def counts(self) -> Mapping[str, Any]:
        """What became of the requests to each peer, by "<pool> <name>", since nginx was started; see counts.lua."""
        try:
            peers = json.loads((await self._ask("GET /counts")).body)["peers"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PushError(f"no counts: {type(error).__name__} {error}") from None
        if not isinstance(peers, dict):
            raise PushError("no counts: peers is no object")
        return {name: numbers for name, numbers in peers.items() if isinstance(numbers, dict)}

    async def _ask(self, request: str, body: bytes = b"", *, longest: int = LONGEST_ANSWER) -> Answer:
        try:
            async with timeout(_TIMEOUT_SECONDS):
                answer = await self._exchange(Exchange(request, "state", body, longest=longest))
        except asyncio.TimeoutError:
            raise PushError(f"no answer within {_TIMEOUT_SECONDS:g} s") from None
        except (OSError, ExchangeError) as error:
            raise PushError(f"{type(error).__name__} {error}") from error
        if answer.status != 200 and (request, answer.status) != ("GET /state", 404):  # it has none yet
            raise PushError(f"refused with {answer.status} {answer.body[:200].decode(errors='replace')}")
        return answer

    async def _exchange(self, asking: Exchange) -> Answer:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: asking, str(self._socket))
            return await asking.answer
        finally:
            asking.abort()


def tallies(counts: Mapping[str, Any], pool: str) -> dict[str, Tally]:
    """By node of this pool."""
    found = {}
    for key, numbers in counts.items():
        where, _, name = key.partition(" ")
        passed, failed = numbers.get("passed"), numbers.get("failed")
        if where == pool and isinstance(passed, (int, float)) and isinstance(failed, (int, float)):
            found[name] = Tally(int(passed), int(failed))
    return found


def encode(epoch: str, version: int, peers: Peers, orders: Mapping[str, Order]) -> bytes:
    """The gateway's state document; equal input gives equal bytes, which the gateway relies on. It only keeps the
    orders, for the controller that comes after this one."""
    pools = {pool: [_document(peer, pool) for peer in members] for pool, members in peers.items()}
    kept = {name: order.to_json() for name, order in orders.items()}
    return json.dumps({"epoch": epoch, "version": version, "pools": pools, "orders": kept}, sort_keys=True).encode()


def _document(peer: Peer, pool: str) -> dict[str, object]:
    document = {"name": peer.name, "ip": peer.ip, "port": peer.port, "weight": peer.weight}
    return {**document, "busy": peer.busy, "trial": peer.trial} if pool == "webui" else document
