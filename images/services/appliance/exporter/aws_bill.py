"""AWS Cost Explorer's answers as values: the period to ask for, the pages, the account's bill. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

from prometheus_client.core import Metric

from appliance.exporter.families import counter, gauge

METRIC = "UnblendedCost"
MOST_SERVICES = 25
OTHERS = "other"
MOST_AGE_SECONDS = 24 * 3600.0
"""Three times asked in vain."""
Page = Mapping[str, Any]


class BillError(Exception):
    """What came is no answer of GetCostAndUsage."""


@dataclass(frozen=True)
class Bill:
    """US dollars by (service, whether AWS has closed those days); `at`: when it was asked for, in Unix seconds."""

    at: float
    usd: Mapping[tuple[str, bool], float]

    def to_json(self) -> str:
        return json.dumps({"at": self.at, "usd": [[service, final, usd] for (service, final), usd in self.usd.items()]})

    @classmethod
    def parse(cls, text: str | None) -> Bill | None:
        try:
            raw = json.loads(text or "")
            return cls(float(raw["at"]), {(str(s), bool(final)): float(usd) for s, final, usd in raw["usd"]})
        except (ValueError, KeyError, TypeError):
            return None

    def is_of_this_month(self, now: float) -> bool:
        """That of `request`."""
        return _start(today_utc(self.at)) == _start(today_utc(now))

    def is_told(self, now: float) -> bool:
        """An older one would look like what the account costs now for as long as AWS cannot be asked."""
        return abs(now - self.at) < MOST_AGE_SECONDS and self.is_of_this_month(now)


def _start(today: date) -> date:
    return (today - timedelta(days=1)).replace(day=1)


def request(today: date, token: str | None) -> dict[str, Any]:
    """The month that yesterday is in, up to and with yesterday: never empty, and whole on the first of the next one."""
    asked: dict[str, Any] = {
        "TimePeriod": {"Start": _start(today).isoformat(), "End": today.isoformat()},
        "Granularity": "DAILY",
        "Metrics": [METRIC],
        "GroupBy": [{"Type": "DIMENSION", "Key": "SERVICE"}],
    }
    return asked if token is None else {**asked, "NextPageToken": token}


def read_bill(pages: Iterable[Page], at: float) -> Bill:
    """Raises BillError. Beyond the `MOST_SERVICES` dearest ones, services are one."""
    usd: dict[tuple[str, bool], float] = {}
    try:
        for service, final, amount in (entry for page in pages for entry in _entries(page)):
            usd[service, final] = usd.get((service, final), 0.0) + amount
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BillError(f"{error!r}") from error
    return Bill(at, _with_few_services(usd))


def _entries(page: Page) -> Iterator[tuple[str, bool, float]]:
    for day in page["ResultsByTime"]:
        for group in day["Groups"]:
            cost = group["Metrics"][METRIC]
            amount = float(cost["Amount"])
            if cost["Unit"] != "USD" or not math.isfinite(amount):
                raise ValueError(f"{cost!r} is no amount of US dollars")
            yield group["Keys"][0], not day["Estimated"], amount


def _with_few_services(usd: Mapping[tuple[str, bool], float]) -> dict[tuple[str, bool], float]:
    in_all: dict[str, float] = {}
    for (service, _), amount in usd.items():
        in_all[service] = in_all.get(service, 0.0) + amount
    named = set(sorted(in_all, key=lambda service: -in_all[service])[:MOST_SERVICES])
    merged: dict[tuple[str, bool], float] = {}
    for (service, final), amount in usd.items():
        key = (service if service in named else OTHERS, final)
        merged[key] = merged.get(key, 0.0) + amount
    return merged


def bill_families(bill: Bill | None, requests: int, now: float) -> Iterator[Metric]:
    yield counter(
        "animatediff_cost_explorer_requests_total",
        "Pages asked of AWS Cost Explorer, each of which costs 0.01 USD",
        [({}, float(requests))],
    )
    if bill is not None:
        told = bill.usd if bill.is_told(now) else {}
        yield gauge(
            "animatediff_aws_cost_usd",
            "The AWS account's costs of the month that yesterday is in; final: whether AWS has closed those days",
            (({"service": s, "final": str(final).lower()}, usd) for (s, final), usd in told.items()),
        )
        yield gauge("animatediff_aws_cost_updated_timestamp_seconds", "When AWS was asked for that", [({}, bill.at)])


def today_utc(moment: float) -> date:
    return datetime.fromtimestamp(moment, tz=timezone.utc).date()
