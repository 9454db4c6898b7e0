"""Ends a process that has lost Redis for good: a fresh one looks everything up again, addresses and secrets too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appliance.logs import fields
from appliance.redis_link import RedisLink

log = logging.getLogger(__name__)
EXIT_CODE = 69
"""EX_UNAVAILABLE of sysexits.h."""
LOOK_SECONDS = 1.0
LOOK_SHARE = 0.2


async def watch_redis(link: RedisLink, seconds: float, busy: Callable[[], bool] = lambda: False) -> None:
    """Returns when nothing has worked for `seconds`, with the reason in the log; 0: never.

    While `busy()` (an agent with a job, whose work would be lost) the time does not run.
    """
    if seconds <= 0:
        await asyncio.Event().wait()
    since = link.last_success
    while True:
        await asyncio.sleep(min(LOOK_SECONDS, seconds * LOOK_SHARE))
        now = time.monotonic()
        since = now if busy() else max(since, link.last_success)
        if now - since > seconds:
            log.error(
                "no Redis operation has succeeded for %.0f s: ending, so that the container starts afresh",
                now - since,
                extra=fields(event="redis_watchdog", reason="UNKNOWN"),
            )
            return
