"""The rendered configuration of Filebeat, Logstash and Elasticsearch, judged without any of their images: bodies by the
official client's types, the pipeline by its grammar and by what it does to real lines, the rest option by option."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.job import JobState
from appliance.logs import EXTRA, JsonLines
from appliance.outcome_log import log_job_result
from generator.model import Cluster
from generator.ops.elastic_logs import search_body
from generator.plan import plan
from generator.render import render
from generator.sources import read_sources
from tests.contract.log_filters import filtered, shipped
from tests.contract.logstash_grammar import PipelineError, Plugin, Section, parse
from tests.contract.typescript import compiled, installed
from tests.integration.elasticsearch_documents import accepted
from tests.unit.generator.clusters import logged, logged_alone

CLIENT = "@elastic/elasticsearch@9.2.1"
JOB = "01a22362-01b9-71c4-9f1c-45142bb03e50"
CLUSTERS = {"several": (logged(), "gpu-03"), "single": (logged_alone(), "demo")}


@pytest.fixture(scope="module", params=CLUSTERS)
def files(request: pytest.FixtureRequest) -> dict[str, str]:
    cluster, host = CLUSTERS[request.param]
    return rendered(cluster, host)


def rendered(cluster: Cluster, host: str) -> dict[str, str]:
    found = dict(render(plan(cluster), read_sources()))[host]
    return {name: content.decode() for name, content in found.items()}


# --- Elasticsearch ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    what = "the bodies for Elasticsearch against its client's types"
    return installed(tmp_path_factory.mktemp("tsc"), [CLIENT], what)


IMPORT = "import type { estypes } from '@elastic/elasticsearch';"


def bodies(files: dict[str, str]) -> dict[str, tuple[str, Any]]:
    """Name → type and value of everything that Elasticsearch is told."""
    folder = "config/elasticsearch"
    return {
        "lifecycle": ("IlmPutLifecycleRequest", {"name": "x", **json.loads(files[f"{folder}/lifecycle.json"])}),
        "template": ("IndicesPutIndexTemplateRequest", {"name": "x", **json.loads(files[f"{folder}/template.json"])}),
        "writer": ("SecurityCreateApiKeyRequest", {"role_descriptors": json.loads(files[f"{folder}/writer.json"])}),
        "reader_role": ("SecurityRoleDescriptor", yaml.safe_load(files[f"{folder}/roles.yml"])["animatediff_reader"]),
        "setup_role": ("SecurityRoleDescriptor", yaml.safe_load(files[f"{folder}/roles.yml"])["animatediff_setup"]),
        "search": ("SearchRequest", search_body(JOB, 0, 1)),
        "next_page": ("SearchRequest", search_body(JOB, 0, 1, [1, "f", 2])),
    }


def declared(name: str, kind: str, value: Any) -> str:
    return f"export const {name}: estypes.{kind} = {json.dumps(value)};"


def merged(value: Any, over: Any) -> Any:
    if not (isinstance(value, dict) and isinstance(over, dict)):
        return over
    return {**value, **{name: merged(value.get(name), inner) for name, inner in over.items()}}


def test_the_client_s_types_accept_every_body(project: Path, files: dict[str, str]) -> None:
    lines = [declared(name, kind, value) for name, (kind, value) in bodies(files).items()]
    assert compiled(project, [IMPORT, *lines]) == ""


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("lifecycle", {"policy": {"phases": {"hot": {"actions": {"rolover": {}}}}}}, """'"rolover"' does not exist"""),
    ("lifecycle", {"policy": {"phases": {"delete": {"min_age": ["14d"]}}}}, "not assignable"),
    ("template", {"template": {"mappings": {"properties": {"kind": {"type": "keywrd"}}}}}, "not assignable"),
    ("template", {"prioritty": 1}, """'"prioritty"' does not exist"""),
    ("writer", {"role_descriptors": {"logstash": {"indices": [{"names": "x"}]}}}, "Property 'privileges' is missing"),
    ("reader_role", {"indexes": []}, """'"indexes"' does not exist"""),
    ("search", {"query": {"bool": {"filters": []}}}, """'"filters"' does not exist"""),
    ("next_page", {"sort": [{"@timestamp": "up"}]}, "not assignable"),
]


def test_the_client_s_types_refuse_a_mistake(project: Path) -> None:
    """Proof that the test above can fail. All at once: the compiler takes seconds to begin."""
    good = bodies(rendered(*CLUSTERS["single"]))
    lines = [
        declared(f"spoilt_{number}", good[name][0], merged(good[name][1], spoil))
        for number, (name, spoil, _) in enumerate(MISTAKES)
    ]
    said = compiled(project, [IMPORT, *lines]).splitlines()
    for number, (name, spoil, expected) in enumerate(MISTAKES):
        about = [line for line in said if line.startswith(f"check.ts({number + 2},")]
        assert any(expected in line for line in about), (name, spoil, about)


def test_lines_are_kept_for_as_long_as_is_asked_for() -> None:
    for days in (14, 90):
        found = rendered(logged_alone(logs={"driver": "elastic", "retention_days": days}), "demo")
        phases = json.loads(found["config/elasticsearch/lifecycle.json"])["policy"]["phases"]
        assert phases["delete"]["min_age"] == f"{days}d"
    assert plan(logged_alone()).hosts[0].log_store.retention_days >= 14  # type: ignore[union-attr]


def test_what_is_searched_for_is_mapped(files: dict[str, str]) -> None:
    mappings = json.loads(files["config/elasticsearch/template.json"])["template"]["mappings"]["properties"]
    body = search_body(JOB, 0, 1)

    def kind(path: str) -> str:
        found: Any = {"properties": mappings}
        for name in path.split("."):
            found = found["properties"][name]
        return str(found["type"])

    should = body["query"]["bool"]["filter"][1]["bool"]["should"]
    assert {kind(field) for one in should for field in one.get("match_phrase", {})} == {"text"}
    assert {kind(field) for one in should for field in one.get("term", {})} == {"keyword"}
    assert {kind(next(iter(one))) for one in body["sort"]} == {"date", "keyword", "long"}
    for field in body["_source"]:
        kind(field)


SETTINGS = {
    *("cluster.name", "node.name", "discovery.type", "http.host", "transport.host", "path.data", "path.logs"),
    *("node.store.allow_mmap", "xpack.security.enabled", "xpack.security.autoconfiguration.enabled"),
    *("xpack.security.enrollment.enabled", "xpack.security.authc.reserved_realm.enabled", "xpack.ml.enabled"),
    *("xpack.security.authc.realms.file.users.order", "ingest.geoip.downloader.enabled"),
    *(f"xpack.security.http.ssl.{key}" for key in ("enabled", "certificate", "key", "supported_protocols")),
    *(f"xpack.security.transport.ssl.{key}" for key in ("enabled", "certificate", "key", "certificate_authorities")),
}
"""All as https://www.elastic.co/docs/reference/elasticsearch/configuration-reference names them: Elasticsearch does not
start with one that it does not know."""


def flat(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def test_elasticsearch_is_closed_but_for_tls_with_a_password(files: dict[str, str]) -> None:
    settings = dict(flat(yaml.safe_load(files["config/elasticsearch/elasticsearch.yml"])))
    assert settings.keys() == SETTINGS
    assert settings["xpack.security.enabled"] is settings["xpack.security.http.ssl.enabled"] is True
    assert settings["xpack.security.authc.reserved_realm.enabled"] is False
    assert settings["transport.host"] == "127.0.0.1"
    assert not [name for name in settings if "watermark" in name], "the defaults hold"
    roles = yaml.safe_load(files["config/elasticsearch/roles.yml"])
    given = dict(line.split(":") for line in files["config/elasticsearch/users_roles"].splitlines())
    assert given == {"animatediff_reader": "operator", "animatediff_setup": "appliance_setup"}
    assert roles.keys() == given.keys()
    for role in roles.values():
        assert not {"all", "manage_security", "manage_api_key", "superuser"} & set(role["cluster"])
        assert {name for grant in role["indices"] for name in grant["names"]} == {"logs-animatediff-*"}


# --- Logstash --------------------------------------------------------------------------------------------------------


def pipeline(files: dict[str, str]) -> tuple[Section, ...]:
    """In the order in which Logstash reads the files."""
    places = [name for name in files if name.startswith("config/logstash/pipeline/") and name.endswith(".conf")]
    texts = [files[name] for name in sorted(places)] + [files["config/elasticsearch/output.conf"]]
    return tuple(section for text in texts for section in parse(text))


BEATS = {
    *("id", "port", "enrich", "client_inactivity_timeout", "ssl_enabled", "ssl_certificate", "ssl_key"),
    *("ssl_certificate_authorities", "ssl_client_authentication", "ssl_supported_protocols"),
}
OUTPUT = {
    *("id", "hosts", "ssl_enabled", "ssl_certificate_authorities", "ssl_supported_protocols", "api_key"),
    *("ecs_compatibility", "data_stream", "data_stream_type", "data_stream_dataset", "data_stream_namespace"),
    *("data_stream_auto_routing", "data_stream_sync_fields", "retry_max_interval"),
}
"""Options of the plugins as their documentation has them."""


def test_the_pipeline_is_logstash_s_language(files: dict[str, str]) -> None:
    assert [section.kind for section in pipeline(files)] == ["input", "filter", "filter", "output"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filter { mutate { add_field => { 'a' => 'b' } }", "Unexpected token"),
        ("filter { mutate { add_field = { 'a' => 'b' } } }", "No terminal matches '='"),
        ("filters { drop { } }", "No terminal matches|Unexpected token"),
        ("filter { if [a] in ['b'] { drop { } } }", "takes an array of one for a field"),
        ("filter { if [a] and [b] or [c] { drop { } } }", "put parentheses"),
        ("filter { if [a] = 'b' { drop { } } }", "No terminal matches '='"),
        ("filter { mutate { remove_field => ['a'] remove_field => ['b'] } }", "given twice"),
        ("filter { mutate { replace => { 'a' => 'b' 'a' => 'c' } } }", "given twice"),
    ],
)
def test_the_grammar_refuses_what_logstash_would(text: str, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        parse(text)


def test_only_who_has_a_certificate_sends_and_everything_is_sent_on_with_a_key(files: dict[str, str]) -> None:
    sections = pipeline(files)
    (beats,), (output,) = sections[0].statements, sections[-1].statements
    assert isinstance(beats, Plugin)
    assert (beats.name, beats.options.keys() - BEATS) == ("beats", set())
    assert (beats.options["ssl_client_authentication"], beats.options["ssl_enabled"]) == ("required", "true")
    assert beats.options["ssl_certificate_authorities"] == ["/run/secrets/ca.crt"]
    assert isinstance(output, Plugin)
    assert (output.name, output.options.keys() - OUTPUT) == ("elasticsearch", set())
    assert output.options["api_key"] == "${api_key}"
    assert output.options["hosts"] == ["https://elasticsearch:9200"]
    # https://www.elastic.co/docs/reference/logstash/plugins/plugins-outputs-elasticsearch: what a data stream wants.
    assert (output.options["data_stream"], output.options["ecs_compatibility"]) == ("true", "v8")
    assert not {"index", "action", "document_id", "manage_template", "template"} & output.options.keys()


def test_logstash_bounds_what_waits(files: dict[str, str]) -> None:
    settings = yaml.safe_load(files["config/logstash/logstash.yml"])
    assert settings.keys() == {
        *("node.name", "path.config", "path.data", "path.logs", "log.format", "pipeline.ecs_compatibility"),
        *("config.reload.automatic", "config.reload.interval", "pipeline.workers", "pipeline.batch.size"),
        *("queue.type", "queue.max_bytes", "dead_letter_queue.enable", "dead_letter_queue.max_bytes"),
        *("dead_letter_queue.storage_policy", "dead_letter_queue.retain.age", "api.http.host", "api.http.port"),
    }
    assert (settings["queue.type"], settings["queue.max_bytes"]) == ("persisted", "1gb")
    assert settings["dead_letter_queue.storage_policy"] == "drop_older"
    assert settings["api.http.host"] == "127.0.0.1"
    assert settings["config.reload.automatic"], "or a new key would need a new start"


# --- Filebeat --------------------------------------------------------------------------------------------------------

FILEBEAT: dict[str, Any] = {
    "filebeat.inputs": [
        {
            **dict.fromkeys(("type", "id", "paths", "message_max_bytes", "file_identity.fingerprint")),
            "prospector.scanner": {
                "fingerprint": dict.fromkeys(("enabled", "offset", "length")),
                "check_interval": None,
            },
            "parsers": [
                {"container": dict.fromkeys(("stream", "format"))},
                {"ndjson": dict.fromkeys(("target", "overwrite_keys", "ignore_decoding_error"))},
            ],
        }
    ],
    "processors": None,  # `shipped` knows them option by option
    "output.logstash": {
        **dict.fromkeys(("hosts", "loadbalance", "bulk_max_size", "timeout")),
        "backoff": dict.fromkeys(("init", "max")),
        "ssl": dict.fromkeys(
            ("certificate_authorities", "certificate", "key", "verification_mode", "supported_protocols")
        ),
    },
    "queue.mem": dict.fromkeys(("events", "flush.min_events", "flush.timeout")),
    "max_procs": None,
    "http": dict.fromkeys(("enabled", "host", "port")),
    "logging": dict.fromkeys(("level", "metrics.enabled")),
}
"""https://www.elastic.co/docs/reference/beats/filebeat/configuring-howto-filebeat: Filebeat says nothing of an option
that it does not know."""


def unknown(value: Any, known: Any, path: str = "") -> list[str]:
    if known is None:
        return []
    if isinstance(known, list):
        return [one for index, item in enumerate(value) for one in unknown(item, known[index], f"{path}[{index}]")]
    strange = [f"{path}.{name}" for name in value.keys() ^ known.keys()]
    return strange + [
        one for name in value.keys() & known.keys() for one in unknown(value[name], known[name], f"{path}.{name}")
    ]


def filebeat(files: dict[str, str]) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(files["config/filebeat/filebeat.yml"])
    return loaded


def test_filebeat_has_only_options_that_there_are(files: dict[str, str]) -> None:
    config = filebeat(files)
    assert unknown(config, FILEBEAT) == []
    config["output.logstash"]["ssl"]["verification"] = "full"
    assert unknown(config, FILEBEAT) == [".output.logstash.ssl.verification"], "proof that it can fail"


def test_filebeat_shows_its_certificate_and_wants_to_see_one(files: dict[str, str]) -> None:
    output = filebeat(files)["output.logstash"]
    assert output["ssl"]["verification_mode"] == "full"
    assert output["ssl"]["certificate_authorities"] == ["/run/secrets/ca.crt"]
    assert {output["ssl"]["certificate"], output["ssl"]["key"]} == {"/run/secrets/logs.crt", "/run/secrets/logs.key"}


def test_filebeat_holds_no_more_than_fits(files: dict[str, str]) -> None:
    """Lines as long as they may be, in a container of so much memory, three times over."""
    config = filebeat(files)
    held = config["queue.mem"]["events"] * config["filebeat.inputs"][0]["message_max_bytes"]
    limit = yaml.safe_load(files["compose.yaml"])["services"]["filebeat"]["deploy"]["resources"]["limits"]["memory"]
    assert 3 * held <= int(limit.removesuffix("m")) << 20
    assert config["output.logstash"]["bulk_max_size"] <= config["queue.mem"]["events"]


# --- from Docker's file to the index ---------------------------------------------------------------------------------


def ours(service: str = "agent", text: str = "claimed", level: int = logging.INFO, **more: Any) -> str:
    """A line as our services write it."""
    record = logging.LogRecord("x", level, "x.py", 1, text, (), None)
    setattr(record, EXTRA, more)
    return JsonLines(service, "gpu-03", "gpu-03/1" if service == "agent" else None).format(record)


def outcome(caplog: pytest.LogCaptureFixture, kind: str, **more: Any) -> str:
    """The line of an attempt's end, by the very function that writes it."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        body = json.dumps({"prompt": "secret wish", "width": 512, "frames": 16})
        log_job_result(JOB, JobState.DONE, kind=kind, worker="gpu-03/1", attempt=1795891553458915, body=body, **more)
    return JsonLines("agent", "gpu-03", "gpu-03/1").format(caplog.records[-1])


def gateway(path: str, status: int = 200) -> str:
    """As `log_format json` in config/nginx/http.conf."""
    line = {
        "@timestamp": "2026-11-28T18:45:53.458+00:00", "log.level": "info" if status < 400 else "error",
        "message": f"GET {path} {status}", "service": "gateway", "node_name": "gpu-03", "event": "http_request",
        "reason": str(status), "request_id": "x", "method": "GET", "path": path, "status": str(status),
        "seconds": "0.001", "upstream": "192.168.1.10:8000", "upstream_status": "200, 200",
    }  # fmt: skip
    return json.dumps(line)


def indexed(files: dict[str, str], text: str, container: str = "agent-1", project: str | None = None) -> Any:
    """What becomes of a line; None where it is dropped. Whatever is left, the template takes."""
    attrs = {
        "com.docker.compose.project": project or yaml.safe_load(files["compose.yaml"])["name"],
        "com.docker.compose.service": container,
    }
    wrapped = {"log": f"{text}\n", "stream": "stdout", "attrs": attrs, "time": "2026-11-28T18:45:54.1Z"}
    events = list(shipped(filebeat(files), [json.dumps(wrapped)]))
    if not events:
        return None
    document = filtered(pipeline(files), events[0])
    if document is not None:
        document = json.loads(json.dumps(document))
        accepted(json.loads(files["config/elasticsearch/template.json"])["template"]["mappings"], document)
    return document


def test_an_outcome_of_a_job_is_never_lost(files: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    for kind, more in (("done", {"seconds": 1.5}), ("oom", {"reason": "OOM", "message": "CUDA out of memory"})):
        text = outcome(caplog, kind, **more)
        document = indexed(files, text)
        assert (document["kind"], document["event"], document["job_id"]) == ("job_result", "job_result", JOB)
        assert document["attempt"] == 1795891553458915
        assert (document["worker"], document["gpu_id"], document["container"]) == ("gpu-03/1", "1", "agent-1")
        assert document["parameters"]["width"] == 512, "without them nothing can be compared"
        assert "secret wish" not in json.dumps(document)
        own = datetime.fromisoformat(json.loads(text)["@timestamp"].replace("Z", "+00:00"))
        assert datetime.fromisoformat(document["@timestamp"]) == own, "its own, not Docker's"
        quiet = json.loads(text) | {"log.level": "debug"}
        assert indexed(files, json.dumps(quiet))["kind"] == "job_result", "at any level"
    assert (document["reason"], document["detail"]) == ("OOM", "CUDA out of memory")
    assert document["log"] == {"level": "warning"}
    assert document["severity"] == 30


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/internal/ping", "/sdapi/v1/progress"])
def test_what_nobody_looks_for_is_dropped_while_all_is_well(files: dict[str, str], path: str) -> None:
    assert indexed(files, gateway(path), "gateway") is None
    assert indexed(files, gateway(path, 503), "gateway")["kind"] == "request"
    assert indexed(files, gateway(f"{path}x"), "gateway")["path"] == f"{path}x"
    assert indexed(files, gateway(f"/secret\n{path}"), "gateway") is not None, "nobody hides behind a line break"


def test_a_request_keeps_what_it_was(files: dict[str, str]) -> None:
    document = indexed(files, gateway(f"/api/v1/jobs/{JOB}"), "gateway")
    assert (document["kind"], document["status"], document["method"]) == ("request", "200", "GET")
    assert document["line"] == {"request_id": "x", "upstream_status": "200, 200"}, "kept, and not searched"
    assert "gpu_id" not in document


@pytest.mark.parametrize(
    ("text", "container", "level", "kind"),
    [
        (
            ours(text="frozen", level=logging.WARNING, event="facts_frozen", reason="redis"),
            "agent-1",
            "warning",
            "failure",
        ),
        (ours(text="ready", event="webui_ready"), "agent-1", "info", "event"),
        (ours("api", "no", logging.ERROR), "api", "error", "failure"),
        (ours("api", "hello"), "api", "info", "text"),
        ('{"time": "x", "level": "WARN", "msg": "slow", "source": {"file": 1}}', "prometheus", "warning", "text"),
        (
            '{"@timestamp": "x", "log.level": "ERROR", "message": "no", "service.name": "ES"}',
            "elasticsearch",
            "error",
            "failure",
        ),
        ('{"level": "FATAL", "logEvent": {"message": "gone"}}', "logstash", "critical", "failure"),
        ('{"a": 1}', "grafana", "info", "text"),
        ("Traceback (most recent call last):", "webui-0", "error", "failure"),
        ("RuntimeError: CUDA error: device-side assert", "webui-0", "error", "failure"),
        ("1:M 28 Nov 2026 18:45:53.458 # WARNING: overcommit", "redis", "warning", "text"),
        ("1:M 28 Nov 2026 18:45:53.458 * Ready; 0 errors seen", "redis", "info", "text"),
        ("", "redis", "info", "text"),
        ("{}", "redis", "info", "text"),
        ("[" * 5000, "redis", "info", "text"),
        ("[1, 2]", "redis", "info", "text"),
    ],
)
def test_every_line_is_told_how_bad_and_of_what_kind_it_is(
    files: dict[str, str], text: str, container: str, level: str, kind: str
) -> None:
    document = indexed(files, text, container)
    assert (document["log"]["level"], document["kind"]) == (level, kind)
    assert document["severity"] == {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}[level]
    assert isinstance(document.get("message", ""), str)
    host = yaml.safe_load(files["config/filebeat/filebeat.yml"])["processors"][3]["add_fields"]["fields"]["node_name"]
    assert (document["node_name"], document["container"]) == (host, container)
    assert ("worker" in document) == container.startswith(("agent", "webui"))
    assert not {"tags", "@version", "docker", "agent", "ecs", "host", "input"} & document.keys()
    assert document["source"] == {"file": "f", "offset": 0}


def test_debug_lines_are_dropped(files: dict[str, str]) -> None:
    assert indexed(files, ours(level=logging.DEBUG)) is None
    assert indexed(files, '{"level": "trace", "msg": "x"}', "grafana") is None


def test_a_traceback_goes_with_its_line(files: dict[str, str]) -> None:
    line = json.loads(ours("api", "failed", logging.ERROR)) | {"error.stack_trace": "Traceback\n  x"}
    document = indexed(files, json.dumps(line), "api")
    assert document["error"] == {"stack_trace": "Traceback\n  x"}
    assert document["message"] == "failed"


@pytest.mark.parametrize(
    "strange", [{"message": {"a": 1}}, {"level": {"a": 1}, "msg": "x"}, {"error": "x", "service": "y"}]
)
def test_what_others_write_becomes_no_field_that_the_index_has_otherwise(files: dict[str, str], strange: Any) -> None:
    """An object for a word would be refused, and lost to all but who reads the dead letters."""
    document = indexed(files, json.dumps(strange), "other")
    assert (document["kind"], type(document["message"])) == ("text", str)
    assert document["line"] == strange


def test_containers_that_are_not_the_cluster_s_are_left_alone(files: dict[str, str]) -> None:
    assert indexed(files, "private", project="other") is None
    bare = {"log": "private\n", "stream": "stdout", "time": "2026-11-28T18:45:54.1Z"}
    assert list(shipped(filebeat(files), [json.dumps(bare)])) == []


@pytest.mark.docker
def test_docker_writes_with_each_line_whose_it_is(images: str, files: dict[str, str]) -> None:
    """By a real Docker, with the options that are rendered: what Filebeat goes by is there, and two workers that say
    the same at the same moment have files that begin differently within what Filebeat compares."""
    compose = yaml.safe_load(files["compose.yaml"])
    options = compose["services"]["filebeat"]["logging"]["options"]
    length = filebeat(files)["filebeat.inputs"][0]["prospector.scanner"]["fingerprint"]["length"]
    begins = []
    for service in ("agent-0", "agent-1"):
        line = json.loads(ours("agent", "the agent of this worker leases jobs")) | {
            "@timestamp": "2026-11-28T18:45:53.458Z"
        }
        wrapped = docker_line(images, compose["name"], service, json.dumps(line | {"worker": service}), options)
        (event,) = shipped(filebeat(files), [wrapped])
        assert (event["container"], event["gpu_id"]) == (service, service[-1])
        begins.append(wrapped.encode()[:length])
    assert all(len(one) == length for one in begins), "a single line of ours is enough"
    assert begins[0] != begins[1]
    assert begins[0][:64] == begins[1][:64], "64 bytes would take the second for the first"


def docker_line(tag: str, project: str, service: str, line: str, options: dict[str, str]) -> str:
    labels = {"com.docker.compose.project": project, "com.docker.compose.service": service}
    words = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    words += [word for name, value in options.items() for word in ("--log-opt", f"{name}={value}")]
    run = ["docker", "run", "--detach", *words, "--entrypoint", "echo", f"animatediff-ha/redis:{tag}", line]
    name = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    try:
        subprocess.run(["docker", "wait", name], capture_output=True, timeout=60, check=True)
        ask = ["docker", "inspect", "--format", "{{.LogPath}}", name]
        path = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        return Path(path).read_text().splitlines()[0]
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60, check=False)
