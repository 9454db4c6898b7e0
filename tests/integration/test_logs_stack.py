"""A rendered host with stand-ins for Elastic's programs: from the line that a container says to `generator trace`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.job import new_job_id
from generator import tree
from generator.docker import Engine
from generator.load import load
from generator.ops.cluster import places
from generator.ops.elastic_logs import Access, ElasticLogs
from generator.plan import plan
from generator.render import render
from generator.secrets import Store, lay_out, logs_names
from generator.sources import ROOT, read_sources
from tests.unit.generator.clusters import logged_alone

pytestmark = pytest.mark.docker
PROGRAMS = ("elasticsearch", "logstash", "filebeat")
SINK = (
    *("contract/log_filters.py", "contract/logstash_grammar.py"),
    *(
        "integration/elastic_stand_ins.py",
        "integration/elasticsearch_sink.py",
        "integration/elasticsearch_documents.py",
    ),
)
# The folders, owners and modes of the originals, as their Dockerfiles make them.
DOCKERFILE = """\
FROM animatediff-ha/base:{tag}
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends python3 python3-yaml python3-bcrypt python3-lark curl
RUN for name in elasticsearch logstash; do \\
      for part in bin config data logs config/jvm.options.d; do install -d -m 0775 /usr/share/$name/$part; done; \\
      printf -- '-Xms1g\\n9-:-Xlog:gc*:file=logs/gc.log\\n' > /usr/share/$name/config/jvm.options; \\
      touch /usr/share/$name/config/log4j2.properties; chown -R 1000:0 /usr/share/$name; \\
    done; \\
    install -d -m 0775 /usr/share/filebeat/data; \\
    for name in elasticsearch logstash filebeat; do \\
      mkdir -p /usr/share/$name/bin; \\
      program=/usr/share/$name/bin/$name; \\
      printf '#!/bin/sh\\nexec python3 -m tests.integration.elastic_stand_ins %s "$@"\\n' $name > $program; \\
      chmod 0755 $program; \\
    done
COPY tests /sink/tests
ENV PYTHONPATH=/sink PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:0
ENTRYPOINT ["/usr/share/{program}/bin/{program}"]
"""
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Stack:
    engine: Engine
    folder: Path
    """Of the host; cluster.yaml and the secrets lie above it."""
    name: str
    tag: str

    def compose(self, *words: str) -> str:
        return self.engine.compose(self.folder, "--profile", "vendor", *words)

    def up(self) -> None:
        self.compose("up", "--detach", "--wait", "--wait-timeout", "120", "logstash", "filebeat")

    def say(self, service: str, *lines: str) -> None:
        """A container of the cluster says these lines and ends."""
        said = {"image": f"animatediff-ha/redis:{self.tag}", "entrypoint": ["printf", "%s\\n", *lines]}
        logging = yaml.safe_load((self.folder / "compose.yaml").read_text())["services"]["filebeat"]["logging"]
        override = {"services": {service: {**said, "labels": {}, "logging": logging}}}
        path = self.folder / "compose.override.yaml"
        held = yaml.safe_load(path.read_text())["services"] if path.exists() else {}
        path.write_text(yaml.safe_dump({"services": held | override["services"]}))
        files = ("--file", str(self.folder / "compose.yaml"), "--file", str(path))
        argv = ["docker", "compose", *files, "--profile", "vendor", "up", "--detach", "--no-deps", service]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def trace(self, job: str) -> dict[str, Any]:
        """What the command answers."""
        argv = [sys.executable, "-m", "generator", "trace", job, "--json", "--file", "cluster.yaml", "--out", "."]
        done = subprocess.run(argv, cwd=self.folder.parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def kept(self, job: str) -> list[str]:
        store = Store(self.folder.parent / "secrets")
        the_plan = plan(load(self.folder.parent / "cluster.yaml").cluster)
        (place,) = places(the_plan, self.folder.parent)
        access = Access(store.read()["logs_password"].decode(), self.folder.parent / "secrets/ca.crt")
        return [line.message for line in ElasticLogs(place, access).lines(job, 0, time.time() + 600)]

    def wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not ready():
            if time.monotonic() > end:
                pytest.fail(f"{what}: not within {WAIT_SECONDS:g} s\n{self.compose('logs', '--tail', '8')}")
            time.sleep(0.2)


def build_stand_ins(engine: Engine, tag: str, folder: Path) -> None:
    for file in SINK:
        (folder / "tests" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / file, folder / "tests" / file)
    for program in PROGRAMS:
        (folder / "Dockerfile").write_text(DOCKERFILE.format(tag=tag, program=program))
        for _ in engine.build(["--tag", f"animatediff-test/{program}:{tag}", str(folder)], timeout=300):
            pass


@pytest.fixture(scope="module")
def stack(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("logs-stack")
    build_stand_ins(engine, images, tmp_path_factory.mktemp("stand-ins"))
    name = f"adha-logs-{uuid.uuid4().hex[:6]}"
    root = engine_root()
    logs = {
        "driver": "elastic",
        "images": "animatediff-test",
        "version": images,
        "docker_folder": root,
        "memory_gib": 1,
    }
    cluster = logged_alone(name=name, logs=logs, images={"tag": images, "webui": "synthetic"})
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster.model_dump(mode="json", exclude_unset=True)))
    the_plan = plan(load(folder / "cluster.yaml").cluster)
    tree.write(folder, render(the_plan, read_sources()))
    store = Store(folder / "secrets")
    store.create_missing((), tls=False, logs=logs_names(the_plan))
    lay_out(the_plan, folder, store.read())
    made = Stack(engine, folder / "demo", name, images)
    try:
        made.up()
        yield made
    finally:
        made.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


def engine_root() -> str:
    argv = ["docker", "info", "--format", "{{.DockerRootDir}}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def ours(job: str, text: str, **more: Any) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".458Z"
    line = {"@timestamp": moment, "log.level": "info", "message": text, "service": "agent", "node_name": "demo"}
    return json.dumps({**line, "worker": "demo/7", "gpu_id": "7", "job_id": job, **more})


def test_what_a_container_says_is_kept_and_traced(stack: Stack) -> None:
    job = new_job_id()
    stack.say("agent-7", ours(job, "claimed", event="claimed"), f"plain words about {job}", "nothing of interest")
    stack.wait_for("the lines", lambda: len(stack.kept(job)) == 2)
    answer = stack.trace(job)
    assert [(one["source"], one["text"]) for one in answer["entries"]] == [
        ("demo/agent-7", "claimed (event=claimed)"),
        ("demo/agent-7", f"plain words about {job}"),
    ]
    assert [one.split(":")[0] for one in answer["missing"]] == ["what the queue knows"], "no gateway runs here"


def test_while_the_store_is_away_nothing_is_lost_and_the_containers_are_asked(stack: Stack) -> None:
    """It forgets everything, its keys too: the setup makes another, which Logstash takes up by itself."""
    job = new_job_id()
    before = stack.compose("ps", "--quiet", "logstash")
    stack.compose("stop", "--timeout", "1", "elasticsearch")
    stack.say("agent-8", ours(job, "said meanwhile"))
    stack.wait_for("Docker has it", lambda: "said meanwhile" in stack.compose("logs", "--no-color", "agent-8"))
    answer = stack.trace(job)
    assert [one["text"] for one in answer["entries"]] == ["said meanwhile"]
    assert "own logs were read as well, for Elasticsearch on demo: it does not run" in answer["missing"][-1]
    stack.up()
    stack.wait_for("the line", lambda: stack.kept(job) == ["said meanwhile"])
    assert stack.compose("ps", "--quiet", "logstash") == before, "Logstash was not started anew"


SENDER = """\
import socket, ssl, sys
context = ssl.create_default_context(cafile="/run/secrets/ca.crt")
if sys.argv[1] == "with":
    context.load_cert_chain("/run/secrets/logs.crt", "/run/secrets/logs.key")
try:
    with context.wrap_socket(socket.create_connection(("logstash", 5044), 5), server_hostname="logstash") as sender:
        sender.sendall(b'{"@timestamp": "2026-11-28T18:45:53Z", "container": "x"}\\n\\n')
        print("taken" if sender.recv(3) == b"ok\\n" else "refused")
except OSError:
    print("refused")
"""


@pytest.mark.parametrize(("certificate", "answer"), [("with", "taken"), ("without", "refused")])
def test_only_who_has_a_certificate_is_listened_to(stack: Stack, certificate: str, answer: str) -> None:
    """From within the network, where a container that is no Filebeat may be."""
    argv = ["exec", "--no-TTY", "elasticsearch", "python3", "-c", SENDER, certificate]
    assert stack.compose(*argv).strip() == answer
