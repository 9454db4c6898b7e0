"""Lines of our format go through a real shipper, over TLS and with the key that the setup has made, into the data
stream, and are found again: by Elasticsearch's own client and by what `generator trace` asks with."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from appliance.job import JobState, new_job_id
from appliance.logs import EXTRA, JsonLines
from appliance.outcome_log import log_job_result
from generator.certificates import make_authority
from generator.docker import Engine
from generator.ops.elastic_logs import ElasticLogs, search_body
from tests.integration.log_shipper import shipper
from tests.integration.log_store_stage import STREAM, LogStage, log_stage
from tests.unit.generator.test_elastic_logs import place_alone
from webui.logs import JsonFormatter

pytestmark = pytest.mark.docker
JOBS = 40
WAIT_SECONDS = 30.0
JSON = {"Accept": "application/json", "Content-Type": "application/json"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[LogStage]:
    with log_stage(tmp_path / "store") as made:
        done = made.set_up()
        assert done.returncode == 0, done.stderr
        yield made


def wait_for(what: str, ready: Callable[[], bool], hint: Callable[[], str]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {WAIT_SECONDS:g} s\n{hint()}")
        time.sleep(0.1)


def lines_of(job: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """As an agent and its webui write them about a job."""
    agent, webui = JsonLines("agent", "gpu-01", "gpu-01/0"), JsonFormatter()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log = logging.getLogger("test")
        log.info("claimed", extra={EXTRA: {"job_id": job, "attempt": 1, "event": "claimed"}})
        log.error("job %s: CUDA out of memory", job)
        body = json.dumps({"prompt": "x", "width": 512, "loras": [{"name": "a"}]})
        log_job_result(job, JobState.DELAYED, kind="oom", worker="gpu-01/0", attempt=1, body=body, reason="OOM")
    first, second, third = caplog.records
    return [agent.format(first), webui.format(second), agent.format(third)]


@pytest.mark.parametrize("with_key", [True, False], ids=["API key", "password"])
def test_every_line_arrives_once_and_is_found(
    engine: Engine,
    images: str,
    tmp_path: Path,
    stage: LogStage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    with_key: bool,
) -> None:
    monkeypatch.setenv("APPLIANCE_NODE_NAME", "gpu-01")
    jobs = [new_job_id() for _ in range(JOBS)]
    began = time.time()
    said = [line for job in jobs for line in lines_of(job, caplog)]
    with shipper(engine, images, tmp_path / "shipper", stage, with_key=with_key) as one:
        one.say(*said)
        wait_for("all lines", lambda: len(stage.store.streams.get(STREAM, ())) >= len(said), one.logs)
        assert one.errors() == ""
    documents = stage.store.streams[STREAM]
    assert sorted(map(json.dumps, documents)) == sorted(json.dumps(json.loads(line)) for line in said)
    _found_by_both(stage, jobs[7], began)


def _found_by_both(stage: LogStage, job: str, began: float) -> None:
    body = search_body(job, began - 60, time.time() + 60)
    login = {"basic_auth": ("operator", stage.access.password), "ca_certs": str(stage.access.authority)}
    with Elasticsearch(stage.url, **login) as client:
        answer = client.perform_request("POST", "/logs-animatediff-*/_search", headers=JSON, body=body)
    by_client = [hit["_source"] for hit in answer["hits"]["hits"]]
    assert [one.get("event") for one in by_client] == ["claimed", None, "job_result"], "in the order of time"
    by_trace = list(ElasticLogs(place_alone(), stage.access, stage.url).lines(job, began - 60, time.time() + 60))
    assert [(line.host, line.message, line.level) for line in by_trace] == [
        ("gpu-01", "claimed (event=claimed)", "info"),
        ("gpu-01", f"job {job}: CUDA out of memory", "error"),
        ("gpu-01", f"job {job}: oom (event=job_result reason=OOM result=oom)", "warning"),
    ]


def test_what_the_index_does_not_take_is_told_and_keeps_nothing_else_out(
    engine: Engine, images: str, tmp_path: Path, stage: LogStage
) -> None:
    good = {"@timestamp": "2026-11-28T18:45:53.458Z", "log.level": "info", "message": "good", "service": "api"}
    odd: list[dict[str, Any]] = [{"message": "no time"}, good | {"message": {"a": 1}}, good | {"parameters": "text"}]
    with shipper(engine, images, tmp_path / "shipper", stage, with_key=True) as one:
        one.say(json.dumps(good), *map(json.dumps, odd), json.dumps(good | {"attempt": "odd, but passed over"}))
        wait_for("the good ones", lambda: len(stage.store.streams.get(STREAM, ())) == 2, one.logs)
        wait_for("the errors", lambda: one.errors().count('"status"') >= 3, one.errors)


def test_a_key_that_has_ended_lets_nothing_in(engine: Engine, images: str, tmp_path: Path, stage: LogStage) -> None:
    stage.store.keys[stage.key[0]]["invalidated"] = True
    with shipper(engine, images, tmp_path / "shipper", stage, with_key=True) as one:
        one.say('{"@timestamp": "2026-11-28T18:45:53.458Z", "message": "x"}')
        wait_for("a refusal", lambda: "missing or wrong credentials" in one.logs(), one.logs)
    assert STREAM not in stage.store.streams


def test_the_shipper_is_refused_where_nobody_vouches_for_the_store(
    engine: Engine, images: str, tmp_path: Path, stage: LogStage
) -> None:
    """Proof that TLS is looked at: with another authority not one request arrives."""
    other = tmp_path / "ca.crt"
    other.write_bytes(make_authority()[1])
    before = len(stage.store.requests)
    spoilt = LogStage(stage.folder, stage.store, stage.port, type(stage.access)(stage.access.password, other))
    for with_key in (True, False):
        with shipper(engine, images, tmp_path / f"shipper{with_key}", spoilt, with_key=with_key) as one:
            one.say('{"@timestamp": "2026-11-28T18:45:53.458Z", "message": "x"}')
            time.sleep(4)
    assert len(stage.store.requests) == before
