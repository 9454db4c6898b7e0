"""What the Sentinels say: who is master, and whether they are about to make another one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions as wire
from async_timeout import timeout
from redis.asyncio import Redis

from appliance.errors import QueueUnavailable
from appliance.settings import Address

log = logging.getLogger(__name__)
ANSWER_SECONDS = 1.0
STRAGGLER_SECONDS = 0.1
"""How long a search for the master waits for the rest once a majority has answered."""
PAUSE_SECONDS = 1.0
"""How long one that did not answer is left alone; after that it is asked, but nobody waits for it."""
CHANGING = frozenset({"o_down", "failover_in_progress"})


@dataclass(frozen=True)
class View:
    """One Sentinel's answer."""

    epoch: int
    master: Address
    in_doubt: bool
    """Whether this Sentinel is about to replace `master`, or agrees with others that it is down."""


class Sentinels:
    def __init__(self, addresses: Sequence[Address], name: str, connect: Callable[[Address], Redis]) -> None:
        self._addresses = tuple(addresses)
        self._name = name
        self._connect = connect
        self._clients: dict[Address, Redis] = {}
        self._silent_until: dict[Address, float] = {}
        self._asking: set[asyncio.Task[View | None]] = set()
        self._running: asyncio.Task[list[View]] | None = None
        self._queued: asyncio.Task[list[View]] | None = None

    async def master(self) -> Address:
        """Asks all and believes the highest configuration epoch: an isolated Sentinel still names the old master."""
        views = await self._first_answers()
        if not views:
            asked = ", ".join(str(address) for address in self._addresses)
            raise QueueUnavailable(f"no Sentinel knows {self._name!r} (asked {asked})")
        return max(views, key=lambda view: view.epoch).master

    async def confirm(self, master: Address) -> None:
        """Raises QueueUnavailable unless most name `master`, nobody knows a later one and nobody is replacing it.

        Between the promotion of one replica and the redirection of the other, about a second, a master that was only
        frozen goes on with the other one: it acknowledges (WAIT) writes that the new master will never have. The
        Sentinel that leads a failover knows of it from before its beginning. One that was cut off from its peers names
        the master of an earlier epoch: it counts as silent.
        """
        views = await self._later_survey()
        agreeing = [view for view in views if view.master == master]
        known = max((view.epoch for view in agreeing), default=-1)
        if any(view.in_doubt for view in agreeing) or any(
            view.master != master and view.epoch >= known for view in views
        ):
            raise QueueUnavailable(f"Redis at {master} is being replaced")
        if 2 * len(agreeing) <= len(self._addresses):
            raise QueueUnavailable(
                f"only {len(agreeing)} of {len(self._addresses)} Sentinels stand by Redis at {master}"
            )

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any] | None] = [self._running, self._queued, *self._asking]
        pending = {task for task in tasks if task is not None and not task.done()}
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for address in list(self._clients):
            await self._forget(address)

    async def _later_survey(self) -> list[View]:
        """One that starts from now on. Whoever asks while one is under way shares the next."""
        if self._queued is None:
            self._queued = asyncio.create_task(self._after(self._running), name="ask the Sentinels")
        return await asyncio.shield(self._queued)

    async def _after(self, running: asyncio.Task[list[View]] | None) -> list[View]:
        if running is not None:
            await asyncio.wait({running})
        self._running, self._queued = self._queued, None
        return await self._survey()

    async def _first_answers(self) -> list[View]:
        """A majority's and those of the quick: a lost Sentinel must not hold up the search for the master."""
        pending = {self._start(address) for address in self._addresses}
        done: set[asyncio.Task[View | None]] = set()
        while pending and 2 * len(_views(done)) <= len(self._addresses):
            more, pending = await asyncio.wait(pending, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not more:
                break
            done |= more
        if pending:
            more, _ = await asyncio.wait(pending, timeout=STRAGGLER_SECONDS)
            done |= more
        return _views(done)

    async def _survey(self) -> list[View]:
        """Everybody's but of those that were silent the last time; these are asked for the next survey."""
        now = time.monotonic()
        expected = {self._start(address) for address in self._addresses if address not in self._silent_until}
        for address, until in list(self._silent_until.items()):
            if until <= now:
                self._silent_until[address] = now + PAUSE_SECONDS
                self._start(address)
        # Bounded here as well: what ends a call to a Sentinel that is gone may itself not end.
        return _views((await asyncio.wait(expected, timeout=ANSWER_SECONDS))[0]) if expected else []

    def _start(self, address: Address) -> asyncio.Task[View | None]:
        task = asyncio.create_task(self._ask(address), name=f"ask Sentinel {address}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _ask(self, address: Address) -> View | None:
        try:
            async with timeout(ANSWER_SECONDS - 0.1):
                view = await self._view(address)
        except (wire.RedisError, OSError, asyncio.TimeoutError, LookupError, TypeError, ValueError) as error:
            log.debug("Sentinel %s: %s", address, error or type(error).__name__)
            self._silent_until[address] = time.monotonic() + PAUSE_SECONDS
            await self._forget(address)
            return None
        self._silent_until.pop(address, None)
        return view

    async def _view(self, address: Address) -> View:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command("SENTINEL", "MASTER", self._name)
        pipeline.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        raw, named = await pipeline.execute()
        facts: dict[str, Any] = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=False))
        # The second answer names a promoted replica as soon as it is one, and the epoch rises with it; the first
        # speaks of the old master for a second more, flags included.
        master, old = Address(str(named[0]), int(named[1])), Address(str(facts["ip"]), int(facts["port"]))
        in_doubt = master == old and bool(CHANGING & set(str(facts["flags"]).split(",")))
        return View(int(facts["config-epoch"]), master, in_doubt)

    async def _forget(self, address: Address) -> None:
        client = self._clients.pop(address, None)
        if client is not None:
            await close_quietly(client)


def _views(tasks: Iterable[asyncio.Task[View | None]]) -> list[View]:
    return [view for task in tasks if not task.cancelled() and (view := task.result()) is not None]


async def close_quietly(client: Redis) -> None:
    try:
        async with timeout(1.0):
            await client.aclose()
    except (wire.RedisError, OSError, asyncio.TimeoutError, RuntimeError) as error:
        log.debug("closing a Redis client: %s", error)
