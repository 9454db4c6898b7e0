"""Asks AWS Cost Explorer four times a day. Each page costs money: what is known stays in Redis over restarts, and what
fails is asked for again later and later."""

from __future__ import annotations

import asyncio
import configparser
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from redis.asyncio import Redis

from appliance import keys
from appliance.errors import ApplianceError, QueueError
from appliance.exporter.aws_bill import Bill, BillError, Page, read_bill, request, today_utc
from appliance.logs import OnceUntilChanged, fields
from appliance.redis_link import RedisLink
from appliance.settings import Secret

log = logging.getLogger(__name__)
T = TypeVar("T")
PERIOD_SECONDS = 6 * 3600.0
LOOK_SECONDS = 60.0
# A process that dies while it asks must not ask at every start.
LEAST_PAUSE_SECONDS = 15 * 60.0
MOST_PAGES = 40
FIRST_WAIT_SECONDS, MOST_TRIES = 30.0, 6
REGION = "us-east-1"  # where Cost Explorer is, for all regions
THROTTLED = ("ThrottlingException", "TooManyRequestsException", "LimitExceededException", "RequestLimitExceeded")
DENIED = ("AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException",
          "InvalidClientTokenId")  # fmt: skip


class CostExplorerError(ApplianceError):
    """AWS gave no bill; the text says what to do where something can be done."""


class Client(Protocol):
    def get_cost_and_usage(self, **asked: Any) -> Page: ...


def make_client(credentials: Secret) -> Client:
    """`credentials`: the text of a credentials file with a section [default]. Nothing else of the machine is looked
    at. Raises CostExplorerError."""
    import botocore.session  # 40 MB of memory: only who asks AWS has them
    from botocore.config import Config

    default = _default_section(credentials)
    session = botocore.session.Session()
    # Our own tries wait longer, and are counted.
    config = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1})
    client = session.create_client(
        "ce",
        region_name=REGION,
        config=config,
        aws_access_key_id=default["aws_access_key_id"],
        aws_secret_access_key=default["aws_secret_access_key"],
        aws_session_token=default.get("aws_session_token"),
    )
    return cast("Client", client)


def _default_section(credentials: Secret) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(credentials.reveal())
        section = dict(parser["default"])
        section["aws_access_key_id"], section["aws_secret_access_key"]
    except (configparser.Error, KeyError):
        what = "a section [default] with aws_access_key_id and aws_secret_access_key"
        raise CostExplorerError(f"the file of cost.aws_credentials lacks {what}") from None
    return section


class CostExplorer:
    """`bill` and `requests` are what is known now; `run` keeps them so."""

    def __init__(self, link: RedisLink, make: Callable[[], Client]) -> None:
        self._link, self._make = link, make
        self._condition = OnceUntilChanged(log)
        self.bill: Bill | None = None
        self.requests = 0

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except QueueError as error:  # without what is remembered there, each restart would cost
                log.debug("not asking AWS without Redis: %s", error)
            except Exception:
                log.exception("asking AWS failed")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        known = await self._link.run(lambda client: _known(client))
        self.bill = Bill.parse(known.get("bill")) or self.bill
        self.requests = max(self.requests, int(known.get("requests", 0)))
        now = time.time()
        if self._has_fresh(now) or 0 <= now - float(known.get("asked_at", 0)) < float(known.get("pause", 0)):
            return
        await self._remember({"asked_at": str(now), "pause": str(LEAST_PAUSE_SECONDS)})
        try:
            bill = await self.ask(now)
        except CostExplorerError as error:
            self._condition.failing(f"no bill from AWS: {error}", event="aws_failed")
            await self._remember({"pause": str(PERIOD_SECONDS)})
            return
        self.bill = bill
        await self._remember({"bill": bill.to_json(), "pause": "0"})
        self._condition.fine("AWS tells its costs again", event="aws_works")

    def _has_fresh(self, now: float) -> bool:
        """A time to come is that of a clock which was wrong: it must not keep anybody from asking."""
        bill = self.bill
        return bill is not None and 0 <= now - bill.at < PERIOD_SECONDS and bill.is_of_this_month(now)

    async def ask(self, now: float) -> Bill:
        """All pages of one answer; raises CostExplorerError."""
        client = await in_thread(self._make)
        pages: list[Page] = []
        tokens: set[str] = set()
        while True:
            token = pages[-1].get("NextPageToken") if pages else None
            pages.append(await self._page(client, request(today_utc(now), token)))
            following = pages[-1].get("NextPageToken")
            if not following:
                break
            if following in tokens or len(pages) >= MOST_PAGES:
                raise CostExplorerError(f"its pages do not end (asked for {len(pages)})")
            tokens.add(following)
        try:
            return read_bill(pages, now)
        except BillError as error:
            raise CostExplorerError(f"its answer cannot be understood: {error}") from error

    async def _page(self, client: Client, asked: dict[str, Any]) -> Page:
        for number in range(MOST_TRIES):
            await self._count_request()
            try:
                return await in_thread(lambda: client.get_cost_and_usage(**asked))
            except Exception as error:
                code = _code_of(error)
                if code in DENIED:
                    needed = "the user of cost.aws_credentials needs valid keys, and leave for ce:GetCostAndUsage"
                    raise CostExplorerError(f"{code}; {needed}") from error
                if code is not None and code not in THROTTLED and _status_of(error) < 500:
                    raise CostExplorerError(f"{code}: {error}") from error
                log.info("AWS: %s, trying again later", code or error, extra=fields(event="aws_again"))
            await asyncio.sleep(FIRST_WAIT_SECONDS * 2**number * random.uniform(0.75, 1.25))  # noqa: S311
        raise CostExplorerError(f"nothing came in {MOST_TRIES} tries")

    async def _count_request(self) -> None:
        """Before it is made: one that is not answered costs all the same."""
        self.requests += 1

        async def write(client: Redis) -> None:
            await client.hincrby(keys.AWS_COST, "requests", 1)

        await self._link.run(write)

    async def _remember(self, values: dict[str, str]) -> None:
        async def write(client: Redis) -> None:
            await client.hset(keys.AWS_COST, mapping=cast("dict[Any, Any]", values))

        await self._link.run(write)


async def _known(client: Redis) -> dict[str, str]:
    return await cast("Awaitable[dict[str, str]]", client.hgetall(keys.AWS_COST))


def _code_of(error: Exception) -> str | None:
    """AWS' own name of an error; None for a connection that failed."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else None


def _status_of(error: Exception) -> int:
    response: dict[str, Any] = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


async def in_thread(work: Callable[[], T]) -> T:
    """On a thread of its own that nobody waits for at the end of the process, unlike asyncio's own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():  # whoever waited was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("T", result))

    def run() -> None:
        try:
            outcome: tuple[T | None, Exception | None] = (work(), None)
        except Exception as error:
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="aws", daemon=True).start()
    return await future
