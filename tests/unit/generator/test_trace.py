from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from generator.errors import ToolError, Unhealthy, UserError
from generator.ops import log_source
from generator.ops.cluster import Place, places
from generator.ops.log_line import LogLine
from generator.ops.log_source import ComposeLogs, log_sources, parse_line
from generator.ops.trace import Trace, table, time_of, trace
from generator.plan import plan
from generator.progress import Mode, Progress
from tests.unit.generator.clusters import one_host, three_hosts

JOB = "01a22362-01b9-71c4-9f1c-45142bb03e50"
BEGAN = time_of(JOB)
QUIET = Progress(Mode.QUIET)


class Lines:
    """A source that tells these lines, then fails with `wrong`."""

    name = "the logs of gpu-09"

    def __init__(self, *lines: LogLine, wrong: Exception | None = None) -> None:
        self._lines, self._wrong = lines, wrong
        self.asked: tuple[str, float, float] | None = None

    def lines(self, job_id: str, start: float, end: float) -> Iterator[LogLine]:
        self.asked = (job_id, start, end)
        yield from self._lines
        if self._wrong is not None:
            raise self._wrong


def told(**more: Any) -> dict[str, Any]:
    attempt = {"fence": 1, "worker": "gpu-01/0", "kind": "oom", "reason": "OOM", "message": "no [red]room\x1b[2J",
               "memory": None, "step": 3, "resumed_from": 0, "at": BEGAN + 9, "started_at": BEGAN + 1,
               "gpu": "RTX, 24564 MiB", "where": "webui.engine.decode:decode"}  # fmt: skip
    job = {"created_at": BEGAN, "started_at": BEGAN + 12, "finished_at": BEGAN + 20, "state": "done", "error": None,
           "user": "ada", "priority": "normal", "worker": "gpu-02/0", "attempts": {"history": [attempt]}}  # fmt: skip
    return {"job": job | more, "parameters": {}, "events": [], "cluster_events": [], "missing": []}


def event(after: float, kind: str, **data: Any) -> dict[str, Any]:
    return {"at": BEGAN + after, "kind": kind, "data": data}


def traced(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | Exception, *sources: Any) -> Trace:
    def ask(*_: Any, **__: Any) -> dict[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("generator.ops.trace.ask_gateways", ask)
    return trace(JOB, [], sources, "key", None, QUIET)


def test_all_sources_in_one_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = told()
    answer["events"] = [event(0, "queued"), event(1, "running"), event(9.5, "delayed", delay_seconds=2.0),
                        *(event(2 + n / 10, "progress", phase="step", step=n, total_steps=9) for n in range(5)),
                        event(8, "progress", phase="decode", step=9, total_steps=9, checkpoint_step=6)]  # fmt: skip
    answer["cluster_events"] = [{"at": BEGAN + 9, "type": "failure", "worker": "gpu-01/0", "reason": "OOM"}]
    own = LogLine(BEGAN + 30, "gpu-01", "gateway", f"GET /api/v1/jobs/{JOB}/trace 200")
    source = Lines(
        own,
        LogLine(BEGAN + 1.5, "gpu-01", "agent-0", "claimed"),
        LogLine(BEGAN + 19, "gpu-02", "webui-0", "x", "error"),
    )
    result = traced(monkeypatch, answer, source)
    assert [(round(entry.at - BEGAN, 1), entry.source, entry.text) for entry in result.entries] == [
        (0.0, "queue", "submitted by ada, priority normal"),
        (0.0, "queue", "queued"),
        (1.0, "queue", "begins on gpu-01/0 (RTX, 24564 MiB)"),
        (1.5, "gpu-01/agent-0", "claimed"),
        (2.0, "queue", "step: step 0 of 9"),
        (8.0, "queue", "decode: step 9 of 9, checkpoint at step 6"),
        (9.0, "queue", "ends on gpu-01/0 at step 3, oom: OOM: no [red]room\x1b[2J: in webui.engine.decode:decode"),
        (9.0, "cluster", "failure gpu-01/0 OOM"),
        (9.5, "queue", "delayed for 2 s"),
        (19.0, "gpu-02/webui-0", "error: x"),
        (20.0, "queue", "done"),
    ]
    assert source.asked == (JOB, BEGAN - 300, BEGAN + 320)
    assert json.loads(json.dumps(result.as_dict()))["missing"] == []


def test_nothing_that_a_terminal_would_obey_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(table(traced(monkeypatch, told(), Lines(LogLine(BEGAN, "a", "b", "\x1b]0;title\x07[bold]x")))))
    text = console.export_text()
    assert "no [red]room [2J" in text
    assert "[bold]x" in text
    assert not {"\x1b", "\x07"} & set(text)


def test_what_could_not_be_asked_is_said_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Lines(
        LogLine(BEGAN + 1, "gpu-09", "api", "half"), wrong=ToolError(["ssh", "gpu-09"], 255, "Connection refused")
    )
    whole = Lines(LogLine(BEGAN + 2, "gpu-01", "api", "whole"))
    result = traced(monkeypatch, Unhealthy("no gateway has an answer\ngpu-01: timed out"), broken, whole)
    queue, logs = result.missing
    assert queue.startswith("what the queue knows: no gateway has an answer")
    assert "the logs of gpu-09" in logs
    assert "Connection refused" in logs
    assert [entry.text for entry in result.entries] == ["half", "whole"]
    assert whole.asked is not None
    assert whole.asked[1] == BEGAN - 300, "the id itself says when it began"
    assert result.queue is None


@pytest.mark.parametrize(
    "wrong", ["", "x", JOB.upper(), "../../jobs", "01a22362-01b9-41c4-9f1c-45142bb03e50", "\x1b[2J"]
)
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="is no job") as raised:
        time_of(wrong)
    assert "\x1b" not in str(raised.value)


# --- docker compose logs ---------------------------------------------------------------------------------------------


def test_a_line_of_ours_is_read() -> None:
    fields = {
        "@timestamp": "x",
        "log.level": "warning",
        "message": "job a: oom",
        "event": "job_result",
        "reason": "OOM",
    }
    line = parse_line("gpu-01", f"\x1b[2Kagent-0-1  | 2026-11-28T18:45:53.458915092Z {json.dumps(fields)}")
    assert line == LogLine(
        pytest.approx(1795891553.458915), "gpu-01", "agent-0", "job a: oom (event=job_result reason=OOM)", "warning"
    )


@pytest.mark.parametrize("text", ["GET /api/v1/jobs/x 200", '{"message": 7}', "[1]", "[" * 5000, ""])
def test_a_line_of_others_is_shown_as_it_is(text: str) -> None:
    line = parse_line("gpu-01", f"gateway-1 | 2026-11-28T18:45:53Z {text}")
    assert line == LogLine(1795891553, "gpu-01", "gateway", text)


@pytest.mark.parametrize("text", ["", "no such service: x", "api-1 | yesterday x", 'service "api" is not running'])
def test_what_is_no_line_of_a_service_is_none(text: str) -> None:
    assert parse_line("gpu-01", text) is None


def place_of(tmp_path: Path, ssh: bool = False) -> Place:
    the_plan = plan(three_hosts() if ssh else one_host())
    name = the_plan.hosts[0].name
    (tmp_path / name).mkdir()
    (tmp_path / name / "compose.yaml").touch()
    return places(the_plan, tmp_path, only=name)[0]


def test_the_command_names_the_time(tmp_path: Path) -> None:
    command = ComposeLogs(place_of(tmp_path, ssh=True)).command(BEGAN, BEGAN + 60)
    assert command[0] == "ssh"
    assert command[-1].endswith(
        " logs --no-color --timestamps --since 2026-11-28T18:19:15Z --until 2026-11-28T18:20:15Z"
    )


def test_only_lines_with_the_job_are_told_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [f"api-1 | 2026-11-28T18:45:5{n}Z job {JOB if n % 2 else 'other'}" for n in range(10)]
    monkeypatch.setattr("generator.processes.stream", lambda *_, **__: iter(said))
    (source,) = log_sources([place_of(tmp_path)])
    assert len(list(source.lines(JOB, 0, 1))) == 5
    monkeypatch.setattr(log_source, "MOST_LINES", 3)
    with pytest.raises(Unhealthy, match="more than 3 lines"):
        list(source.lines(JOB, 0, 1))
