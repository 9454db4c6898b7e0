from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest

from appliance.exporter.aws_bill import (
    MOST_SERVICES,
    OTHERS,
    Bill,
    BillError,
    bill_families,
    read_bill,
    request,
    today_utc,
)
from appliance.exporter.families import write
from appliance.exporter.prices import Price, PriceTable, price_families, rates

SPOT = {"usd_per_hour": 1.2, "market": "spot", "as_of": "2025-11-01"}
OWNED = {"usd_per_hour": 6, "market": "owned", "as_of": "2025-10-01"}
GPUS = PriceTable.parse({"gpus": {"NVIDIA A10G": SPOT, "h200": OWNED}})


def test_a_table() -> None:
    assert GPUS.of_gpu("a10g") == Price(1.2, "spot", date(2025, 11, 1))
    assert GPUS.of_gpu("NVIDIA H200") == Price(6.0, "owned", date(2025, 10, 1))
    assert GPUS.of_gpu("NVIDIA L4") is None
    assert PriceTable.parse({}) == PriceTable()


@pytest.mark.parametrize(
    "changes",
    [{"usd_per_hour": -1}, {"usd_per_hour": "x"}, {"usd_per_hour": 1e9}, {"market": 'a"b'}, {"as_of": "yesterday"}],
)
def test_what_is_no_price(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PriceTable.parse({"host": {**SPOT, **changes}})


def test_each_worker_has_its_gpus_price() -> None:
    models = {"a/0": "NVIDIA A10G", "a/1": "NVIDIA L4", "a/2": None}
    assert rates(GPUS, models) == {"a/0": "1.200000 NVIDIA A10G", "a/1": "0.000000 NVIDIA L4"}


def test_the_price_of_a_host_falls_to_its_workers_in_equal_parts() -> None:
    table = PriceTable.parse({"host": OWNED, "gpus": {"a10g": SPOT}})
    assert rates(table, {"a/0": "NVIDIA A10G", "a/1": "cpu"}) == {"a/0": "3.000000 NVIDIA A10G", "a/1": "3.000000 cpu"}


def test_a_model_without_a_name_is_no_broken_rate() -> None:
    assert rates(GPUS, {"a/0": "\t"}) == {"a/0": "0.000000 unknown"}


def prices(table: PriceTable, *models: str) -> str:
    return write(price_families(table, models), {"node_name": "a"}).decode()


def test_what_a_host_costs() -> None:
    text = prices(GPUS, "NVIDIA A10G", "NVIDIA A10G", "H200", "L4")
    assert 'animatediff_node_price_usd_per_hour{node_name="a",source="spot"} 2.4' in text
    assert 'animatediff_node_price_usd_per_hour{node_name="a",source="owned"} 6.0' in text
    assert 'animatediff_node_price_as_of_timestamp_seconds{node_name="a",source="spot"} 1.7619552e+09' in text
    assert prices(PriceTable(), "NVIDIA A10G") == ""
    host = prices(PriceTable.parse({"host": OWNED, "gpus": {"a10g": SPOT}}), "A10G")
    assert 'source="owned"} 6.0' in host
    assert "spot" not in host


# --- AWS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("today", "start"), [("2025-11-02", "2025-11-01"), ("2025-11-30", "2025-11-01"), ("2025-12-01", "2025-11-01"),
                         ("2026-01-01", "2025-12-01"), ("2028-03-01", "2028-02-01")],
)  # fmt: skip
def test_the_period_is_never_empty(today: str, start: str) -> None:
    asked = request(date.fromisoformat(today), None)
    assert asked["TimePeriod"] == {"Start": start, "End": today}
    assert "NextPageToken" not in asked
    assert request(date.fromisoformat(today), "t")["NextPageToken"] == "t"


def page(*groups: tuple[str, object], estimated: object = False, unit: str = "USD") -> dict[str, Any]:
    listed = [{"Keys": [s], "Metrics": {"UnblendedCost": {"Amount": a, "Unit": unit}}} for s, a in groups]
    return {"ResultsByTime": [{"Groups": listed, "Estimated": estimated}]}


def test_days_and_pages_add_up() -> None:
    bill = read_bill([page(("EC2", "1.5"), ("S3", "-0.25")), page(("EC2", "2")), page(("EC2", "1"), estimated=True)], 7)
    assert bill == Bill(7, {("EC2", True): 3.5, ("S3", True): -0.25, ("EC2", False): 1.0})


def test_services_beyond_the_dearest_are_one() -> None:
    bill = read_bill([page(*((f"service {number}", str(number)) for number in range(100)))], 0)
    assert len(bill.usd) == MOST_SERVICES + 1
    assert bill.usd[OTHERS, True] == sum(range(100 - MOST_SERVICES))
    assert bill.usd["service 99", True] == 99


@pytest.mark.parametrize(
    "answer",
    [{}, {"ResultsByTime": [{}]}, page(("EC2", "x")), page(("EC2", "NaN")), page(("EC2", None)),
     page(("EC2", "1"), unit="EUR"),
     {"ResultsByTime": None}, {"ResultsByTime": [{"Groups": [{"Keys": []}], "Estimated": False}]}],
)  # fmt: skip
def test_what_is_no_bill(answer: dict[str, Any]) -> None:
    with pytest.raises(BillError):
        read_bill([answer], 0)


def test_a_bill_outlives_its_process() -> None:
    bill = Bill(7.5, {("EC2", True): 3.5, ("EC2", False): 1.0})
    assert Bill.parse(bill.to_json()) == bill
    for text in (None, "", "{", "[]", "null", json.dumps({"at": "x", "usd": []}), json.dumps({"at": 1, "usd": [1]})):
        assert Bill.parse(text) is None


def test_what_is_told_of_it() -> None:
    text = write(bill_families(Bill(7, {("EC2", True): 3.5, ("EC2", False): 1}), 4, 8), {"node_name": "a"}).decode()
    assert 'animatediff_aws_cost_usd{final="true",node_name="a",service="EC2"} 3.5' in text
    assert 'animatediff_aws_cost_usd{final="false",node_name="a",service="EC2"} 1.0' in text
    assert 'animatediff_cost_explorer_requests_total{node_name="a"} 4.0' in text
    assert "aws_cost" not in write(bill_families(None, 0, 8), {}).decode()


def moment(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


@pytest.mark.parametrize(
    ("asked", "now", "is_told"),
    [
        ("2025-11-13 02:00", "2025-11-13 02:00", True),
        ("2025-11-13 02:00", "2025-11-14 01:59", True),  # three times in vain
        ("2025-11-13 02:00", "2025-11-14 02:00", False),
        ("2025-11-13 02:00", "2026-11-13 02:00", False),
        ("2025-11-30 23:00", "2025-12-01 22:00", True),  # the month that yesterday is in has not changed
        ("2025-12-01 23:00", "2025-12-01 23:59", True),
        ("2025-12-01 23:00", "2025-12-02 00:00", False),  # it is November's, whole
        ("2025-11-13 02:00", "2025-11-13 01:59", True),  # clocks differ
        ("2025-11-20 02:00", "2025-11-13 02:00", False),
    ],
)
def test_a_bill_is_told_while_it_is_one_of_today(asked: str, now: str, is_told: bool) -> None:
    bill = Bill(moment(asked), {("EC2", True): 3.5})
    told = {family.name: [sample.value for sample in family.samples] for family in bill_families(bill, 4, moment(now))}
    assert told["animatediff_aws_cost_usd"] == ([3.5] if is_told else [])
    assert told["animatediff_aws_cost_updated_timestamp_seconds"] == [bill.at], "by which its age is judged"
    assert told["animatediff_cost_explorer_requests"] == [4.0]


def test_days_are_those_of_aws() -> None:
    assert today_utc(1_763_000_000.0) == date(2025, 11, 13)
