"""The real gateway container and the real controller in front of three real servers, which get killed and frozen.

Run as a script this module is one of those servers: `gateway_stage.py NAME PORT`. It plays api and node at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.api.auth import presented_key
from generator.planned import Plan
from generator.secrets import nginx_header
from generator.sources import ROOT
from tests.contract.test_gateway_config import certificate, docker, gateway_plan, render, sysctls

USER = "user-"
"""How every key begins that the upstreams take."""
OPERATOR = "operator-"
"""And how those of operators do."""
KEY = {"Authorization": f"Bearer {USER}key"}
TOKEN = b"cluster-token"
SHOWN_TOKEN = f"Bearer {TOKEN.decode()}"
MEBIBYTE = 1 << 20
NODES = ("gpu-01/0", "gpu-02/0", "gpu-03/0")

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for http:// only; httpx would load the CA bundle for each request


def serve(name: str, port: int) -> None:
    """One upstream: answers who it is and what it saw, `at` one of them with `status`; `die` breaks off."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    seen: Counter[str] = Counter()

    async def echo(request: Request) -> Response:
        body = await request.body()
        seen[f"{request.method} {request.url.path}"] += 1
        if request.query_params.get("die") in (name, "any"):
            os._exit(1)
        answer = {"node": name, "path": request.url.path, "headers": dict(request.headers), "bytes": len(body)}
        status = request.query_params.get("status", 200) if request.query_params.get("at") in (name, None) else 200
        return JSONResponse(answer, status_code=int(status))

    async def authorize(request: Request) -> Response:
        seen["authorize"] += 1
        key = presented_key(request.headers) or ""
        role = "operator" if key.startswith(OPERATOR) else "user"
        headers = {"WWW-Authenticate": "Bearer", "X-Appliance-User": "anna", "X-Appliance-Role": role}
        return Response(status_code=200 if key.startswith((USER, OPERATOR)) else 401, headers=headers)

    async def events(request: Request) -> Response:
        async def stream() -> Any:
            for number in range(3):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.3)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_json({"node": name, "text": text, "headers": dict(websocket.headers)})

    everything = ["GET", "POST", "PUT"]
    application = Starlette(
        routes=[
            Route("/internal/ping", lambda _: JSONResponse({"status": "ok"})),
            Route("/readyz", lambda _: JSONResponse({"status": "ok"})),
            Route("/internal/auth", authorize),
            Route("/seen", lambda _: JSONResponse(seen)),
            Route("/api/v1/jobs/{job}/events", events),
            WebSocketRoute("/api/v1/jobs/{job}/ws", talk),
            WebSocketRoute("/queue/join", talk),
            Route("/{path:path}", echo, methods=everything),
        ]
    )
    uvicorn.run(application, host="0.0.0.0", port=port, log_level="warning", ws="websockets-sansio")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(what: str, ready: Callable[[], bool], hint: Callable[[], str], seconds: float = 15) -> float:
    begin = time.monotonic()
    while not ready():
        if time.monotonic() - begin > seconds:
            pytest.fail(f"{what}: not within {seconds} s\n{hint()}")
        time.sleep(0.02)
    return time.monotonic() - begin


@dataclass
class Upstream:
    name: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.gateway_stage", self.name, str(self.port)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/images/services:{ROOT}/images/sdapi"},
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def seen(self) -> dict[str, int]:
        answer: dict[str, int] = httpx.get(f"http://127.0.0.1:{self.port}/seen", timeout=2).json()
        return answer


@dataclass
class Setup:
    folder: Path
    upstreams: dict[str, Upstream]
    plan: Plan
    tag: str
    leave_seconds: float = 0.0
    container: str = field(default_factory=lambda: f"animatediff-test-gateway-{uuid.uuid4().hex[:6]}")
    base: str = ""
    tls_base: str = ""
    controller: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "state.sock"

    def start_gateway(self) -> None:
        for parent in (self.folder, *self.folder.parents[:2]):
            parent.chmod(0o755)
        configuration = render(self.plan, self.folder / "nginx")
        token = self.folder / "cluster_token.nginx"
        token.write_bytes(nginx_header(TOKEN))
        run = self.folder / "run"
        run.mkdir(mode=0o700)
        user = os.getuid() or 10001  # a socket in a folder that only this user may enter
        if os.getuid() == 0:
            os.chown(run, user, user)
        certificate(self.folder)
        mounts = {configuration: "/etc/appliance-nginx:ro", token: "/run/secrets/cluster_token.nginx:ro",
                  run: "/run/gateway", self.folder / "tls.crt": "/etc/nginx/tls/tls.crt:ro",
                  self.folder / "tls.key": "/etc/nginx/tls/tls.key:ro"}  # fmt: skip
        result = docker(
            "run", "-d", "--name", self.container, "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges:true", "--init", "--tmpfs", "/tmp:mode=1777",
            "--user", f"{user}:{user}", "-e", "APPLIANCE_NODE_NAME=gpu-01",
            "-e", f"APPLIANCE_LEAVE_SECONDS={self.leave_seconds:g}",
            "-p", "127.0.0.1::8080", "-p", "127.0.0.1::8443", *sysctls(self.plan),
            *(argument for source, target in mounts.items() for argument in ("-v", f"{source}:{target}")),
            f"animatediff-ha/gateway:{self.tag}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        self.find_ports()
        wait_for("gateway", lambda: self.status("/healthz") == 200, self.logs)

    def find_ports(self) -> None:
        self.base = "http://" + docker("port", self.container, "8080").stdout.split()[0]
        self.tls_base = "https://" + docker("port", self.container, "8443").stdout.split()[0]

    def start_controller(self, **environment: str) -> None:
        bridge = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").stdout.strip()
        peers = [{"name": name, "address": f"{bridge}:{peer.port}"} for name, peer in self.upstreams.items()]
        (self.folder / "redis_password").write_text("nobody asks for it")
        with (self.folder / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(
                [sys.executable, "-c", "from appliance.controller.main import run; run()"],
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(ROOT / "images" / "services"),
                    "TMPDIR": str(self.folder),
                    "APPLIANCE_NODE_NAME": "gpu-01",
                    "APPLIANCE_GATEWAY_SOCKET": str(self.socket),
                    "APPLIANCE_SECRETS_DIR": str(self.folder),
                    "APPLIANCE_REDIS_ADDRESS": "127.0.0.1:1",  # nobody there: traffic does not depend on it
                    "APPLIANCE_CONTROLLER_TARGETS": json.dumps({"api": peers, "webui": peers}),
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop_controller(self) -> int:
        assert self.controller
        self.controller.terminate()
        code = self.controller.wait(timeout=5)
        self.controller = None
        return code

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.base + path, timeout=2, verify=PLAIN).status_code
        except httpx.HTTPError:
            return 0

    def state(self, body: Any = None) -> httpx.Response:
        """GET /state, or PUT of `body` where one is given, until all of nginx's workers know it."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket), verify=PLAIN)) as client:
            if body is None:
                return client.get("http://state/state")
            answer = client.put("http://state/state", content=body if isinstance(body, str) else json.dumps(body))
        time.sleep(0.002)  # each worker looks for a new one in each of nginx's milliseconds once
        return answer

    def peers(self, pool: str) -> list[dict[str, Any]]:
        answer = self.state()
        found: list[dict[str, Any]] = answer.json()["state"]["pools"][pool] if answer.status_code == 200 else []
        return found

    def pool(self, pool: str = "webui") -> set[str]:
        return {peer["name"] for peer in self.peers(pool)}

    def takers(self, pool: str) -> set[str]:
        """Those that take new requests."""
        return {peer["name"] for peer in self.peers(pool) if peer.get("weight", 1) > 0}

    def logs(self) -> str:
        gateway = docker("logs", "--tail", "20", self.container)
        controller = self.folder / "controller.log"
        return gateway.stdout + gateway.stderr + (controller.read_text()[-4000:] if controller.exists() else "")

    def wait_for_all(self) -> None:
        wait_for("all peers", lambda: self.takers("webui") == self.takers("api") == set(self.upstreams), self.logs)


@contextlib.contextmanager
def running(folder: Path, the_plan: Plan, tag: str, leave_seconds: float = 0.0, **environment: str) -> Iterator[Setup]:
    setup = Setup(folder, {name: Upstream(name) for name in NODES}, the_plan, tag, leave_seconds)
    try:
        for upstream in setup.upstreams.values():
            upstream.start()
        setup.start_gateway()
        setup.start_controller(**environment)
        setup.wait_for_all()
        yield setup
    finally:
        if setup.controller:
            setup.controller.kill()
            setup.controller.wait()
        docker("rm", "-f", setup.container)
        for upstream in setup.upstreams.values():
            upstream.stop()


@pytest.fixture(scope="module")
def shared(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    the_plan = gateway_plan(tls={"mode": "none"}, submissions_per_second=5, max_body_mib=1)
    folder = tmp_path_factory.mktemp("gateway")
    with running(folder, the_plan, images, APPLIANCE_PROBE_TIMEOUT_SECONDS="0.2") as made:
        yield made


@pytest.fixture
def setup(shared: Setup) -> Setup:
    """Everything up again, whatever the test before has broken."""
    for upstream in shared.upstreams.values():
        if upstream.process is None or upstream.process.poll() is not None:
            upstream.start()
    for upstream in shared.upstreams.values():  # the pools may not have noticed yet that one was gone
        wait_for(upstream.name, upstream.listens, shared.logs)
    if shared.controller is None:
        shared.start_controller(APPLIANCE_PROBE_TIMEOUT_SECONDS="0.2")
    shared.wait_for_all()
    return shared


class Visitors:
    """Browsers, each with its own cookie."""

    def __init__(self, setup: Setup, count: int) -> None:
        self._setup = setup
        self._cookies = [self._visit(None).cookies["appliance_client"] for _ in range(count)]

    def _visit(self, cookie: str | None) -> httpx.Response:
        headers = {**KEY, **({"Cookie": f"appliance_client={cookie}"} if cookie else {})}
        return httpx.get(self._setup.base + "/webui/page", headers=headers, timeout=2, verify=PLAIN)

    def nodes(self) -> list[str]:
        return [self._visit(cookie).json()["node"] for cookie in self._cookies]


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
