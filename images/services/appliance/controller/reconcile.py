"""Acts on what the policy decides: pushes the state to the gateway, on change and every 2 s. Where a push fails, or
this process does, the gateway keeps the last state it has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from appliance.controller.exchange import Answer, ExchangeError, exchange
from appliance.controller.policy import Node, Observation, Peer, Peers, Rules, Target, Verdict, decide, observe
from appliance.lifecycle import touch_heartbeat
from appliance.logs import OnceUntilChanged, fields

log = logging.getLogger(__name__)
PUSH_SECONDS = 2.0
TICK_SECONDS = 0.25
_PUSH_TIMEOUT_SECONDS = 1.0


class PushError(Exception):
    """The gateway did not take the state."""


class Gateway:
    """The door of one nginx: PUT /state on its unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def push(self, state: bytes) -> None:
        try:
            answer = await asyncio.wait_for(self._put(state), _PUSH_TIMEOUT_SECONDS)
        except asyncio.TimeoutError:
            raise PushError(f"no answer within {_PUSH_TIMEOUT_SECONDS:g} s") from None
        except (OSError, ExchangeError) as error:
            raise PushError(f"{type(error).__name__} {error}") from error
        if answer.status != 200:
            raise PushError(f"refused with {answer.status} {answer.body[:200].decode(errors='replace')}")

    async def _put(self, state: bytes) -> Answer:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            return await exchange(reader, writer, "PUT /state", "state", state)
        finally:
            writer.transport.abort()


class Reconciler:
    """Keeps the nodes' records and the gateway's state in step."""

    def __init__(self, targets: Iterable[Target], rules: Rules, gateway: Gateway) -> None:
        self._nodes = {(target.pool, target.name): Node(target) for target in targets}
        self._rules = rules
        self._gateway = gateway
        self._changed = asyncio.Event()
        self._epoch = str(time.time_ns() // 1000)
        self._version = 0
        self._peers: Peers | None = None
        self._pushed_at = float("-inf")
        self._trouble = OnceUntilChanged(log)

    def note(self, target: Target, seen: Observation) -> None:
        key = target.pool, target.name
        before, after = self._nodes[key], observe(self._nodes[key], seen, self._rules)
        self._nodes[key] = after
        if after.verdict is not before.verdict:
            _log_change(after, seen.at)
        if after.verdict is not before.verdict or after.address != before.address:
            self._changed.set()

    async def run(self) -> None:
        while True:
            touch_heartbeat("controller")
            self._changed.clear()
            await self._step()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), TICK_SECONDS)

    async def _step(self) -> None:
        peers = decide(self._nodes.values(), time.monotonic(), self._rules)
        if peers is None:
            return
        if peers != self._peers:
            self._version += 1
            self._peers = peers
            self._pushed_at = float("-inf")
            log.info("state %d: %s", self._version, _summary(peers), extra=fields(event="state_changed"))
        if time.monotonic() - self._pushed_at < PUSH_SECONDS:
            return
        try:
            await self._gateway.push(encode(self._epoch, self._version, peers))
        except PushError as error:
            self._trouble.failing(f"cannot push the state: {error}", event="push_failed")
        else:
            self._pushed_at = time.monotonic()
            self._trouble.fine("the gateway takes the state again", event="push_works")


def encode(epoch: str, version: int, peers: Peers) -> bytes:
    """The gateway's state document; equal input gives equal bytes, which the gateway relies on."""
    pools = {pool: [_document(peer, pool) for peer in members] for pool, members in peers.items()}
    return json.dumps({"epoch": epoch, "version": version, "pools": pools}, sort_keys=True).encode()


def _document(peer: Peer, pool: str) -> dict[str, object]:
    document: dict[str, object] = {"name": peer.name, "ip": peer.ip, "port": peer.port}
    return {**document, "weight": peer.weight} if pool == "webui" else document


def _summary(peers: Peers) -> str:
    return "; ".join(f"{pool} [{', '.join(peer.name for peer in members)}]" for pool, members in peers.items())


def _log_change(node: Node, at: float) -> None:
    target = node.target
    up = node.verdict is Verdict.UP
    held = node.held_until - at
    log.log(
        logging.INFO if up else logging.WARNING,
        "%s %s is %s: %s%s",
        target.pool, target.name, node.verdict.value, node.reason,
        f"; held down for {held:.0f} s, it fell {len(node.falls)} times" if not up and held > 0 else "",
        extra=fields(
            event=f"peer_{node.verdict.value}", reason=node.reason, pool=target.pool, peer=target.name,
            address=f"{node.address or target.host}:{target.port}",
        ),
    )  # fmt: skip
