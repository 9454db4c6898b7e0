"""AWS Cost Explorer through botocore's own client: its Stubber checks each request and answers as AWS documents it."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any

import botocore.session
import pytest
import pytest_asyncio
from botocore.stub import Stubber
from redis.asyncio import Redis

from appliance import keys
from appliance.exporter import cost_explorer
from appliance.exporter.aws_bill import Bill, request, today_utc
from appliance.exporter.cost_explorer import CostExplorer, CostExplorerError, in_thread, make_client
from appliance.redis_link import RedisLink
from appliance.settings import Secret
from tests.integration.redis_server import RedisServer, redis, redis_server  # noqa: F401

pytestmark = pytest.mark.docker

CREDENTIALS = Secret("[default]\naws_access_key_id = AKIA\naws_secret_access_key = s3cr3t\n")
NOW = 1_763_000_000.0  # 13 November 2025


def page(*groups: tuple[str, str], estimated: bool = False, token: str | None = None) -> dict[str, Any]:
    """One day's answer: service and amount."""
    day = {
        "TimePeriod": {"Start": "2025-11-01", "End": "2025-11-02"},
        "Total": {},
        "Groups": [
            {"Keys": [service], "Metrics": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}}}
            for service, amount in groups
        ],
        "Estimated": estimated,
    }
    return {"ResultsByTime": [day], **({"NextPageToken": token} if token else {})}


class Aws:
    """A client of botocore whose answers are laid out beforehand; one that is asked for too much raises."""

    def __init__(self) -> None:
        self.client: Any = botocore.session.Session().create_client(
            "ce", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        self.stubber = Stubber(self.client)

    def answers(self, answer: dict[str, Any], token: str | None = None) -> None:
        self.stubber.add_response("get_cost_and_usage", answer, request(today_utc(NOW), token))

    def fails(self, code: str, status: int = 400, token: str | None = None) -> None:
        self.stubber.add_client_error(
            "get_cost_and_usage", code, "on purpose", status, expected_params=request(today_utc(NOW), token)
        )


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Aws:
    monkeypatch.setattr(cost_explorer, "FIRST_WAIT_SECONDS", 0.01)
    return Aws()


@pytest_asyncio.fixture
async def explorer(aws: Aws, redis: Redis, redis_server: RedisServer) -> AsyncIterator[CostExplorer]:
    link = RedisLink(redis_server.settings)
    with aws.stubber:
        yield CostExplorer(link, lambda: aws.client)
    await link.close()


async def test_all_pages_make_one_bill(aws: Aws, explorer: CostExplorer, redis: Redis) -> None:
    aws.answers(page(("Amazon EC2", "10.25"), ("Amazon S3", "0.5"), token="two"))
    aws.answers(page(("Amazon EC2", "1.75"), token="three"), "two")
    aws.answers(page(("Amazon EC2", "4"), estimated=True), "three")
    bill = await explorer.ask(NOW)
    assert bill == Bill(NOW, {("Amazon EC2", True): 12.0, ("Amazon S3", True): 0.5, ("Amazon EC2", False): 4.0})
    assert explorer.requests == 3
    assert await redis.hget(keys.AWS_COST, "requests") == "3", "each page costs"
    aws.stubber.assert_no_pending_responses()


async def test_throttling_in_the_middle_goes_on_where_it_was(aws: Aws, explorer: CostExplorer) -> None:
    aws.answers(page(("Amazon EC2", "1"), token="two"))
    aws.fails("ThrottlingException", token="two")
    aws.fails("LimitExceededException", token="two")
    aws.answers(page(("Amazon EC2", "2")), "two")
    bill = await explorer.ask(NOW)
    assert bill.usd == {("Amazon EC2", True): 3.0}
    assert explorer.requests == 4


async def test_a_moments_trouble_of_aws_is_waited_for(aws: Aws, explorer: CostExplorer) -> None:
    aws.fails("InternalFailure", status=500)
    aws.fails("ServiceUnavailable", status=503)
    aws.answers(page(("Amazon EC2", "2")))
    assert (await explorer.ask(NOW)).usd == {("Amazon EC2", True): 2.0}


async def test_what_is_asked_wrongly_is_not_asked_again(aws: Aws, explorer: CostExplorer) -> None:
    aws.fails("ValidationException")
    with pytest.raises(CostExplorerError, match="ValidationException"):
        await explorer.ask(NOW)
    assert explorer.requests == 1


async def test_throttling_without_end_is_given_up(aws: Aws, explorer: CostExplorer) -> None:
    for _ in range(cost_explorer.MOST_TRIES):
        aws.fails("ThrottlingException")
    with pytest.raises(CostExplorerError, match="in 6 tries"):
        await explorer.ask(NOW)
    aws.stubber.assert_no_pending_responses()


async def test_who_may_not_ask_is_told_what_is_missing(aws: Aws, explorer: CostExplorer) -> None:
    aws.fails("AccessDeniedException")
    with pytest.raises(CostExplorerError, match="needs valid keys, and leave for ce:GetCostAndUsage"):
        await explorer.ask(NOW)
    assert explorer.requests == 1, "it would not be let in the next time either"


@pytest.mark.parametrize("tokens", [["same"] * 3, [str(number) for number in range(60)]], ids=["a ring", "no end"])
async def test_pages_that_do_not_end(aws: Aws, explorer: CostExplorer, tokens: list[str]) -> None:
    before: str | None = None
    for token in tokens:
        aws.answers(page(("Amazon EC2", "1"), token=token), before)
        before = token
    with pytest.raises(CostExplorerError, match="pages do not end"):
        await explorer.ask(NOW)
    assert explorer.requests <= cost_explorer.MOST_PAGES


async def test_another_currency_is_no_bill(aws: Aws, explorer: CostExplorer) -> None:
    answer = page(("Amazon EC2", "1"))
    answer["ResultsByTime"][0]["Groups"][0]["Metrics"]["UnblendedCost"]["Unit"] = "EUR"
    aws.answers(answer)
    with pytest.raises(CostExplorerError, match="cannot be understood"):
        await explorer.ask(NOW)


# --- four times a day ------------------------------------------------------------------------------------------------


class Counted:
    """In the client's place; counts how often it is asked."""

    def __init__(self, answer: Callable[[], dict[str, Any]]) -> None:
        self.asked = 0
        self._answer = answer

    def get_cost_and_usage(self, **_: Any) -> dict[str, Any]:
        self.asked += 1
        return self._answer()


@contextmanager
def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(cost_explorer.time, "time", lambda: NOW + seconds)
        yield


async def test_a_restart_asks_nothing_that_is_known(
    redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.settings)
    client = Counted(lambda: page(("Amazon EC2", "1")))
    for start, asked in ((0.0, 1), (60.0, 1), (6 * 3600.0 - 60, 1), (6 * 3600.0 + 1, 2)):
        explorer = CostExplorer(link, lambda: client)
        with at(monkeypatch, start):
            await explorer._look()
        assert client.asked == asked, start
        assert explorer.bill is not None
        assert explorer.requests == asked
    await link.close()


async def test_in_a_new_month_the_bill_of_the_old_one_is_not_waited_with(
    redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the second day, as the first one asks for the whole month before."""
    link = RedisLink(redis_server.settings)
    client = Counted(lambda: page(("Amazon EC2", "1")))
    the_second = 1_764_633_600.0 - NOW  # 2 December 2025, 00:00
    for start, asked in ((-3600.0, 1), (-60.0, 1), (60.0, 2), (3600.0, 2)):
        with at(monkeypatch, the_second + start):
            await CostExplorer(link, lambda: client)._look()
        assert client.asked == asked, start
    await link.close()


async def test_a_clock_that_was_a_year_ahead_does_not_keep_it_from_asking(
    redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.settings)
    client = Counted(lambda: page(("Amazon EC2", "1")))
    for start in (365 * 86400.0, 0.0):
        with at(monkeypatch, start):
            await CostExplorer(link, lambda: client)._look()
    assert client.asked == 2
    await link.close()


async def test_one_that_dies_while_it_asks_does_not_ask_at_every_start(
    redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.settings)

    def die() -> dict[str, Any]:
        raise KeyboardInterrupt

    client = Counted(die)
    explorer = CostExplorer(link, lambda: client)
    monkeypatch.setattr(cost_explorer, "in_thread", lambda work: _as_it_is(work))
    with at(monkeypatch, 0), pytest.raises(KeyboardInterrupt):
        await explorer._look()
    for start, asked in ((1.0, 1), (600.0, 1), (1000.0, 2)):
        with at(monkeypatch, start):
            try:
                await CostExplorer(link, lambda: client)._look()
            except KeyboardInterrupt:
                assert asked == 2
        assert client.asked == asked, start
    await link.close()


async def _as_it_is(work: Callable[[], Any]) -> Any:
    return work()


async def test_a_failure_keeps_the_old_bill_and_rests(
    redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_server.settings)
    aws = Aws()
    with aws.stubber:
        explorer = CostExplorer(link, lambda: aws.client)
        aws.answers(page(("Amazon EC2", "1")))
        with at(monkeypatch, 0):
            await explorer._look()
        aws.fails("AccessDeniedException")
        for start in (6 * 3600.0 + 1, 6 * 3600.0 + 100, 12 * 3600.0 - 100):
            with at(monkeypatch, start):
                await explorer._look()
        aws.stubber.assert_no_pending_responses()
    assert explorer.bill is not None
    assert explorer.bill.usd == {("Amazon EC2", True): 1.0}
    assert explorer.requests == 2
    await link.close()


# --- credentials -----------------------------------------------------------------------------------------------------


def test_a_client_of_the_given_credentials_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody else's")
    client: Any = make_client(CREDENTIALS)
    assert client._request_signer._credentials.access_key == "AKIA"
    assert client.meta.endpoint_url == "https://ce.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    "text", ["", "[other]\n", "[default]\naws_access_key_id = a\n", "no file of the kind", "[default]\n[default]\n"]
)
def test_credentials_that_are_none(text: str) -> None:
    with pytest.raises(CostExplorerError, match="lacks a section"):
        make_client(Secret(text))


async def test_nobody_waits_for_a_thread_that_hangs() -> None:
    """The process ends without it, and one that was given up says nothing more."""
    task = asyncio.create_task(in_thread(lambda: time.sleep(0.2)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.3)
    with pytest.raises(ValueError, match="on purpose"):
        await in_thread(_raise)


def _raise() -> None:
    raise ValueError("on purpose")
