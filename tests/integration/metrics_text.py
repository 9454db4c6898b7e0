"""Prometheus' text format, as a test looks into it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def value_of(text: str, metric: str, /, **labels: str) -> float:
    """Of the one series with these labels among others; 0 where there is none."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    ]
    assert len(found) < 2, (metric, labels, found)
    return found[0] if found else 0.0
