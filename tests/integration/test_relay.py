"""`python -m appliance relay` for real, between what Alertmanager sends and a robot that answers as robots do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from appliance.relay import app as relay_app
from appliance.relay.messages import Kind, Verdict
from appliance.relay.settings import RelaySettings, Robot
from appliance.settings import Secret
from tests.integration.redis_server import SERVICES, free_ports

TOKEN = "the-cluster-s-token"
NOTIFICATION = {
    "version": "4",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "GpuLost", "severity": "critical", "node_name": "gpu-01", "cluster": "studio"},
            "annotations": {"summary": "GPU 0 is lost", "description": "d", "runbook": "r"},
        }
    ],
}


@dataclass
class Robots:
    """The servers of DingTalk and WeCom. `answer`: what they say to the next message."""

    port: int = 0
    answer: tuple[int, bytes] = (200, b'{"errcode": 0, "errmsg": "ok"}')
    silence: float = 0.0
    got: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def robots() -> Iterator[Robots]:
    state = Robots()

    class Robot(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.got.append((self.path, body))
            time.sleep(state.silence)
            status, text = state.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Robot) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def send(self, name: str, body: Any = NOTIFICATION, token: str = TOKEN) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{self.url}/{name}", content=content, headers=headers, timeout=15)


@pytest.fixture
def relay(robots: Robots, tmp_path: Path) -> Iterator[Running]:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "cluster_token").write_text(TOKEN)
    (secrets / "receiver_ding_url").write_text(f"http://127.0.0.1:{robots.port}/robot/send?access_token=hidden\n")
    (secrets / "receiver_ding_secret").write_text("SECabc\n")
    (secrets / "receiver_wecom_url").write_text(f"http://127.0.0.1:{robots.port}/cgi-bin/webhook/send?key=hidden")
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "PYTHONPATH": SERVICES,
        "APPLIANCE_NODE_NAME": "gpu-01",
        "APPLIANCE_SECRETS_DIR": str(secrets),
        "APPLIANCE_LISTEN": f"127.0.0.1:{port}",
        "APPLIANCE_RELAYS": '{"ding": "dingtalk", "wecom": "wecom"}',
        "no_proxy": "127.0.0.1",
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "relay"], env=environment, stdout=out, stderr=out
        )
    running = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if httpx.get(f"{running.url}/healthz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield running
    finally:
        process.kill()
        process.wait()


def test_each_robot_gets_the_body_that_it_wants(relay: Running, robots: Robots) -> None:
    assert relay.send("ding").status_code == 200
    assert relay.send("wecom").status_code == 200
    (ding_path, ding), (wecom_path, wecom) = robots.got
    assert parse_qs(urlsplit(ding_path).query).keys() == {"access_token", "timestamp", "sign"}
    assert ding["markdown"]["title"] == "AnimateDiff studio: 1 firing"
    assert "GPU 0 is lost" in ding["markdown"]["text"]
    assert wecom_path == "/cgi-bin/webhook/send?key=hidden"
    assert "GPU 0 is lost" in wecom["markdown"]["content"]


async def test_a_robot_that_never_comes_to_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes comes in time; Alertmanager has given up long before the last."""

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        over.set()

    over = asyncio.Event()
    monkeypatch.setattr(relay_app, "SEND_SECONDS", 0.3)
    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    robot = Robot("ding", Kind.WECOM, Secret(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"), None)
    async with server, httpx.AsyncClient(trust_env=False) as client:
        sending = relay_app.Relay(RelaySettings, client)._send(robot, {})  # type: ignore[arg-type]
        assert await asyncio.wait_for(sending, 5) == (Verdict.LATER, "TimeoutError")
        await asyncio.wait_for(over.wait(), 5)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, b'{"errcode": 310000, "errmsg": "sign not match"}'), 400),
        ((200, b'{"errcode": 130101, "errmsg": "send too fast"}'), 503),
        ((200, b"<html>"), 400),
        ((200, b"[" * 100_000), 400),
        ((502, b"bad gateway"), 503),
    ],
)
def test_alertmanager_learns_whether_to_try_again(
    relay: Running, robots: Robots, answer: tuple[int, bytes], status: int
) -> None:
    robots.answer = answer
    said = relay.send("ding")
    assert said.status_code == status
    assert "hidden" not in said.text + relay.log.read_text(), "the address is a secret"
    robots.answer = (200, b'{"errcode": 0}')
    assert relay.send("ding").status_code == 200


def test_a_robot_that_is_away_is_tried_again(relay: Running, robots: Robots, tmp_path: Path) -> None:
    robots.silence = 11
    begin = time.monotonic()
    assert relay.send("ding").status_code == 503
    assert time.monotonic() - begin < 11, "before Alertmanager gives up"
    assert "hidden" not in relay.log.read_text()


@pytest.mark.parametrize(
    ("name", "body", "token", "status"),
    [
        ("ding", NOTIFICATION, "wrong", 401),
        ("nobody", NOTIFICATION, TOKEN, 404),
        ("ding", b"", TOKEN, 400),
        ("ding", b"{", TOKEN, 400),
        ("ding", b"[" * 100_000, TOKEN, 400),
        ("ding", b"\xff", TOKEN, 400),
        ("ding", {"alerts": "x"}, TOKEN, 400),
        ("ding", b" " * ((1 << 20) + 1), TOKEN, 413),
    ],
)
def test_strangers_and_strange_bodies_reach_nobody(
    relay: Running, robots: Robots, name: str, body: Any, token: str, status: int
) -> None:
    assert relay.send(name, body, token).status_code == status
    assert robots.got == []
    assert relay.send("ding").status_code == 200


def test_it_ends_at_once_and_well(relay: Running) -> None:
    relay.process.send_signal(signal.SIGTERM)
    assert relay.process.wait(5) == 0


def test_what_is_missing_is_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "receiver_a_url").write_text("robot")
    environment = {
        **os.environ,
        **{"PYTHONPATH": SERVICES, "APPLIANCE_SECRETS_DIR": str(tmp_path), "APPLIANCE_NODE_NAME": "gpu-01"},
        "APPLIANCE_RELAYS": '{"a": "dingtalk", "b": "wecom"}',
    }
    argv = [sys.executable, "-m", "appliance", "relay"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    for said in ("cluster_token: cannot be read", "receiver_a_url: holds no address", "receiver_b_url: cannot be read"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
