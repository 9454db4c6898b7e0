from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console

from generator.ops.errors import findings, summary, table


def kind(**more: Any) -> dict[str, Any]:
    return {
        "fingerprint": "c8191810d096", "reason": "OOM", "xid": None, "where": "webui.engine.decode:decode",
        "title": "out of GPU memory", "failures": 328, "jobs": 300, "first_at": 0.0, "last_at": time.time() - 7200,
        "example_job": "01a2", "example_message": "[red]CUDA\x1b[2J out of memory",
        "gpus": [{"gpu": f"RTX {n}, 24564 MiB", "failures": n, "attempts": 100} for n in range(5)],
        "workers": {"gpu-01/0": 50}, "findings": [], "verdict": "no correlation", "suggestion": None, **more,
    }  # fmt: skip


def answer(*kinds: dict[str, Any], **more: Any) -> dict[str, Any]:
    looked = {"days": 7, "jobs": 5000, "attempts": 5522, "failures": 522, "without_parameters": 0, "limit": None}
    return {"at": time.time(), "looked_at": looked | more, "kinds": list(kinds), "more_kinds": 0, "more_failures": 0}


def shown(what: Any) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def test_the_table_says_what_how_often_where_and_when() -> None:
    text = shown(table(answer(kind(), kind(gpus=[{"gpu": "", "failures": 1, "attempts": 2}], where=""))))
    for word in ("c8191810d096", "328", "2 h ago", "RTX 0: 0 of 100", "and 2 more", "none: 1 of 2"):
        assert word in text
    assert "RTX 4" not in text


def test_each_kind_says_honestly_what_was_found() -> None:
    lines = list(findings(answer(kind(), kind(verdict="steps above 20: …", suggestion="ask for 20"))))
    assert "  in common: no correlation" in lines
    assert "  to do: ask for 20" in lines
    assert sum(line.startswith("  to do") for line in lines) == 1
    assert "  example: job 01a2: [red]CUDA [2J out of memory" in lines


def test_markup_in_a_title_is_no_markup() -> None:
    assert "[bold]x" in shown(table(answer(kind(title="[bold]x\x1b[2J"))))


def test_the_summary_says_what_it_rests_on() -> None:
    (plain,) = summary(answer())
    assert plain.startswith("522 failures among 5522 attempts at 5000 jobs of the last 7 days")
    limited = answer(kind(), without_parameters=3, limit="only the newest 100000 jobs were looked at")
    lines = list(summary(limited | {"more_kinds": 4, "more_failures": 9}))
    assert lines[1:] == [
        "3 jobs were counted but not compared: their parameters are not known",
        "only the newest 100000 jobs were looked at",
        "4 rarer kinds with 9 failures are not shown",
    ]
