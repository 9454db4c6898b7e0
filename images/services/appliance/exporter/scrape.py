"""One scrape: every source is asked at once and for a bounded time; one that fails costs its own metrics only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from async_timeout import timeout
from prometheus_client.core import Metric

from appliance.errors import ApplianceError
from appliance.exporter.aliases import Aliases
from appliance.exporter.aws_bill import bill_families
from appliance.exporter.cost_explorer import CostExplorer
from appliance.exporter.families import gauge, write
from appliance.exporter.gateway import GatewayCounts, parse_view, read_counts
from appliance.exporter.gateway_samples import STATES, gateway_families, node_families
from appliance.exporter.gpu import GpuState, GpuWatch
from appliance.exporter.gpu.samples import gpu_families
from appliance.exporter.held import HeldCounts
from appliance.exporter.prices import NO_GPU, price_families, rates
from appliance.exporter.queue_samples import heartbeat_family, job_families, process_families, queue_families
from appliance.exporter.settings import ExporterSettings
from appliance.job_fields import model_stem
from appliance.logs import OnceUntilChanged
from appliance.process_figures import ProcessFigures, own_figures
from appliance.queue import Queue
from appliance.queue.counts import parse_counts
from appliance.queue.figures import FigureBook, HostFigures, Line

log = logging.getLogger(__name__)
T = TypeVar("T")
SOURCE_SECONDS = 2.0
LEAST_AGE_SECONDS = 1.0
"""Whoever asks more often gets the same again."""
OWN_NAME = "exporter"


@dataclass(frozen=True)
class Facts:
    """What the sources said; None: one that did not answer, or that this host does not have."""

    gpus: list[GpuState]
    redis: tuple[Mapping[str, Line], HostFigures] | None
    gateway: GatewayCounts | None


class Exporter:
    def __init__(
        self, settings: ExporterSettings, queue: Queue, book: FigureBook, gpus: GpuWatch, aws: CostExplorer | None
    ) -> None:
        self._settings, self._queue, self._book, self._gpus, self._aws = settings, queue, book, gpus, aws
        self._one_at_a_time = asyncio.Lock()
        self._text, self._text_at = b"", float("-inf")
        self._held = HeldCounts()
        self._aliases = Aliases()
        self._conditions: dict[str, OnceUntilChanged] = {}
        self._models: dict[str, str] = {}
        """UUID → model, also of GPUs that do not answer any more."""

    async def scrape(self) -> bytes:
        """Prometheus' text format."""
        async with self._one_at_a_time:
            if time.monotonic() - self._text_at >= LEAST_AGE_SECONDS:
                self._text = self._write(await self._ask())
                self._text_at = time.monotonic()
            return self._text

    def rates(self) -> dict[str, str]:
        """What this host's workers are counted by from now on, see `FigureBook.put_rates`."""
        self._learn_models(self._gpus.states())
        settings = self._settings
        gpus: tuple[str | None, ...] = tuple(self._models.get(uuid.casefold()) for uuid in settings.gpus)
        models = gpus or (NO_GPU,) * settings.workers
        return rates(settings.prices, dict(zip(settings.worker_names, models, strict=False)))

    def _learn_models(self, gpus: list[GpuState]) -> None:
        self._models |= {gpu.uuid.casefold(): gpu.facts.name for gpu in gpus if gpu.facts is not None}

    async def _ask(self) -> Facts:
        socket = self._settings.gateway_socket
        gateway = self._asked("gateway", lambda: read_counts(socket)) if socket else _nothing()
        redis, counts = await asyncio.gather(self._asked("redis", self._ask_redis), gateway)
        return Facts(self._gpus.states(), redis, counts)

    async def _ask_redis(self) -> tuple[Mapping[str, Line], HostFigures]:
        return await asyncio.gather(self._queue.lines(), self._book.read(self._settings.worker_names))

    async def _asked(self, source: str, ask: Callable[[], Awaitable[T]]) -> T | None:
        condition = self._conditions.setdefault(source, OnceUntilChanged(log))
        try:
            async with timeout(SOURCE_SECONDS):
                answer = await ask()
        except asyncio.TimeoutError:
            condition.failing(f"{source}: no answer within {SOURCE_SECONDS:g} s", event="source_failed")
        except ApplianceError as error:
            condition.failing(f"{source}: {error}", event="source_failed")
        except Exception:
            log.exception("%s cannot be read", source)
        else:
            condition.fine(f"{source} answers again", event="source_works")
            return answer
        return None

    def _write(self, facts: Facts) -> bytes:
        families = list(self._families(facts))
        if self._settings.article_names:
            families += self._aliases.families(families, time.monotonic())
        return write(families, {"node_name": self._settings.common.node_name})

    def _families(self, facts: Facts) -> Iterator[Metric]:
        settings = self._settings
        self._learn_models(facts.gpus)
        yield from gpu_families(facts.gpus)
        if facts.redis is not None:
            lines, host = facts.redis
            yield from queue_families(lines)
            yield from self._host_families(host)
        if facts.gateway is not None:
            yield from gateway_families(facts.gateway)
        yield from process_families(_processes(facts.redis[1] if facts.redis else None))
        known = (self._models.get(gpu.uuid.casefold()) for gpu in facts.gpus)
        yield from price_families(settings.prices, [model for model in known if model is not None])
        if self._aws is not None:
            yield from bill_families(self._aws.bill, self._aws.requests, time.time())
        answered = {"redis": facts.redis is not None}
        answered |= {"gateway": facts.gateway is not None} if settings.gateway_socket else {}
        yield gauge(
            "animatediff_exporter_source_up",
            "1 if this source answered the scrape; without it, its metrics are not there",
            (({"source": source}, float(has_answered)) for source, has_answered in answered.items()),
        )

    def _host_families(self, host: HostFigures) -> Iterator[Metric]:
        counts = parse_counts(self._held.update(host.counts, time.monotonic()))
        models = [model_stem(self._settings.checkpoint)] if self._settings.checkpoint else []
        yield from job_families(counts, models)
        yield heartbeat_family(host.heartbeats)
        if self._settings.gateway_socket and host.view is not None:
            yield from node_families(parse_view(host.view, STATES))


def _processes(host: HostFigures | None) -> dict[str, ProcessFigures]:
    now = time.time()
    told = {name: ProcessFigures.parse(text, now) for name, text in host.processes.items()} if host else {}
    return {**{name: figures for name, figures in told.items() if figures is not None}, OWN_NAME: own_figures()}


async def _nothing() -> None:
    return None
