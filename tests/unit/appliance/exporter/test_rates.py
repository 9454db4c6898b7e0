from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from appliance.errors import QueueUnavailable
from appliance.exporter import main
from appliance.lifecycle import cancel_tasks, start_task

KNOWN = {"gpu-01/0": "1.0 A10G", "gpu-01/1": "1.0 A10G"}


class Figures:
    """Stands for the exporter, which learns of its GPUs one by one, and for a queue that is not there at first."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, str]] = []
        self.all_told = asyncio.Event()

    def rates(self) -> dict[str, str]:
        return dict(list(KNOWN.items())[: len(self.told)])

    async def put_rates(self, rates: Mapping[str, str]) -> None:
        self.told.append(rates)
        if len(self.told) == 1:
            raise QueueUnavailable("not yet")
        if rates == KNOWN:
            self.all_told.set()


async def test_rates_are_told_soon_until_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "RATES_SECONDS", 3600)
    monkeypatch.setattr(main, "MISSING_RATES_SECONDS", 0.01)
    figures = Figures()
    keeping = start_task("rates", main._keep_rates(cast(Any, figures), cast(Any, figures), len(KNOWN)))
    try:
        await asyncio.wait_for(figures.all_told.wait(), 5)
        await asyncio.sleep(0.1)
        assert [len(rates) for rates in figures.told] == [0, 1, 2]
    finally:
        await cancel_tasks(keeping)
