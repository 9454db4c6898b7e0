"""The guard before Grafana, in the gateway's image: who gets through, and what of a request does."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from generator.sources import ROOT

pytestmark = pytest.mark.docker
TOKEN = "the-cluster-s-token"
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777")
ECHO = """
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

class Echo(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET

HTTPServer(("0.0.0.0", 3000), Echo).serve_forever()
"""


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def guard(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; Grafana is one that says what it was asked."""
    name = f"animatediff-test-guard-{uuid.uuid4().hex[:6]}"
    token: Path = tmp_path_factory.mktemp("guard") / "cluster_token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    docker("network", "create", name)
    try:
        python = ["--entrypoint", "/opt/venv/bin/python", f"animatediff-ha/services:{images}", "-c", ECHO]
        docker("run", "-d", "--name", f"{name}-grafana", "--network", name, "--network-alias", "grafana", *python)
        mounts = ["-v", f"{ROOT}/config/guard:/etc/appliance-nginx:ro", "-v", f"{token}:/run/secrets/cluster_token:ro"]
        docker(
            "run", "-d", "--init", "--name", name, "--network", name, *HARDENED, *mounts,
            f"animatediff-ha/gateway:{images}",
        )  # fmt: skip
        address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
        url = f"http://{address}:8080"
        _wait(url, name)
        yield url
    finally:
        subprocess.run(["docker", "rm", "-f", name, f"{name}-grafana"], capture_output=True, check=False)
        subprocess.run(["docker", "network", "rm", name], capture_output=True, check=False)


def _wait(url: str, name: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"no guard within 30 s\n{docker('logs', name)}")


OPERATOR = {"X-Appliance-User": "ada", "X-Appliance-Role": "operator"}
OURS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (OPERATOR, 401),
        ({**OPERATOR, "Authorization": "Bearer wrong"}, 401),
        ({**OPERATOR, "Authorization": f"Bearer {TOKEN}x"}, 401),
        ({**OPERATOR, "Authorization": f"bearer {TOKEN}"}, 401),
        ({**OPERATOR, "Authorization": TOKEN}, 401),
        (OURS, 403),
        ({**OURS, "X-Appliance-User": "ada"}, 403),
        ({**OURS, "X-Appliance-User": "ada", "X-Appliance-Role": "user"}, 403),
        ({**OURS, "X-Appliance-User": "", "X-Appliance-Role": "operator"}, 403),
        ({**OURS, **OPERATOR}, 200),
    ],
)
def test_only_a_gateway_that_names_an_operator_gets_through(guard: str, headers: dict[str, str], status: int) -> None:
    for path in ("/grafana/", "/grafana/api/ds/query", "/", "/grafana/../x"):
        assert httpx.get(f"{guard}{path}", headers=headers).status_code == status, path


def test_grafana_learns_who_it_is_and_nothing_of_the_token(guard: str) -> None:
    sent = {**OURS, **OPERATOR, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "video.example.net"}
    answer = httpx.post(f"{guard}/grafana/api/ds/query?x=1", headers=sent, content=b"{}")
    asked = json.loads(answer.text)
    assert asked["path"] == "/grafana/api/ds/query?x=1"
    assert asked["headers"]["x-appliance-user"] == "ada"
    assert asked["headers"]["x-forwarded-proto"] == "https"
    assert "authorization" not in asked["headers"]
    assert TOKEN not in answer.text


def test_two_names_are_none(guard: str) -> None:
    headers = [*OURS.items(), *OPERATOR.items(), ("X-Appliance-User", "root")]
    assert httpx.get(f"{guard}/grafana/", headers=headers).status_code == 403
