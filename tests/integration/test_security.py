"""A whole cluster on one host, and what strangers, curious users and slow senders get from it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from generator.docker import Engine
from generator.keys import KeyRole
from generator.ops.client import Client
from generator.secrets import lay_out
from tests.contract.test_gateway_config import SERVER_NAME, gateway_plan
from tests.integration.gateway_stage import running
from tests.integration.stack import Stack, compose, prepare, submit, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
PROJECT = "adha-security"
SERVICES = ["storage-init", "redis", "api", "webui-0", "agent-0", "gateway", "controller"]
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/internal/ping")}
A1111 = [("POST", f"/sdapi/v1/{name}") for name in ("txt2img", "img2img", "interrupt", "skip", "options", "png-info")]
A1111 += [("GET", f"/sdapi/v1/{name}") for name in ("progress", "options", "memory", "sd-models", "samplers", "loras")]
A1111 += [
    ("POST", "/internal/progress"),
    ("GET", "/internal/pending-tasks"),
    ("GET", "/webui/"),
    ("GET", "/webui/docs"),
]
SLOW_SENDERS = 300
OF_THE_SCANNER = {"engine_problem"}  # its OpenSSL has no GOST ciphers to try; neither has the gateway's
OF_OUR_AUTHORITY = {"cert_chain_of_trust", "cert_revocation", "cert_crlDistributionPoints", "cert_ocspURL"}


@dataclass(frozen=True)
class Users:
    """Keys of two users; `done` and `queued` are jobs of the first."""

    stack: Stack
    ada: str
    bob: str
    done: str
    queued: str

    def ask(self, key: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=self.stack.url, trust_env=False, timeout=20) as client:
            return client.request(method, path, headers=headers, **more)


@pytest.fixture(scope="module")
def users(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    folder = tmp_path_factory.mktemp("security")
    the_plan, host, store = prepare(folder, tag=images, variant="synthetic", project=PROJECT, step_seconds=0.01)
    ada, bob = store.add_api_key("ada", KeyRole.USER), store.add_api_key("bob", KeyRole.USER)
    lay_out(the_plan, folder, store.read())
    gateway = the_plan.hosts[0].gateway
    assert gateway is not None
    composed = compose(host)
    composed.services = SERVICES
    url = f"http://127.0.0.1:{gateway.http_port}"
    with composed, Client(url, ada) as client:
        client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        stack = Stack(PROJECT, the_plan, url, store.read()["api_key"].decode(), engine, f"{PROJECT}_cluster")
        done = submit(client, steps=2)
        wait_for(client, done, lambda job: job["state"] == "done", 60)
        stack.stop("agent-0")
        yield Users(stack, ada, bob, done, submit(client))


def routes(users: Users) -> list[tuple[str, str]]:
    """Every route that the api says it has, with a job in the place of its parameters."""
    paths = users.ask(users.stack.key, "GET", "/api/v1/openapi.json").json()["paths"]
    found = [
        (method.upper(), "/".join(users.done if part.startswith("{") else part for part in path.split("/")))
        for path, operations in paths.items()
        for method in operations
    ]
    assert len(found) >= 10, found
    return found + A1111


def test_no_route_answers_without_a_key(users: Users) -> None:
    told = {
        (method, path): users.ask(None, method, path).status_code
        for method, path in routes(users)
        if (method, path) not in OPEN
    }
    assert set(told.values()) == {401}, {one: status for one, status in told.items() if status != 401}


@pytest.mark.parametrize("key", ["", "x", "operator", "Bearer", "0" * 43, "é" * 20, "x" * 7000])
def test_a_wrong_key_is_none(users: Users, key: str) -> None:
    headers = {"X-Api-Key": key.encode()}
    assert httpx.get(f"{users.stack.url}/api/v1/jobs", headers=headers, trust_env=False).status_code == 401  # type: ignore[arg-type]


def test_a_user_reaches_nobody_else_s_job(users: Users) -> None:
    """Not to see, not to stop, not to run again; and cannot tell whether it exists."""
    of_job = [(method, path) for method, path in routes(users) if path.startswith(f"/api/v1/jobs/{users.done}")]
    assert len(of_job) >= 5, of_job
    for job in (users.done, users.queued):
        for method, path in of_job:
            told = users.ask(users.bob, method, path.replace(users.done, job))
            never = users.ask(users.bob, method, path.replace(users.done, uuid.uuid4().hex))
            assert (told.status_code, never.status_code) in [(404, 404), (422, 422), (403, 403)], (
                method,
                path,
                told.text,
            )
    listed = users.ask(users.bob, "GET", "/api/v1/jobs").json()
    assert users.done not in str(listed)
    assert users.ask(users.ada, "GET", f"/api/v1/jobs/{users.queued}").json()["state"] == "queued"
    assert users.ask(users.ada, "GET", f"/api/v1/jobs/{users.done}/result").status_code == 200


def test_a_user_is_no_operator(users: Users) -> None:
    theirs = ("/api/v1/nodes", "/api/v1/errors", f"/api/v1/jobs/{users.done}/trace")
    for_operators = [(method, path) for method, path in routes(users) if path.startswith(theirs)]
    assert len(for_operators) >= 2, for_operators
    for method, path in for_operators:
        assert users.ask(users.ada, method, path, json={"order": "drain"}).status_code == 403, (method, path)
    seen = users.ask(users.ada, "GET", "/api/v1/cluster").json()
    assert seen.get("events") is None
    assert all(worker.get("job") is None for worker in seen["workers"])


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/jobs/..%2f..%2f..%2fetc%2fpasswd/result",
        "/api/v1/jobs/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/jobs/{job}/result?file=../../../../etc/passwd",
        "/api/v1/jobs/{job}/result?file=-1",
        "/api/v1/jobs/{job}/result?format=../mp4",
        "/api/v1/jobs/{job}%00/result",
        "/api/v1/jobs/{job}/../{job}/result%2f..%2f..%2fCOMMIT",
        "/webui/local/runs/..%2f..%2f..%2fetc%2fpasswd/files/0",
        "/webui/..%2f..%2f..%2fetc%2fpasswd",
        "/webui/static/..%2f..%2fserver.py",
        "/webui/%2e%2e/internal/state",
        "/webui/;/../internal/state",
    ],
)
def test_no_path_leads_out_of_the_results(users: Users, path: str) -> None:
    answer = users.ask(users.ada, "GET", path.format(job=users.done))
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    assert "root:" not in answer.text


def test_a_made_up_address_is_not_believed(users: Users) -> None:
    """Who claims to be somebody else with each request is counted as one all the same."""
    claims = [{"X-Forwarded-For": f"10.0.0.{turn}", "X-Real-IP": f"10.1.0.{turn}"} for turn in range(60)]
    with httpx.Client(base_url=users.stack.url, trust_env=False) as client:
        statuses = [client.post("/api/v1/jobs", json={}, headers=claim).status_code for claim in claims]
    assert set(statuses) == {401, 429}, statuses


def test_the_inner_ports_ask_strangers_for_what_they_have_not(users: Users, images: str) -> None:
    """From a container on the cluster's own network, which holds no secret."""
    script = """
import http.client, json, socket
told = {}
node, api = "webui-0:7860", "api:8000"
for host, method, path in [(node, "POST", "/internal/generate"), (node, "GET", "/internal/state"), (node, "GET", "/"),
        (node, "POST", "/sdapi/v1/txt2img"), (node, "GET", "/metrics"),
        (api, "GET", "/api/v1/cluster"), (api, "GET", "/internal/auth")]:
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.request(method, path, headers={"Authorization": "Bearer x"})
    told[path] = connection.getresponse().status
for command in (b"PING", b"CONFIG GET *", b"KEYS *", b"AUTH default x", b"HELLO 3"):
    with socket.create_connection(("redis", 6379), 5) as redis:
        redis.sendall(command + b"\\r\\n")
        told["redis " + command.decode()] = redis.recv(60).decode().split()[0]
print(json.dumps(told))
"""
    image = f"animatediff-ha/services:{images}"
    run = ["run", "--rm", "--network", users.stack.network, "--entrypoint", "/opt/venv/bin/python", image, "-c", script]
    told = json.loads(users.stack.engine.run(*run))
    assert {status for place, status in told.items() if not place.startswith("redis")} == {401}, told
    assert {status for place, status in told.items() if place.startswith("redis")} <= {"-NOAUTH", "-WRONGPASS"}, told


@contextlib.contextmanager
def slow_senders(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Each has begun a request and goes on with a byte a second."""
    address = urlsplit(url)
    opened: list[socket.socket] = []
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1):
            for one in opened:
                with contextlib.suppress(OSError):
                    one.send(b"j")

    thread = threading.Thread(target=drip)
    try:
        for turn in range(count):
            one = socket.create_connection((address.hostname, address.port), 5)
            opened.append(one)
            body = turn % 2
            one.sendall(
                b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n"
                if body
                else b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "
            )
        thread.start()
        yield opened
    finally:
        stop.set()
        thread.join()
        for one in opened:
            one.close()


def test_slow_senders_keep_nobody_waiting_and_are_sent_away(users: Users) -> None:
    def seconds() -> float:
        begun = time.monotonic()
        assert users.ask(users.ada, "GET", f"/api/v1/jobs/{users.done}").status_code == 200
        return time.monotonic() - begun

    alone = statistics.median(seconds() for _ in range(20))
    with slow_senders(users.stack.url, SLOW_SENDERS) as senders:
        beside = statistics.median(seconds() for _ in range(20))
        print(f"\nmedian {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside {SLOW_SENDERS} slow senders")
        end = time.monotonic() + 40  # client_header_timeout 15 s; a body without a key is not waited for at all
        gone = 0
        while gone < SLOW_SENDERS and time.monotonic() < end:
            time.sleep(0.5)
            gone = sum(ended(one) for one in senders)
        assert gone == SLOW_SENDERS, f"{gone} of {SLOW_SENDERS} were sent away"
    assert seconds() < 5


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it; an answer may come before that."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.long
def test_testssl_finds_nothing_above_low(images: str, tmp_path: Path) -> None:
    """But what a certificate of the cluster's own authority cannot have: the world's trust, revocation."""
    tool = shutil.which("testssl")
    assert tool, "this one needs testssl.sh: apt-get install testssl.sh"
    with running(tmp_path, gateway_plan(), images) as setup:
        report = tmp_path / "report.json"
        address = setup.tls_base.replace("127.0.0.1", SERVER_NAME)
        command = [tool, "--quiet", "--color", "0", "--jsonfile", str(report), "--severity", "MEDIUM"]
        command += ["--ip", "127.0.0.1", address]
        subprocess.run(command, capture_output=True, timeout=600, check=False, env=os.environ | {"OPENSSL_CONF": ""})
    found = json.loads(report.read_text())
    told = [one for one in found if one["id"].partition(" ")[0] not in OF_OUR_AUTHORITY | OF_THE_SCANNER]
    assert not told, told
    assert not [one for one in found if one["id"] == "scanProblem"], found
