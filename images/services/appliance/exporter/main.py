"""`appliance exporter`: the scrapes, and what is kept ready beside them."""

from __future__ import annotations

import asyncio
import logging

import uvicorn
import uvloop

from appliance.errors import QueueError
from appliance.exporter.app import create_app
from appliance.exporter.cost_explorer import CostExplorer, make_client
from appliance.exporter.gpu import GpuWatch
from appliance.exporter.scrape import Exporter
from appliance.exporter.settings import ExporterSettings
from appliance.http_server import Server
from appliance.lifecycle import cancel_tasks, start_task
from appliance.logs import configure_logging
from appliance.queue import Queue
from appliance.queue.figures import FigureBook
from appliance.redis_link import RedisLink
from appliance.settings import QueueSettings

log = logging.getLogger(__name__)
RATES_SECONDS = 15.0
MISSING_RATES_SECONDS = 1.0  # until all are told: what is done before is counted without a price
SHUTDOWN_SECONDS = 3
MOST_CONNECTIONS = 32


def run(settings: ExporterSettings) -> int:
    configure_logging(settings.common)
    return uvloop.run(_serve(settings))


async def _serve(settings: ExporterSettings) -> int:
    link = RedisLink(settings.redis)
    queue = Queue(link, QueueSettings())
    book = FigureBook(link, settings.common.node_name)
    gpus = GpuWatch(settings.gpus)
    credentials = settings.aws_credentials
    aws = CostExplorer(link, lambda: make_client(credentials)) if credentials else None
    exporter = Exporter(settings, queue, book, gpus, aws)
    if settings.gpus:
        gpus.start()
    beside = [start_task("rates", _keep_rates(exporter, book, settings.workers))]
    if aws is not None:
        beside.append(start_task("aws", aws.run()))
    config = uvicorn.Config(
        create_app(exporter, settings.cluster_token),
        host=settings.listen.host,
        port=settings.listen.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
        lifespan="off",
        ws="none",
    )
    server = Server(config, asyncio.Event())
    try:
        await server.serve()
    finally:
        await cancel_tasks(*beside)
        gpus.stop()
        await queue.close()
    return 0 if server.started else 1


async def _keep_rates(exporter: Exporter, book: FigureBook, workers: int) -> None:
    """Again and again: a Redis that was put back from a backup has old ones, or none."""
    while True:
        told = 0
        try:
            rates = exporter.rates()
            await book.put_rates(rates)
            told = len(rates)
        except QueueError as error:
            log.debug("the rates are not told: %s", error)
        except Exception:
            log.exception("telling the rates failed")
        await asyncio.sleep(RATES_SECONDS if told == workers else MISSING_RATES_SECONDS)
