"""Small tools around prometheus_client's families: what every part of a scrape is made with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


def gauge(name: str, help_: str, samples: Iterable[Sample]) -> Metric:
    return _filled(GaugeMetricFamily(name, help_), name, samples)


def counter(name: str, help_: str, samples: Iterable[Sample]) -> Metric:
    """`name` ends in `_total`."""
    return _filled(CounterMetricFamily(name.removesuffix("_total"), help_), name, samples)


def histogram(name: str, help_: str) -> Metric:
    return Metric(name, help_, "histogram")


def add_spread(family: Metric, labels: Labels, cumulative: Iterable[tuple[float, float]], total: float) -> None:
    """`cumulative`: upper bound → how many were at most as high, the last one infinite; `total` is their sum."""
    count = 0.0
    for bound, count in cumulative:
        le = "+Inf" if bound == float("inf") else str(float(bound))
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, count)
    family.add_sample(f"{family.name}_count", dict(labels), count)
    family.add_sample(f"{family.name}_sum", dict(labels), total)


def write(families: Iterable[Metric], common: Labels) -> bytes:
    """Prometheus' text format, with `common` on every sample; a family without samples is not there."""
    return generate_latest(_Families([_labelled(family, common) for family in families if family.samples]))


class _Families:
    """As much of a registry as `generate_latest` needs."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _filled(family: Metric, name: str, samples: Iterable[Sample]) -> Metric:
    for labels, value in samples:
        family.add_sample(name, dict(labels), value)
    return family


def _labelled(family: Metric, common: Labels) -> Metric:
    family.samples = [sample._replace(labels={**common, **sample.labels}) for sample in family.samples]
    return family
