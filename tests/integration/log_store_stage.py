"""The sink with the files that a rendered host would have, and the one-shot that prepares it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.log_store.settings import read_setup_settings
from appliance.log_store.setup import connected, prepare
from generator import tree
from generator.ops.elastic_logs import Access
from generator.plan import plan
from generator.render import render
from generator.secrets import Store as Secrets
from generator.secrets import lay_out, logs_names
from generator.sources import ROOT, read_sources
from tests.integration.elasticsearch_sink import Store, read_store, serving
from tests.unit.generator.clusters import logged_alone

STREAM = "logs-animatediff-default"
KEY = re.compile(r'api_key => "([^":]+):([^"]+)"')


@dataclass(frozen=True)
class LogStage:
    folder: Path
    """A rendered host: config, secrets, and `output`, which is Logstash's volume."""
    store: Store
    port: int
    access: Access

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def output(self) -> Path:
        return self.folder / "output/output.conf"

    @property
    def key(self) -> tuple[str, str]:
        """`(id, secret)` that Logstash was given."""
        found = KEY.search(self.output.read_text())
        assert found, self.output.read_text()
        return found[1], found[2]

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            "APPLIANCE_NODE_NAME": "demo",
            "APPLIANCE_ELASTICSEARCH_URL": self.url,
            "APPLIANCE_SECRETS_DIR": str(self.folder / "secrets"),
            "APPLIANCE_CONFIG_DIR": str(self.folder / "config/elasticsearch"),
            "APPLIANCE_OUTPUT_DIR": str(self.folder / "output"),
            "APPLIANCE_READY_SECONDS": "10",
            **changes,
        }

    def prepare(self, **changes: str) -> None:
        """What the one-shot does, here. Raises `ApplianceError`."""
        settings = read_setup_settings(self.environment(**changes))
        with connected(settings) as client:
            prepare(client, settings, pause=0.05)

    def set_up(self, **changes: str) -> subprocess.CompletedProcess[str]:
        """`appliance elasticsearch-setup`, to its end."""
        path = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/images/services:{ROOT}/images/sdapi"}
        argv = [sys.executable, "-m", "appliance", "elasticsearch-setup"]
        environment = {**path, **self.environment(**changes)}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def log_stage(folder: Path) -> Iterator[LogStage]:
    the_plan = plan(logged_alone())
    tree.write(folder, render(the_plan, read_sources()))
    secrets = Secrets(folder / "store")
    secrets.create_missing((), tls=False, logs=logs_names(the_plan))
    values = secrets.read()
    lay_out(the_plan, folder, values)
    host = folder / "demo"
    (host / "output").mkdir()
    store = read_store(host / "config/elasticsearch", (host / "secrets/elasticsearch_users").read_text())
    access = Access(values["logs_password"].decode(), folder / "store/ca.crt")
    with serving(store, (host / "secrets/logs.crt", host / "secrets/logs.key")) as port:
        yield LogStage(host, store, port, access)
