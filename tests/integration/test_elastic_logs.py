"""What `generator trace` reads of the lines that are kept, from a sink over TLS; what it says where it gets none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from generator.certificates import make_authority, make_server
from generator.errors import ToolError, Unhealthy
from generator.ops import elastic_logs
from generator.ops.elastic_logs import Access, ElasticLogs
from generator.ops.log_line import LogLine
from generator.ops.log_source import KeptLogs
from tests.integration.elasticsearch_sink import Answer, Door, serving
from tests.integration.log_store_stage import STREAM, LogStage, log_stage
from tests.unit.generator.test_elastic_logs import place_alone
from tests.unit.generator.test_trace import BEGAN, JOB, Lines, traced


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[LogStage]:
    with log_stage(tmp_path) as made:
        yield made


def source(stage: LogStage, **access: Any) -> ElasticLogs:
    return ElasticLogs(
        place_alone(),
        Access(**{"password": stage.access.password, "authority": stage.access.authority} | access),
        stage.url,
    )


def read(stage: LogStage, **access: Any) -> list[LogLine]:
    return list(source(stage, **access).lines(JOB, BEGAN - 60, BEGAN + 60))


def keep(stage: LogStage, *documents: dict[str, Any]) -> None:
    stage.store.streams.setdefault(STREAM, []).extend(documents)


def line(after: float, number: int = 0, **more: Any) -> dict[str, Any]:
    """As it lies in the index."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(BEGAN + after)) + "Z"
    place = {"file": "f", "offset": number}
    fixed = {"@timestamp": moment, "node_name": "gpu-01", "container": "agent-0", "log": {"level": "info"}}
    return {**fixed, "message": f"line {number}", "job_id": JOB, "source": place, **more}


def test_the_job_s_lines_of_the_time_are_read_in_order(stage: LogStage) -> None:
    keep(
        stage,
        line(9, 2),
        line(1, 1, event="claimed"),
        line(2, 3, job_id="other"),
        line(2, 4, job_id="other", message=f"GET /api/v1/jobs/{JOB}/events 200", container="gateway"),
        line(3, 5, job_id=None, detail=f"the job before, {JOB}, has left it"),
        line(300, 6),
        line(-300, 7),
    )
    assert [(one.service, one.message) for one in read(stage)] == [
        ("agent-0", "line 1 (event=claimed)"),
        ("gateway", f"GET /api/v1/jobs/{JOB}/events 200"),
        ("agent-0", f"line 5 (detail=the job before, {JOB}, has left it)"),
        ("agent-0", "line 2"),
    ]
    assert read(stage)[0] == LogLine(float(int(BEGAN) + 1), "gpu-01", "agent-0", "line 1 (event=claimed)", "info")


def test_page_after_page_each_line_once(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many lines are of the same moment, and where one was sent twice."""
    monkeypatch.setattr(elastic_logs, "PAGE", 7)
    keep(stage, *(line(number // 10, number) for number in range(50)), line(0, 6))
    assert [one.message for one in read(stage)] == [f"line {number}" for number in range(50)]
    assert stage.store.requests.count("POST /logs-animatediff-*/_search") == 8


def test_it_ends_somewhere(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_logs, "PAGE", 10)
    monkeypatch.setattr(elastic_logs, "MOST_LINES", 20)
    keep(stage, *(line(1, number) for number in range(50)))
    lines = source(stage).lines(JOB, BEGAN, BEGAN + 9)
    assert len([next(lines) for _ in range(20)]) == 20
    with pytest.raises(Unhealthy, match="more than 20 lines name the job"):
        next(lines)


def test_half_an_answer_is_none(stage: LogStage) -> None:
    keep(stage, line(1))
    stage.store.shards_failed = 1
    with pytest.raises(Unhealthy, match="for a part of the lines only"):
        read(stage)


def test_who_is_refused_says_so(stage: LogStage, tmp_path: Path) -> None:
    with pytest.raises(Unhealthy, match="it does not know the password"):
        read(stage, password="wrong")
    other = tmp_path / "other.crt"
    other.write_bytes(make_authority()[1])
    before = len(stage.store.requests)
    with pytest.raises(Unhealthy, match=r"does not answer: .*certificate verify failed"):
        read(stage, authority=other)
    with pytest.raises(Unhealthy, match="No such file"):
        read(stage, authority=tmp_path / "nothing")
    assert len(stage.store.requests) == before, "nobody else sees the password"


def test_another_host_of_the_cluster_does_not_pass_for_it(stage: LogStage, tmp_path: Path) -> None:
    """It has a certificate of the same authority, but not with this name."""
    store = stage.access.authority.parent
    key, chain = make_server((store / "ca.key").read_bytes(), (store / "ca.crt").read_bytes(), ("gpu-01", "127.0.0.1"))
    pair = (tmp_path / "other.crt", tmp_path / "other.key")
    pair[0].write_bytes(chain)
    pair[1].write_bytes(key)
    with (
        serving(stage.store, pair) as port,
        pytest.raises(Unhealthy, match="certificate is not valid for 'elasticsearch'"),
    ):
        list(ElasticLogs(place_alone(), stage.access, f"https://127.0.0.1:{port}").lines(JOB, 0, 1))


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}),
        (200, {"hits": {"hits": [{"sort": []}]}, "timed_out": False, "_shards": {"failed": 0}}),
        (200, {"hits": {"hits": [{"_source": [], "sort": [1]}]}, "timed_out": False, "_shards": {"failed": 0}}),
        (200, {"hits": {"hits": 7}, "timed_out": False, "_shards": {"failed": 0}}),
        (503, {"error": "\x1b[2J busy"}),
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_told(stage: LogStage, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.setattr(Door, "answer", lambda *_: answer)
    with pytest.raises(Unhealthy, match=r"not understood|it answers 503"):
        read(stage)


def test_silence_is_waited_for_only_so_long(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_logs, "SECONDS", 0.5)
    never = threading.Event()
    monkeypatch.setattr(Door, "answer", lambda *_: never.wait(5))
    began = time.monotonic()
    with pytest.raises(Unhealthy, match="does not answer: "):
        read(stage)
    assert time.monotonic() - began < 3
    never.set()


def test_where_nothing_listens_it_says_so(stage: LogStage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unhealthy, match="does not answer: "):
        list(ElasticLogs(place_alone(), stage.access, f"https://127.0.0.1:{port}").lines(JOB, 0, 1))


# --- with the containers' own logs behind it -------------------------------------------------------------------------

Told = Callable[..., Any]


def kept(stage: LogStage, *containers: Lines) -> KeptLogs:
    return KeptLogs([source(stage)], containers)


def test_where_all_is_kept_no_container_is_asked(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(stage, line(1))
    containers = Lines(LogLine(BEGAN, "gpu-01", "agent-0", "line 0"))
    result = traced(monkeypatch, Unhealthy("x"), kept(stage, containers))
    assert [entry.text for entry in result.entries] == ["line 0"]
    assert containers.asked is None
    assert len(result.missing) == 1, "the queue alone"


def test_where_it_does_not_answer_the_containers_are_asked_and_that_is_said(
    stage: LogStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.store.users["operator"] = b"$2a$04$abcdefghijklmnopqrstuuJ0v1r3G1pXoQZ5bCqk2m7YqH4d1rS5K"
    broken = Lines(wrong=ToolError(["ssh", "gpu-09"], 255, "Connection refused"))
    one = Lines(LogLine(BEGAN + 1, "gpu-01", "agent-0", "from Docker"))
    result = traced(monkeypatch, Unhealthy("x"), kept(stage, one, broken))
    assert [entry.text for entry in result.entries] == ["from Docker"]
    said = result.missing[-1]
    assert "Elasticsearch on demo: it does not know the password" in said
    assert "the containers' own logs were read as well" in said
    assert "Connection refused" in said


def test_what_it_has_not_got_the_containers_tell(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filebeat may be behind, or not be there at all."""
    result = traced(monkeypatch, Unhealthy("x"), kept(stage, Lines(LogLine(BEGAN + 1, "gpu-01", "agent-0", "new"))))
    assert [entry.text for entry in result.entries] == ["new"]
    assert "read as well, for Elasticsearch on demo: no line of this job" in result.missing[-1]


def test_what_both_tell_is_told_once(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two stores one does not answer: what the other has, and what is left with the containers."""
    keep(stage, line(1), line(2, message="twice"), line(3, 1, message="twice"))
    held = Lines(
        LogLine(BEGAN + 1.1, "gpu-01", "agent-0", "line 0"),
        *(LogLine(BEGAN + after, "gpu-01", "agent-0", "twice") for after in (2.1, 3.1, 4.1)),
        LogLine(BEGAN + 5, "gpu-02", "agent-0", "line 0"),
    )
    down = Lines(wrong=Unhealthy("down"))
    result = traced(monkeypatch, Unhealthy("x"), KeptLogs([source(stage), down], [held]))
    assert [entry.text for entry in result.entries] == ["line 0", "twice", "twice", "twice", "line 0"]
    assert result.missing[-1].count("down") == 1
    assert json.dumps(result.as_dict())
