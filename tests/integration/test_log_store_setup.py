"""`elasticsearch-setup` through elasticsearch-py against a sink that holds its users to their roles."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import AuthorizationException, Elasticsearch

from appliance.errors import ApplianceError
from generator.certificates import make_authority
from tests.integration.elasticsearch_sink import Answer, Door, failure
from tests.integration.log_store_stage import STREAM, LogStage, log_stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[LogStage]:
    with log_stage(tmp_path) as made:
        yield made


def test_everything_is_there_and_logstash_has_a_key(stage: LogStage) -> None:
    done = stage.set_up()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "log_store_ready"
    assert stage.store.lifecycles["animatediff"]["phases"]["delete"]["min_age"] == "14d"
    template = stage.store.templates["animatediff"]
    assert template["template"]["settings"]["index"]["lifecycle"]["name"] == "animatediff"
    identity, secret = stage.key
    assert stage.store.keys[identity]["secret"] == secret
    assert secret not in done.stdout + done.stderr
    assert stat.S_IMODE(stage.output.stat().st_mode) == 0o600
    assert "${" not in stage.output.read_text()


def test_what_fails_is_told_without_a_traceback(stage: LogStage) -> None:
    (stage.folder / "secrets/logs_setup_password").write_text("wrong")
    done = stage.set_up()
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "appliance elasticsearch-setup: Elasticsearch refuses appliance_setup" in done.stderr


def test_once_more_changes_nothing(stage: LogStage) -> None:
    stage.prepare()
    before, inode = stage.output.read_text(), stage.output.stat().st_ino
    stage.prepare()
    assert (stage.output.read_text(), stage.output.stat().st_ino, len(stage.store.keys)) == (before, inode, 1)


def test_a_key_that_is_no_longer_good_is_made_anew(stage: LogStage) -> None:
    """The store was lost, or somebody has ended the key: Logstash sees the other file."""
    stage.prepare()
    first = stage.key[0]
    stage.store.keys.clear()
    stage.prepare()
    assert stage.key[0] in stage.store.keys
    stage.store.keys[stage.key[0]]["invalidated"] = True
    stage.prepare()
    assert not stage.store.keys[stage.key[0]]["invalidated"]
    assert len({first, *stage.store.keys}) == 3


def test_what_is_left_of_a_crash_is_put_right(stage: LogStage) -> None:
    """A key that nobody has written down ends; half a file, which there should never be, is none."""
    stage.prepare()
    stage.output.write_text(stage.output.read_text()[:200])
    (stage.output.parent / ".output.conf.tmp").write_text("half")
    stage.prepare()
    good = stage.key[0]
    assert len(stage.store.keys) == 2
    stage.prepare()
    assert {identity: key["invalidated"] for identity, key in stage.store.keys.items()} == {
        identity: identity != good for identity in stage.store.keys
    }


def test_other_rights_need_another_key_and_the_old_one_is_good_until_the_next_time(stage: LogStage) -> None:
    stage.prepare()
    old = stage.key[0]
    writer = stage.folder / "config/elasticsearch/writer.json"
    roles = json.loads(writer.read_text())
    roles["logstash"]["indices"][0]["privileges"] = ["create_doc"]
    writer.write_text(json.dumps(roles))
    stage.prepare()
    assert stage.key[0] != old
    assert not stage.store.keys[old]["invalidated"], "Logstash needs some seconds to take up the other"
    stage.prepare()
    assert stage.store.keys[old]["invalidated"]


def test_it_waits_until_the_store_can_answer(stage: LogStage) -> None:
    stage.store.busy = 3
    stage.prepare()
    assert stage.store.requests[:4] == ["GET /_cluster/health"] * 4


def test_what_it_can_do_only_later_is_tried_again(stage: LogStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers for its cluster before it can keep keys."""
    answer, left = Door.answer, [3]

    def slow(door: Door, method: str, target: str, *rest: Any) -> Answer:
        if method in ("POST", "PUT") and "api_key" in target and left[0]:
            left[0] -= 1
            return failure(503, "unavailable_shards_exception", "not yet")
        return answer(door, method, target, *rest)

    monkeypatch.setattr(Door, "answer", slow)
    stage.prepare()
    assert stage.key[0] in stage.store.keys


def test_what_it_never_does_is_not_tried_again(stage: LogStage) -> None:
    stage.store.roles["animatediff_setup"]["cluster"] = ["monitor"]
    with pytest.raises(ApplianceError, match=r"refuses what it is asked for: .*unauthorized"):
        stage.prepare()
    assert stage.store.requests.count("PUT /_ilm/policy/animatediff") == 1


def test_a_store_that_never_answers_is_told_in_time(stage: LogStage) -> None:
    stage.store.busy = 10**6
    with pytest.raises(ApplianceError, match=r"is not ready after 1 s: .*state not recovered"):
        stage.prepare(APPLIANCE_READY_SECONDS="1")
    assert not stage.output.exists()


def test_a_wrong_password_is_told_at_once(stage: LogStage) -> None:
    (stage.folder / "secrets/logs_setup_password").write_text("wrong")
    with pytest.raises(ApplianceError, match="it does not know the password: `python -m generator up --recreate`"):
        stage.prepare()
    assert stage.store.requests == ["GET /_cluster/health"]


def test_whoever_is_not_vouched_for_gets_no_password(stage: LogStage, tmp_path: Path) -> None:
    (stage.folder / "secrets/ca.crt").write_bytes(make_authority()[1])
    with pytest.raises(ApplianceError, match=r"(?i)certificate verify failed"):
        stage.prepare(APPLIANCE_READY_SECONDS="0")
    assert stage.store.requests == []


def test_what_is_no_elasticsearch_is_refused(stage: LogStage) -> None:
    stage.store.product = False
    with pytest.raises(ApplianceError, match="not Elasticsearch"):
        stage.prepare(APPLIANCE_READY_SECONDS="0")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config/elasticsearch/template.json", "{", "template.json: is no JSON"),
        ("config/elasticsearch/writer.json", "[]", "writer.json: is no JSON object"),
        ("config/elasticsearch/output.conf", None, "output.conf: cannot be read"),
        ("secrets/ca.crt", None, "ca.crt: is not there; mount the secret"),
    ],
)
def test_what_is_missing_is_named(stage: LogStage, file: str, text: str | None, said: str) -> None:
    (stage.folder / file).unlink() if text is None else (stage.folder / file).write_text(text)
    with pytest.raises(ApplianceError, match=said):
        stage.prepare()
    assert stage.store.requests == []


def test_nobody_may_more_than_he_has_to(stage: LogStage) -> None:
    stage.prepare()
    identity, secret = stage.key
    document = {"@timestamp": "2026-11-28T18:45:53.458Z", "message": "x"}
    operations = [{"create": {"_index": STREAM}}, document]

    def client(**login: Any) -> Elasticsearch:
        return Elasticsearch(stage.url, ca_certs=str(stage.access.authority), **login)

    with client(api_key=(identity, secret)) as writer, client(basic_auth=("operator", stage.access.password)) as reader:
        assert not writer.bulk(operations=operations)["errors"]
        with pytest.raises(AuthorizationException):
            writer.search(index=STREAM, query={"term": {"message": "x"}})
        with pytest.raises(AuthorizationException):
            writer.security.get_api_key(owner=True)
        assert reader.bulk(operations=operations)["items"][0]["create"]["status"] == 403
        with pytest.raises(AuthorizationException):
            reader.ilm.put_lifecycle(name="animatediff", policy={"phases": {}})
    elsewhere = [{"create": {"_index": "logs-animatediff-default"}}, {"message": "no time"}]
    with client(api_key=(identity, secret)) as writer:
        assert writer.bulk(operations=elsewhere)["items"][0]["create"]["status"] == 400
        over = [{"index": {"_index": STREAM}}, document]
        assert writer.bulk(operations=over)["items"][0]["index"]["status"] == 400, "a data stream is added to only"
