"""Debian's rsyslog as a shipper of lines to Elasticsearch's bulk API. It knows no API keys: an nginx beside it, on
loopback, puts one on."""

from __future__ import annotations

import base64
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from generator.docker import Engine
from tests.integration.log_store_stage import STREAM, LogStage
from tests.integration.redis_server import free_ports

DOCKERFILE = """\
FROM animatediff-ha/base:{tag}
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends rsyslog rsyslog-elasticsearch nginx-light \\
 && rm -rf /var/lib/nginx && ln -s /tmp /var/lib/nginx
"""
RSYSLOG = """\
module(load="imfile" pollingInterval="1")
module(load="omelasticsearch")
template(name="line" type="string" string="%msg%")
template(name="id" type="list") {{ property(name="uuid") }}
input(type="imfile" file="/lines/lines.ndjson" tag="lines" ruleset="ship")
ruleset(name="ship") {{
  action(type="omelasticsearch" server="{server}" {login}
    esversion.major="8" searchIndex="{stream}" searchType="" writeOperation="create" dynBulkId="on" bulkId="id"
    bulkMode="on" template="line" errorFile="/tmp/errors.json" retryFailures="off"
    queue.type="linkedList" queue.dequeueBatchSize="50" action.resumeRetryCount="-1" action.resumeInterval="1")
}}
"""
NGINX = """\
daemon off;
pid /tmp/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  client_max_body_size 16m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {url};
      proxy_set_header Authorization "ApiKey {key}";
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate /lines/ca.crt;
      proxy_ssl_name elasticsearch;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Shipper:
    name: str
    folder: Path

    def say(self, *lines: str) -> None:
        with (self.folder / "lines.ndjson").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def errors(self) -> str:
        """What Elasticsearch has refused."""
        return _docker("exec", self.name, "sh", "-c", "cat /tmp/errors.json 2>/dev/null || true")

    def logs(self) -> str:
        return _docker("logs", "--tail", "20", self.name)


@contextmanager
def shipper(engine: Engine, tag: str, folder: Path, stage: LogStage, *, with_key: bool) -> Iterator[Shipper]:
    """It sends what is said, `with_key` as Logstash would, else with a password and TLS of its own."""
    image = f"animatediff-test/rsyslog:{tag}"
    (folder / "context").mkdir(parents=True)
    (folder / "context/Dockerfile").write_text(DOCKERFILE.format(tag=tag))
    for _ in engine.build(["--tag", image, str(folder / "context")], timeout=300):
        pass
    lines = folder / "lines"
    lines.mkdir()
    (port,) = free_ports(1)
    key = base64.b64encode(":".join(stage.key).encode()).decode()
    password = (stage.folder / "secrets/logs_setup_password").read_text()
    login = f'uid="appliance_setup" pwd="{password}" tls.caCert="/lines/ca.crt"'
    server, login = (f"http://127.0.0.1:{port}", "") if with_key else (stage.url, login)
    (lines / "ca.crt").write_bytes(stage.access.authority.read_bytes())
    (lines / "rsyslog.conf").write_text(RSYSLOG.format(server=server, login=login, stream=STREAM))
    (lines / "nginx.conf").write_text(NGINX.format(port=port, url=stage.url, key=key))
    made = Shipper(f"animatediff-test-rsyslog-{uuid.uuid4().hex[:6]}", lines)
    both = "nginx -c /lines/nginx.conf & exec rsyslogd -n -i NONE -f /lines/rsyslog.conf"
    places = ("--network", "host", "--volume", f"{lines}:/lines:ro", "--workdir", "/tmp")
    _docker("run", "--detach", "--init", "--name", made.name, *places, "--entrypoint", "sh", image, "-c", both)
    try:
        yield made
    finally:
        _docker("rm", "--force", made.name)


def _docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
