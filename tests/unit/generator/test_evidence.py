from __future__ import annotations

import json
from typing import Any

from generator.errors import Unhealthy
from generator.ops.errors import findings
from generator.ops.evidence import Evidence, gather
from generator.ops.log_line import LogLine
from generator.progress import Mode, Progress
from tests.unit.generator.test_errors_view import answer, kind
from tests.unit.generator.test_trace import BEGAN, JOB, Lines

QUIET = Progress(Mode.QUIET)


def line(after: float, message: str, level: str = "error") -> LogLine:
    return LogLine(BEGAN + after, "gpu-01", "webui-0", message, level)


def example(**more: Any) -> dict[str, Any]:
    return kind(**{"example_job": JOB, "last_at": BEGAN + 60, **more})


def test_the_worst_lines_of_an_example_are_told_in_order_and_once() -> None:
    kept = Lines(
        line(9, "last"), line(1, "first"), line(2, "hm", "warning"), line(3, "first"), line(0, "fine", "info"),
        line(5, "dead", "critical"), line(4, "more"),
    )  # fmt: skip
    evidence = gather(answer(example()), [kept], QUIET)
    assert [one.message for one in evidence.of(example())] == ["first", "more", "dead"]
    assert kept.asked == (JOB, BEGAN - 300, BEGAN + 360)
    shown = list(findings(answer(example()), evidence))
    assert "  its log: gpu-01/webui-0: error: first" in shown
    assert shown.index("  its log: gpu-01/webui-0: critical: dead") < shown.index("  in common: no correlation")


def test_without_a_store_nobody_is_asked_and_nothing_is_said() -> None:
    evidence = gather(answer(example()), [], QUIET)
    assert evidence == Evidence({})
    assert not any("its log" in text for text in findings(answer(example()), evidence))


def test_a_store_that_fails_is_told_and_not_asked_again() -> None:
    down, up = Lines(wrong=Unhealthy("\x1b[2Jdown")), Lines(line(1, "here"))
    evidence = gather(answer(example(), example(fingerprint="other")), [down, up], QUIET)
    assert evidence.missing == ("the logs of gpu-09:  [2Jdown",)
    assert {fingerprint: len(lines) for fingerprint, lines in evidence.lines.items()} == {"c8191810d096": 1, "other": 1}


def test_programs_get_the_lines_with_each_kind() -> None:
    evidence = gather(answer(example()), [Lines(line(1, "here"))], QUIET)
    told = json.loads(json.dumps(evidence.put_into(answer(example()))))
    assert told["kinds"][0]["log_lines"][0]["message"] == "here"
    assert (told["kinds"][0]["title"], told["missing"]) == ("out of GPU memory", [])
