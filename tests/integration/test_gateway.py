"""The real gateway container and the real controller in front of three real servers, which get killed and frozen.

Run as a script this module is one of those servers: `test_gateway.py NAME PORT`. It plays api and node at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client

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

pytestmark = pytest.mark.docker


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
            [sys.executable, "-m", "tests.integration.test_gateway", self.name, str(self.port)],
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


def test_visitors_stay_and_only_those_of_a_dead_node_move(setup: Setup) -> None:
    visitors = Visitors(setup, 60)
    before = visitors.nodes()
    assert min(Counter(before)[node] for node in NODES) >= 8
    assert visitors.nodes() == before
    setup.upstreams[NODES[1]].stop()
    wait_for("node out", lambda: NODES[1] not in setup.pool(), setup.logs)
    after = visitors.nodes()
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {NODES[1]}
    assert set(after) == {NODES[0], NODES[2]}
    setup.upstreams[NODES[1]].start()
    setup.wait_for_all()
    assert visitors.nodes() == before


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_broken_node_leaves_quickly(setup: Setup, fault: signal.Signals) -> None:
    victim = setup.upstreams[NODES[2]]
    victim.signal(fault)
    seconds = wait_for("node out", lambda: NODES[2] not in setup.pool() | setup.pool("api"), setup.logs)
    print(f"\n{fault.name}: out of the pools after {seconds:.2f} s")
    assert setup.pool() == {NODES[0], NODES[1]}
    victim.stop()


def test_a_killed_node_costs_no_get(setup: Setup) -> None:
    visitors = Visitors(setup, 20)
    answered: list[str] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answered.extend(visitors.nodes())
            except Exception as error:
                failed.append(error)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    wait_for("the first round", lambda: len(answered) >= 20, setup.logs)
    setup.upstreams[NODES[0]].stop()
    wait_for("three rounds more", lambda: len(answered) + 20 * len(failed) >= 80, setup.logs)
    stop.set()
    asking.join()
    assert failed == []
    assert set(answered[-20:]) <= {NODES[1], NODES[2]}


def test_a_get_that_broke_off_is_answered_by_another(setup: Setup) -> None:
    answers = {httpx.get(f"{setup.base}/api/v1/x?die={NODES[0]}", timeout=5).json()["node"] for _ in range(6)}
    assert answers == {NODES[1], NODES[2]}


def alive_of(setup: Setup) -> list[Upstream]:
    return [peer for peer in setup.upstreams.values() if peer.process and peer.process.poll() is None]


def test_a_post_that_broke_off_is_never_sent_twice(setup: Setup) -> None:
    answer = httpx.post(f"{setup.base}/api/v1/jobs?die=any", json={}, headers=KEY, timeout=5)
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "2"
    wait_for("the end of the one that broke off", lambda: len(alive_of(setup)) == 2, setup.logs)
    alive = alive_of(setup)
    assert [peer.seen().get("POST /api/v1/jobs", 0) for peer in alive] == [0, 0]


def test_a_post_to_a_peer_that_refuses_goes_to_another(setup: Setup) -> None:
    """Nothing was sent, so nothing can be doubled. The controller is stopped: nginx alone has to cope."""
    setup.stop_controller()
    setup.upstreams[NODES[0]].stop()
    answers = [httpx.post(f"{setup.base}/api/v1/other", json={}, headers=KEY, timeout=5) for _ in range(9)]
    assert {answer.status_code for answer in answers} == {200}
    alive = [setup.upstreams[name].seen().get("POST /api/v1/other", 0) for name in NODES[1:]]
    assert sum(alive) == 9


def test_a_wrong_state_is_refused_and_the_last_good_one_kept(setup: Setup) -> None:
    setup.stop_controller()
    good = setup.state().json()["state"]
    peer = {"name": "a", "ip": "10.0.0.1", "port": 1}
    wrong: list[Any] = [
        "",
        "{",
        "3",
        [],
        {**good, "epoch": 3},
        {**good, "epoch": "x"},
        {**good, "version": "9"},
        {**good, "version": 1.5},
        {**good, "pools": {"api": []}},
        {**good, "pools": {"api": {"a": peer}, "webui": []}},
        *({**good, "version": good["version"] + 1, "pools": {"api": [entry], "webui": []}} for entry in (
            3, {**peer, "name": ""}, {**peer, "ip": "gpu-01"}, {**peer, "ip": "300.1.1.1"}, {**peer, "port": 0},
            {**peer, "port": "80"}, {"name": "a", "ip": "10.0.0.1"},
        )),
        {**good, "pools": {"api": [peer, peer], "webui": []}},
        {**good, "pools": {"api": [], "webui": [peer]}},
        {**good, "pools": {"api": [], "webui": [{**peer, "weight": -1}]}},
        {**good, "pools": {"api": [], "webui": [{**peer, "weight": 1, "trial": 1}]}},
    ]  # fmt: skip
    for body in wrong:
        assert setup.state(body).status_code == 400, body
    empty: dict[str, list[Any]] = {"api": [], "webui": []}
    outdated = [
        {**good, "version": good["version"] - 1, "pools": empty},
        {**good, "pools": empty},
        {**good, "epoch": str(int(good["epoch"]) - 1), "version": 99, "pools": empty},
    ]
    for body in outdated:
        assert setup.state(body).status_code == 409, body
    assert setup.state().json()["state"] == good
    assert setup.status("/readyz") == 200
    newer = {**good, "version": good["version"] + 1, "pools": empty}
    assert setup.state(newer).status_code == 200
    assert setup.status("/readyz") == 503


def test_an_empty_pool_is_waited_for_once_and_then_answered_with_503(setup: Setup) -> None:
    setup.stop_controller()
    state = setup.state().json()["state"]
    emptied = {**state, "version": state["version"] + 1, "pools": {"api": [], "webui": []}}
    assert setup.state(emptied).status_code == 200
    for path in ("/api/v1/jobs", "/webui/", "/webui/queue/join"):
        answer = httpx.get(setup.base + path, headers=KEY)
        assert answer.status_code == 503, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["type"] == "unavailable"
    # The first of them waited for 3 s. Whoever comes later knows that nobody will be back by then.
    begin = time.monotonic()
    for path in ("/api/v1/jobs", "/webui/") * 3:
        assert httpx.get(setup.base + path, headers=KEY, verify=PLAIN).status_code == 503
    assert time.monotonic() - begin < 2.5


def test_the_state_returns_soon_after_the_gateway_restarted(setup: Setup) -> None:
    docker("kill", setup.container)  # leaves the socket file behind
    docker("start", setup.container)
    setup.find_ports()
    seconds = wait_for("state", lambda: setup.status("/readyz") == 200, setup.logs)
    print(f"\nready {seconds:.2f} s after the container's restart")


@pytest.mark.parametrize("kind", ["drain", "quarantine"])
def test_a_controller_that_starts_without_redis_keeps_to_the_orders(setup: Setup, kind: str) -> None:
    """The node that is ordered out answers as well as the others; only the gateway still knows."""
    setup.stop_controller()
    before = setup.state().json()["state"]
    orders = {NODES[1]: json.dumps({"order": kind, "by": "ada", "at": 0}), NODES[2]: "no order"}
    assert setup.state(before | {"version": before["version"] + 1, "orders": orders}).status_code == 200
    setup.start_controller()
    try:
        weights: dict[str, float] = {}

        def others_are_in() -> bool:
            state = setup.state().json()["state"]  # read once: between two reads another one may come
            weights.clear()
            weights.update({peer["name"]: peer["weight"] for peer in state["pools"]["webui"]})
            return state["epoch"] != before["epoch"] and all(weights.get(name, 0) > 0 for name in (NODES[0], NODES[2]))

        for _ in range(2):  # as soon as it knows them, and still when it has pushed again
            wait_for("the other nodes", others_are_in, setup.logs)
            assert weights.get(NODES[1]) == (0 if kind == "drain" else None)
            time.sleep(2.5)
        assert set(setup.state().json()["state"]["orders"]) == {NODES[1]}
    finally:
        setup.stop_controller()
        last = setup.state().json()["state"]
        setup.state(last | {"version": last["version"] + 1, "orders": {}})


@pytest.mark.parametrize(
    "path",
    ["/internal/auth", "/internal/generate", "/metrics", "/webui/internal/generate", "/webui/internal",
     "/webui/metrics", "/webui//internal/ping", "/webui/%69nternal/ping", "/webui/x/../internal/ping",
     "/api/../internal/auth",
     "/api/%2e%2e/internal/auth", "/api/..%2finternal/auth", "/webui/..%2fwebui/internal/ping", "/_auth", "/_problem",
     "/state", "/nothing", "/sdapi/v1/../../internal/auth", "/sdapi/v1/..%2f..%2finternal/auth", "/sdapi/v2/loras",
     "/internal/progress/x", "/webui/internal/progress"],
)  # fmt: skip
def test_private_paths_do_not_exist_outside(setup: Setup, path: str) -> None:
    host, _, port = setup.base.removeprefix("http://").partition(":")
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY['Authorization']}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as raw:  # httpx would tidy the path
        raw.sendall(request.encode())
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 404 "), received
    assert b"application/problem+json" in received


def test_a_node_needs_a_key_and_sees_only_the_cluster_token(setup: Setup) -> None:
    page = setup.base + "/webui/page"
    refused = httpx.get(page)
    assert refused.status_code == 401
    assert refused.json()["type"] == "unauthorized"
    assert refused.headers["www-authenticate"].startswith("Basic "), "a browser asks its user"
    wrong = httpx.get(page, headers={"X-Api-Key": "wrong"})
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer"), "as the api said"
    for headers in (KEY, {"Cookie": "session=ok", "X-Api-Key": f"{USER}mine"}):
        answer = httpx.get(page, headers=headers)
        assert answer.status_code == 200
        seen = answer.json()["headers"]
        assert answer.json()["path"] == "/page"
        assert seen["authorization"] == SHOWN_TOKEN
        assert "cookie" not in seen
        assert "x-api-key" not in seen
        assert seen["x-forwarded-prefix"] == "/webui"
    assert httpx.get(page, headers={"Authorization": SHOWN_TOKEN}).status_code == 401


def test_an_api_that_fails_to_authorize_is_503(setup: Setup) -> None:
    setup.stop_controller()
    state = setup.state().json()["state"]
    nobody = [{"name": "a", "ip": "127.0.0.1", "port": 9}]
    pools = {"api": nobody, "webui": state["pools"]["webui"]}
    assert setup.state({**state, "version": state["version"] + 1, "pools": pools}).status_code == 200
    stranger = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}
    answer = httpx.get(setup.base + "/webui/page", headers=stranger)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_an_api_that_is_not_ready_still_judges_keys_and_keeps_its_streams(setup: Setup) -> None:
    """Redis is away: the nodes' visitors do not need it."""
    base = setup.base.replace("http", "ws")
    with websockets.sync.client.connect(base + "/api/v1/jobs/1/ws", additional_headers=KEY) as talk:
        setup.stop_controller()
        state = setup.state().json()["state"]
        unready = [{**peer, "weight": 0} for peer in state["pools"]["api"]]
        pools = {"api": unready, "webui": state["pools"]["webui"]}
        assert setup.state({**state, "version": state["version"] + 1, "pools": pools}).status_code == 200
        assert setup.status("/readyz") == 503
        stranger = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}
        assert httpx.get(setup.base + "/webui/page", headers=stranger).status_code == 200
        assert httpx.get(setup.base + "/webui/page", headers={"X-Api-Key": "wrong"}).status_code == 401
        assert httpx.get(setup.base + "/api/v1/x", headers=KEY).status_code == 503, "nothing new goes there"
        time.sleep(1)
        talk.send("still here")
        assert "still here" in str(talk.recv(5))


@contextlib.contextmanager
def visited_by_a_stranger(setup: Setup) -> Iterator[list[int]]:
    """Somebody opens a page of a node with a key that the gateway has never seen; holds the status at the end."""
    statuses: list[int] = []

    def visit() -> None:
        stranger = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}
        statuses.append(httpx.get(setup.base + "/webui/page", headers=stranger, timeout=10).status_code)

    visitor = threading.Thread(target=visit)
    visitor.start()
    time.sleep(0.5)
    try:
        yield statuses
    finally:
        visitor.join()


def test_a_key_is_asked_for_again_while_the_apis_restart(setup: Setup) -> None:
    setup.stop_controller()  # which would take them from the list
    for upstream in setup.upstreams.values():
        upstream.stop()
    first = setup.upstreams[NODES[0]]
    first.start()  # and takes a second or so to import what it needs
    assert not first.listens()
    with visited_by_a_stranger(setup) as statuses:
        pass
    assert statuses == [200]


def test_unready_apis_that_restart_are_waited_for(setup: Setup) -> None:
    """Without Redis they give up after a while, all at about the same time."""
    setup.stop_controller()
    state = setup.state().json()["state"]
    unready = [{**peer, "weight": 0} for peer in state["pools"]["api"]]

    def push(number: int, apis: list[dict[str, Any]]) -> None:
        pools = {"api": apis, "webui": state["pools"]["webui"]}
        assert setup.state({**state, "version": state["version"] + number, "pools": pools}).status_code == 200

    push(1, unready)
    time.sleep(3.5)  # longer than one waits where nobody has been ready
    push(2, [])
    with visited_by_a_stranger(setup) as statuses:
        push(3, unready)
    assert statuses == [200]


def test_websockets_pass_and_stick(setup: Setup) -> None:
    visitors = Visitors(setup, 6)
    base = setup.base.replace("http", "ws")
    for cookie, node in zip(visitors._cookies, visitors.nodes(), strict=True):
        headers = {**KEY, "Cookie": f"appliance_client={cookie}"}
        with websockets.sync.client.connect(base + "/webui/queue/join", additional_headers=headers) as talk:
            talk.send("hello")
            answer = json.loads(talk.recv(timeout=5))
        assert (answer["node"], answer["text"]) == (node, "hello")
        assert answer["headers"]["authorization"] == SHOWN_TOKEN
    with websockets.sync.client.connect(base + "/api/v1/jobs/1/ws", additional_headers=KEY) as talk:
        talk.send("hello")
        assert json.loads(talk.recv(timeout=5))["headers"]["authorization"] == KEY["Authorization"]


def test_only_websockets_are_upgraded(setup: Setup) -> None:
    headers = {**KEY, "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    seen = httpx.get(setup.base + "/webui/page", headers=headers).json()["headers"]
    assert "upgrade" not in seen
    assert "http2-settings" not in seen or seen.get("connection", "") == ""


def test_events_are_not_buffered(setup: Setup) -> None:
    begin, arrivals = time.monotonic(), []
    with httpx.stream("GET", setup.base + "/api/v1/jobs/1/events", headers=KEY, verify=PLAIN) as answer:
        for line in answer.iter_lines():
            if line:
                arrivals.append(time.monotonic() - begin)
    assert len(arrivals) == 3
    assert arrivals[0] < 0.25 < arrivals[1] < 0.55 < arrivals[2]


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"])
def test_submissions_are_limited_per_key(setup: Setup, path: str) -> None:
    greedy = {"Authorization": f"Bearer {USER}{uuid.uuid4()}"}
    with httpx.Client(base_url=setup.base) as client:
        answers = [client.post(path, json={}, headers=greedy) for _ in range(40)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 5 <= len(answers) - len(refused) <= 30
        assert refused[0].json()["type"] == "too-many-requests"
        assert refused[0].headers["retry-after"] == "1"
        assert client.post(path, json={}, headers={"X-Api-Key": f"{USER}modest {path}"}).status_code == 200
        assert client.get(path, headers=greedy).status_code == 200


def test_a1111s_calls_reach_the_api_with_their_credentials(setup: Setup) -> None:
    calls = [("GET", "/sdapi/v1/progress"), ("POST", "/sdapi/v1/interrupt"), ("POST", "/sdapi/v1/txt2img")]
    calls += [("GET", "/sdapi/v1/sd-models"), ("POST", "/internal/progress"), ("GET", "/internal/pending-tasks")]
    # A node's own has no users: whoever asks for it here gets what keeps them apart.
    calls += [("GET", "/webui/sdapi/v1/progress"), ("POST", "/webui/sdapi/v1/txt2img")]
    for method, path in calls:
        answer = httpx.request(method, f"{setup.base}{path}", headers=KEY, timeout=5)
        assert answer.json()["path"] == path.removeprefix("/webui")
        assert answer.json()["headers"]["authorization"] == KEY["Authorization"]
    assert httpx.get(f"{setup.base}/internal/ping", timeout=5).json()["status"] == "ok"


def test_what_nginx_refuses_of_a1111s_calls_has_its_shape(setup: Setup) -> None:
    answer = httpx.post(f"{setup.base}/sdapi/v1/txt2img", headers=KEY, content=b"x" * 2 * MEBIBYTE, timeout=5)
    assert answer.status_code == 413
    assert {"error", "detail", "body", "errors"} <= set(answer.json())
    assert answer.json()["type"] == "body-too-large"


def test_large_bodies_and_broken_requests_get_problems(setup: Setup) -> None:
    large = httpx.post(setup.base + "/api/v1/jobs", content=b"x" * (MEBIBYTE + 1), headers={"X-Api-Key": "large"})
    assert (large.status_code, large.json()["type"]) == (413, "body-too-large")
    taken = httpx.post(setup.base + "/api/v1/other", content=b"x" * MEBIBYTE, headers=KEY)
    assert taken.json()["bytes"] == MEBIBYTE
    host, _, port = setup.base.removeprefix("http://").partition(":")
    for request, status in ((b"nonsense\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\n\r\n", b"400"),
                            (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414")):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(request)
            received = b"".join(iter(lambda: raw.recv(65536), b""))
        assert received.split(b" ", 2)[1] == status
        assert b"application/problem+json" in received
        assert b"<html" not in received


def test_an_answer_of_the_api_passes_untouched(setup: Setup) -> None:
    for status in (404, 409, 500, 503):
        answer = httpx.get(f"{setup.base}/api/v1/x?status={status}")
        assert answer.status_code == status
        assert answer.json()["path"] == "/api/v1/x"


def test_headers_and_request_ids(setup: Setup) -> None:
    answer = httpx.get(setup.base + "/api/v1/x", headers={"X-Request-Id": "client-id-0001"})
    assert answer.headers["x-request-id"] == answer.json()["headers"]["x-request-id"] == "client-id-0001"
    forged = {"X-Request-Id": 'a"b', "X-Forwarded-For": "1.2.3.4"}
    answer = httpx.get(setup.base + "/api/v1/x", headers=forged)
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert "1.2.3.4" not in answer.json()["headers"]["x-forwarded-for"]
    assert answer.headers["server"] == "nginx"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_the_access_log_is_json_without_query_strings(setup: Setup) -> None:
    mark = uuid.uuid4().hex
    httpx.get(f"{setup.base}/api/v1/{mark}?key=secret", headers={"User-Agent": 'a"b'})

    def lines() -> list[str]:
        return [line for line in docker("logs", setup.container).stdout.splitlines() if mark in line]

    wait_for("log line", lambda: bool(lines()), setup.logs)
    entry = json.loads(lines()[0])
    assert next(iter(entry)) == "@timestamp"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", entry["@timestamp"])
    assert (entry["service"], entry["node_name"], entry["status"]) == ("gateway", "gpu-01", "200")
    assert "secret" not in lines()[0]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/none/{}", 404),
        ("GET", "/webui/{}", 401),
        ("POST", "/webui/{}?die=any", 502),
        ("PUT", "/webui/{}", 413),
    ],
)
def test_the_access_log_tells_what_failed(setup: Setup, method: str, path: str, status: int) -> None:
    path = path.format(uuid.uuid4().hex)
    headers = {} if status == 401 else KEY
    body = b"x" * (2 * MEBIBYTE) if status == 413 else b""
    answer = httpx.request(method, setup.base + path, headers=headers, content=body, verify=PLAIN)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "sandbox" in answer.headers["content-security-policy"]
    message = f'"message":"{method} {path.partition("?")[0]} {status}"'
    wait_for(message, lambda: message in docker("logs", setup.container).stdout, setup.logs)


@pytest.mark.parametrize("lines", ["GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: a\r\nHost: b", "GET\t/\r\n", "\0"])
def test_what_is_no_http_costs_one_line_of_the_log(setup: Setup, lines: str) -> None:
    begin = len(docker("logs", setup.container).stdout.splitlines())
    host, _, port = setup.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"{lines}\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b'"type":"bad-request"' in answer

    def said() -> list[str]:
        return [line for line in docker("logs", setup.container).stdout.splitlines()[begin:] if " 400" in line]

    wait_for("its line", lambda: bool(said()), setup.logs)
    assert len(said()) == 1
    assert "uninitialized" not in docker("logs", setup.container).stderr


def test_the_healthcheck_and_a_graceful_stop(setup: Setup) -> None:
    assert docker("exec", setup.container, "gateway-healthcheck").returncode == 0
    begin = time.monotonic()
    assert setup.stop_controller() == 0
    assert time.monotonic() - begin < 3
    log = [json.loads(line) for line in (setup.folder / "controller.log").read_text().splitlines()]
    assert {"node_up", "node_down"} <= {line.get("event") for line in log}
    assert all(line["reason"] for line in log if line.get("event") == "node_down")
    begin = time.monotonic()
    docker("stop", setup.container)
    seconds = time.monotonic() - begin
    assert docker("inspect", "--format", "{{.State.ExitCode}}", setup.container).stdout.strip() == "0"
    assert seconds < 8
    docker("start", setup.container)
    setup.find_ports()


def test_tls_and_its_redirect(images: str, tmp_path: Path) -> None:
    the_plan = gateway_plan(balance="ip_hash", server_name="localhost")
    with running(tmp_path, the_plan, images) as setup:
        assert setup.status("/healthz") == setup.status("/readyz") == 200
        moved = httpx.post(setup.base + "/api/v1/jobs?a=b", json={})
        assert (moved.status_code, moved.headers["location"]) == (308, "https://localhost/api/v1/jobs?a=b")
        with httpx.Client(base_url=setup.tls_base, verify=False, headers=KEY) as client:  # noqa: S501
            assert client.get("/healthz").headers["strict-transport-security"] == "max-age=31536000"
            answers = [client.get("/webui/page") for _ in range(6)]
        # ip_hash: one address, one node, no cookie
        assert len({answer.json()["node"] for answer in answers}) == 1
        assert "set-cookie" not in answers[0].headers
        assert answers[0].json()["headers"]["x-forwarded-proto"] == "https"


def test_who_is_about_to_stop_says_so_first_and_answers_meanwhile(images: str, tmp_path: Path) -> None:
    with running(tmp_path, gateway_plan(tls={"mode": "none"}), images, leave_seconds=2.0) as setup:
        stopping = subprocess.Popen(["docker", "stop", "--time", "20", setup.container])
        took = wait_for("not ready", lambda: setup.status("/readyz") == 503, setup.logs)
        assert httpx.get(setup.base + "/readyz", verify=PLAIN).json()["status"] == "leaving"
        begin = time.monotonic()
        while time.monotonic() - begin < 1.2:
            assert httpx.get(setup.base + "/webui/page", headers=KEY, timeout=2, verify=PLAIN).status_code == 200
        assert stopping.wait(20) == 0
        print(f"\nnot ready after {took:.2f} s, stopped {time.monotonic() - begin:.2f} s later")
        assert docker("inspect", "--format", "{{.State.ExitCode}}", setup.container).stdout.strip() == "0"
        docker("start", setup.container)
        setup.find_ports()
        wait_for("ready again", lambda: setup.status("/readyz") == 200, setup.logs)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
