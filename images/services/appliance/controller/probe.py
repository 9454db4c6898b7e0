"""Asks one peer how it is: a new connection each time, bounded, never two at once."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import TypeVar

from async_timeout import timeout

from appliance.controller.exchange import Answer, Exchange, ExchangeError
from appliance.controller.policy import Observation, Target

_PATHS = {"api": "/readyz", "webui": "/internal/ping"}
_LONGEST_TEXT = 100
_LATE_SECONDS = 0.05
"""Where a deadline is noticed this much later, this process has not had the processor."""
_LOOK_UP_SECONDS = 1.0
T = TypeVar("T")
_MOST_LOAD = 1_000_000
"""As much as the gateway believes."""


@dataclass(frozen=True)
class Pace:
    """Connecting has a deadline of its own: a living kernel answers at once however busy its processors are."""

    interval_seconds: float = 0.25
    connect_seconds: float = 0.2
    timeout_seconds: float = 0.5


class Prober:
    """Probes one target. Containers change their address, so its name is looked up again and again, but beside the
    probes: a slow name server must not make a healthy peer look dead."""

    def __init__(self, target: Target, pace: Pace) -> None:
        self._target = target
        self._pace = pace
        self._address: str | None = None
        self._failing = False
        self._looked_up_at = float("-inf")
        self._lookup: asyncio.Future[list[str]] | None = None
        with contextlib.suppress(ValueError):
            self._address = str(ipaddress.ip_address(target.host))
        self._literal = self._address is not None

    async def probe(self) -> Observation | None:
        """None where this process itself was kept from its work: then the silence may be its own."""
        try:
            seen = await self._probe()
        except _LateError:
            return None
        self._failing = seen.failure is not None
        return seen

    async def _probe(self) -> Observation:
        address = await self._resolve()
        if address is None:
            return self._observed(None, f"name {self._target.host} does not resolve")
        try:
            answer = await self._ask(address)
        except ConnectionRefusedError:
            return self._observed(address, "connection refused", refused=True)
        except asyncio.TimeoutError as error:
            return self._observed(address, str(error) or "no answer in time")
        except (OSError, ExchangeError) as error:
            return self._observed(address, f"{type(error).__name__}: {error}")
        return read_answer(self._target.pool, answer, self._observed(address, None))

    def _observed(self, address: str | None, failure: str | None, refused: bool = False) -> Observation:
        return Observation(time.monotonic(), address, failure, refused)

    async def _ask(self, address: str) -> Answer:
        asking = Exchange(f"GET {_PATHS[self._target.pool]}", self._target.host)
        connecting = asyncio.get_running_loop().create_connection(lambda: asking, address, self._target.port)
        try:
            await _within(self._pace.connect_seconds, connecting, "no connection")
            return await _within(self._pace.timeout_seconds, asking.answer, "no answer")
        finally:
            asking.abort()

    async def _resolve(self) -> str | None:
        """The newest known address; waits for the name server only while none is known."""
        if self._literal or not self._is_due():
            return self._address
        if self._lookup is None:
            self._lookup = look_up(self._target.host, self._target.port)
        patience = self._pace.timeout_seconds if self._address is None else 0
        await asyncio.wait({self._lookup}, timeout=patience)
        if self._lookup.done():
            found = [] if self._lookup.exception() else self._lookup.result()
            self._lookup = None
            self._looked_up_at = time.monotonic()
            if found and self._address not in found:
                self._address = found[0]
            elif not found and self._failing:
                # Its address may belong to another container by now, which would answer in its name.
                self._address = None
        return self._address

    def _is_due(self) -> bool:
        """At every probe of a peer that fails; one that answers is where it was."""
        old = time.monotonic() - self._looked_up_at >= _LOOK_UP_SECONDS
        return old or self._failing or self._address is None or self._lookup is not None


class _LateError(Exception):
    """A deadline was noticed too late to mean anything."""


async def _within(seconds: float, work: Awaitable[T], otherwise: str) -> T:
    begin = time.monotonic()
    try:
        async with timeout(seconds):
            return await work
    except asyncio.TimeoutError:
        if time.monotonic() - begin > seconds + _LATE_SECONDS:
            raise _LateError from None
        raise asyncio.TimeoutError(f"{otherwise} in {seconds:g} s") from None


def look_up(host: str, port: int) -> asyncio.Future[list[str]]:
    """The host's addresses. In a daemon thread: one that hangs must neither starve the others nor delay the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def deliver(addresses: list[str], error: OSError | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(addresses)
        else:
            future.set_exception(error)

    def work() -> None:
        addresses: list[str] = []
        failure: OSError | None = None
        try:
            addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, addresses, failure)

    threading.Thread(target=work, name=f"lookup-{host}", daemon=True).start()
    return future


def read_answer(pool: str, answer: Answer, seen: Observation) -> Observation:
    """`seen` with what this answer says. A page must say that it is ok: A1111's own ping, `{}`, comes from one that may
    not have loaded anything."""
    bad_status = None if answer.status == 200 else f"{_PATHS[pool]} answered {answer.status}"
    if pool != "webui":
        # Whoever says anything else is no api of ours: the gateway asks it whose key is good.
        return replace(seen, failure=bad_status, answered=answer.status in (200, 503))
    seen = replace(seen, answered=True)
    try:
        facts = json.loads(answer.body)
    except (ValueError, RecursionError):
        facts = None
    status = facts.get("status") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(status, str):
        return replace(seen, failure=bad_status or f"{_PATHS[pool]} answered no status")
    failure = bad_status if status == "ok" else f"{_PATHS[pool]} answered status {status[:_LONGEST_TEXT]!r}"
    fingerprint, load = facts.get("fingerprint"), facts.get("load")
    if not isinstance(load, int):  # an older page, or a foreign one
        load = 0 if facts.get("busy") is None else 1
    return replace(
        seen,
        failure=failure,
        said=status[:_LONGEST_TEXT],
        fingerprint=fingerprint[:_LONGEST_TEXT] if isinstance(fingerprint, str) else "",
        busy=min(max(load, 0), _MOST_LOAD),
    )
