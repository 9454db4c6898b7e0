"""The names that the article's dashboards use, beside ours: made of the very samples that have the canonical ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric

from appliance.exporter.families import gauge

WINDOW_SECONDS = 300.0
STEP_SECONDS = 5.0
_LABELS = tuple[tuple[str, str], ...]
_Totals = Mapping[_LABELS, tuple[float, float]]


class Aliases:
    """Remembers five minutes of upstream latencies, whose mean one of the aliases is."""

    def __init__(self) -> None:
        self._latencies: deque[tuple[float, _Totals]] = deque()

    def families(self, canonical: Iterable[Metric], now: float) -> Iterator[Metric]:
        """`now` in monotonic seconds."""
        by_name = {family.name: family for family in canonical}
        if utilization := by_name.get("nvidia_smi_utilization_gpu_ratio"):
            yield gauge(
                "nvidia_smi_utilization_gpu_percent",
                "The article's name for 100 * nvidia_smi_utilization_gpu_ratio",
                ((sample.labels, 100 * sample.value) for sample in utilization.samples),
            )
        if failures := by_name.get("animatediff_job_failures"):
            yield gauge(
                "animatediff_job_failure_reason",
                "The article's name for animatediff_job_failures_total",
                ((sample.labels, sample.value) for sample in failures.samples),
            )
        if latencies := by_name.get("nginx_upstream_response_seconds"):
            yield gauge(
                "nginx_upstream_response_milliseconds",
                "The article's name for the mean of nginx_upstream_response_seconds over 5 minutes",
                ((dict(labels), 1000 * mean) for labels, mean in self._means(_totals(latencies), now)),
            )

    def _means(self, totals: _Totals, now: float) -> Iterator[tuple[_LABELS, float]]:
        """Of the answers since the beginning of the window; none where there was no scrape before."""
        known = self._latencies
        if known and any(totals.get(labels, (0, count))[1] < count for labels, (_, count) in known[-1][1].items()):
            known.clear()  # nginx was started again
        while len(known) > 1 and known[1][0] <= now - WINDOW_SECONDS:
            known.popleft()
        if known:
            for labels, (seconds, count) in totals.items():
                old_seconds, old_count = known[0][1].get(labels, (0.0, 0.0))
                if count > old_count:
                    yield labels, (seconds - old_seconds) / (count - old_count)
        if not known or now - known[-1][0] >= STEP_SECONDS:
            known.append((now, totals))


def _totals(latencies: Metric) -> _Totals:
    """Labels → seconds in all, answers in all."""
    parts: dict[str, dict[_LABELS, float]] = {"_sum": {}, "_count": {}}
    for sample in latencies.samples:
        ending = sample.name.removeprefix(latencies.name)
        if ending in parts:
            parts[ending][tuple(sorted(sample.labels.items()))] = sample.value
    return {labels: (seconds, parts["_count"][labels]) for labels, seconds in parts["_sum"].items()}
