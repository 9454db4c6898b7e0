"""What this process uses, told through Redis: containers cannot see each other, and the exporter is one of them.

A field of the host's own hash, `<CPU seconds> <resident bytes> <Unix time>`: writer and reader have the same clock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueError
from appliance.redis_link import RedisLink

log = logging.getLogger(__name__)
TELL_SECONDS = 5.0
STALE_SECONDS = 3 * TELL_SECONDS
FORGET_SECONDS = 3600
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class ProcessFigures:
    cpu_seconds: float
    resident_bytes: int
    at: float

    def to_text(self) -> str:
        return f"{self.cpu_seconds:.3f} {self.resident_bytes} {self.at:.3f}"

    @classmethod
    def parse(cls, text: str, now: float) -> ProcessFigures | None:
        """None for what is no such text, and for those of a process that has been silent for `STALE_SECONDS`."""
        try:
            cpu, resident, at = text.split(" ")
            figures = cls(float(cpu), int(resident), float(at))
        except ValueError:
            return None
        return figures if abs(now - figures.at) <= STALE_SECONDS else None


def own_figures() -> ProcessFigures:
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    return ProcessFigures(time.process_time(), pages * os.sysconf("SC_PAGE_SIZE"), time.time())


async def tell_process(link: RedisLink, node_name: str, service: str) -> None:
    """For as long as the process lives; a Redis that is away is told again when it is back."""
    key = keys.processes(node_name)

    async def write(client: Redis) -> None:
        pipeline = client.pipeline(transaction=False)
        pipeline.hset(key, service, own_figures().to_text())
        pipeline.expire(key, FORGET_SECONDS)
        await pipeline.execute()

    while True:
        try:
            await link.run(write)
        except QueueError as error:
            log.debug("own figures not told: %s", error)
        except Exception:
            log.exception("telling this process's figures failed")
        await asyncio.sleep(TELL_SECONDS)
