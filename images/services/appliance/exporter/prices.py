"""What a host costs by cluster.yaml's price table, and what of it falls to each of its workers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import Any

from prometheus_client.core import Metric

from appliance.exporter.families import gauge
from appliance.queue.counts import label_text

NO_GPU = "cpu"
_MARKET = re.compile(r"[a-z][a-z-]{0,30}")


@dataclass(frozen=True)
class Price:
    usd_per_hour: float
    market: str
    as_of: date

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Price:
        """Raises ValueError, KeyError or TypeError."""
        price = cls(float(raw["usd_per_hour"]), str(raw["market"]), date.fromisoformat(raw["as_of"]))
        if not 0 <= price.usd_per_hour < 1e6 or not _MARKET.fullmatch(price.market):
            raise ValueError(f"{raw!r} is no price")
        return price


@dataclass(frozen=True)
class PriceTable:
    """`host` is the price of the whole machine, and counts before those of its GPUs by their models."""

    host: Price | None = None
    gpus: Mapping[str, Price] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> PriceTable:
        """Raises ValueError, KeyError, TypeError or AttributeError."""
        host = raw.get("host")
        gpus = {_plain(model): Price.parse(price) for model, price in raw.get("gpus", {}).items()}
        return cls(None if host is None else Price.parse(host), gpus)

    def of_gpu(self, model: str) -> Price | None:
        return self.gpus.get(_plain(model))


def rates(table: PriceTable, models: Mapping[str, str | None]) -> dict[str, str]:
    """For `FigureBook.put_rates`. `models`: each of the host's workers → its GPU's model; one whose model is not known
    now keeps the rate that it has."""
    return {
        worker: f"{_share(table, model, len(models)):.6f} {label_text(model) or 'unknown'}"
        for worker, model in models.items()
        if model is not None
    }


def _share(table: PriceTable, model: str, workers: int) -> float:
    if table.host is not None:
        return table.host.usd_per_hour / workers
    price = table.of_gpu(model)
    return price.usd_per_hour if price else 0.0


def price_families(table: PriceTable, models: Sequence[str]) -> Iterator[Metric]:
    """`models`: those of all GPUs of the host, as far as they are known."""
    prices = [table.host] if table.host else [price for model in models if (price := table.of_gpu(model))]
    by_market: dict[str, list[Price]] = {}
    for price in prices:
        by_market.setdefault(price.market, []).append(price)
    yield gauge(
        "animatediff_node_price_usd_per_hour",
        "What this host costs by cluster.yaml; source: the market that the price is of",
        (({"source": market}, sum(price.usd_per_hour for price in some)) for market, some in by_market.items()),
    )
    yield gauge(
        "animatediff_node_price_as_of_timestamp_seconds",
        "The day of the oldest of those prices",
        (({"source": market}, min(_moment(price.as_of) for price in some)) for market, some in by_market.items()),
    )


def _moment(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()


def _plain(model: str) -> str:
    """NVML says `NVIDIA A10G`, people say `A10G`."""
    return model.casefold().removeprefix("nvidia ").strip()
