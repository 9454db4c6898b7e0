"""Asking Redis until it answers: the end of an attempt has to be told, however long that takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from appliance.errors import QueueError, QueueUnavailable, UnsafeRedis
from appliance.logs import OnceUntilChanged

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_FIRST_SECONDS = 0.2
RETRY_MOST_SECONDS = 3.0
RETRY_TOTAL_SECONDS = 3600.0
LAST_WORDS_SECONDS = 3.0


class GaveUp(QueueUnavailable):
    """Redis did not answer for as long as this process could wait; the lease and COMMIT speak for the job."""


async def ask_until_answered(ask: Callable[[], Awaitable[T]], stopping: asyncio.Event, about: dict[str, object]) -> T:
    """Raises GaveUp; a process that is being stopped does so a little after it was asked to."""
    said = OnceUntilChanged(log)
    pause = RETRY_FIRST_SECONDS
    limit = time.monotonic() + RETRY_TOTAL_SECONDS
    stopping_at: float | None = None
    while True:
        try:
            return await ask()
        except (QueueUnavailable, UnsafeRedis) as error:
            now = time.monotonic()
            if stopping.is_set():
                stopping_at = stopping_at or now
            if now > limit or (stopping_at is not None and now - stopping_at > LAST_WORDS_SECONDS):
                raise GaveUp(f"Redis did not answer in time: {error}") from error
            said.failing(f"Redis does not answer, asking again: {error}", **about)
        except QueueError as error:
            raise GaveUp(str(error)) from error
        await asyncio.sleep(pause)
        pause = min(pause * 2, RETRY_MOST_SECONDS)
