"""This node's figures, each with the node's and the worker's name: whoever collects them has several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import REGISTRY, disable_created_metrics, generate_latest
from prometheus_client.core import Metric

disable_created_metrics()  # type: ignore[no-untyped-call]


class Named:
    """All that the process counts, with `labels` on every sample."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            family.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in family.samples]
            yield family

    def text(self) -> bytes:
        return generate_latest(self)
