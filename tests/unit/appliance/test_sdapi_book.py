"""What the replicas note of a user's A1111 calls."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from appliance.api.sdapi_book import ENDED_KEPT, Book


class Notes:
    """Redis's hash, with a moment between any two commands."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def notes(self, _: str) -> dict[str, str]:
        await asyncio.sleep(0)
        return dict(self.kept)

    async def put_note(self, _: str, name: str, text: str) -> None:
        await asyncio.sleep(0)
        self.kept[name] = text

    async def drop_notes(self, _: str, *names: str) -> None:
        await asyncio.sleep(0)
        for name in names:
            self.kept.pop(name, None)


async def test_of_calls_that_end_at_the_same_time_every_end_is_remembered() -> None:
    services: Any = SimpleNamespace(queue=Notes(), stopping=asyncio.Event())
    replicas = [Book(services) for _ in range(3)]
    ends = [f"task{number}" for number in range(9)]
    await asyncio.gather(*(replicas[index % 3].remember_end("ada", task) for index, task in enumerate(ends)))
    assert sorted(await replicas[0].ended("ada")) == ends
    for number in range(2 * ENDED_KEPT):
        await replicas[0].remember_end("ada", f"later{number}")
    assert await replicas[1].ended("ada") == [f"later{number}" for number in range(ENDED_KEPT, 2 * ENDED_KEPT)]
