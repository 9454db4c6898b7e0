from __future__ import annotations

import json
import logging
import sys

import pytest

from appliance.logs import JsonLines, OnceUntilChanged, fields


def line_of(**extra: object) -> dict[str, object]:
    record = logging.LogRecord("x", logging.INFO, "", 0, "job %s", ("7",), None)
    record.__dict__.update(fields(**extra))
    parsed: dict[str, object] = json.loads(JsonLines("agent", "gpu-01", "gpu-01/3").format(record))
    return parsed


def test_keys_come_in_the_agreed_order() -> None:
    line = line_of(reason="OOM", event="job_result", attempt=5, job_id="j", seconds=1.5)
    assert list(line) == [
        "@timestamp", "log.level", "message", "service", "node_name",
        "gpu_id", "worker", "job_id", "attempt", "event", "reason", "seconds",
    ]  # fmt: skip
    assert (line["message"], line["gpu_id"], line["worker"]) == ("job 7", "3", "gpu-01/3")


def test_a_line_stays_one_line() -> None:
    formatter = JsonLines("api", "n")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "a\nb", (), sys.exc_info())
    text = formatter.format(record)
    assert "\n" not in text
    assert "two" in json.loads(text)["error.stack_trace"]


def test_a_lasting_condition_is_told_twice_not_often(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    condition = OnceUntilChanged(logging.getLogger("x"))
    for attempt in range(5):
        condition.failing(f"no redis: try {attempt}")
    condition.fine("redis is back")
    condition.fine("redis is back")
    assert [record.message for record in caplog.records] == ["no redis: try 0", "redis is back"]
