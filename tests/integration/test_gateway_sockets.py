"""WebSockets through the real gateway container. The test itself is the controller: it says who is in the list."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from generator.planned import Plan
from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_socket_node import KEY, SocketNode
from tests.integration.gateway_stage import MEBIBYTE, SHOWN_TOKEN, Setup, wait_for

NODES = ("gpu-01/0", "gpu-02/0")
PATH = "/webui/queue/join"
NOTICED = 1.5  # s; the gateway looks four times a second, this machine may be busy
OPENING = {
    "Host": "x",
    "Authorization": KEY["Authorization"],
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

pytestmark = pytest.mark.docker


@dataclass
class Stage:
    """A gateway without a controller and its two nodes."""

    setup: Setup
    nodes: dict[str, SocketNode]
    version: int = 0
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    bridge: str = field(init=False)

    def __post_init__(self) -> None:
        template = "{{(index .IPAM.Config 0).Gateway}}"
        self.bridge = docker("network", "inspect", "bridge", "--format", template).stdout.strip()

    def peer(self, name: str, **changed: Any) -> dict[str, Any]:
        return {"name": name, "ip": self.bridge, "port": self.nodes[name].port, "weight": 1, **changed}

    def push(self, *webui: dict[str, Any], api: list[dict[str, Any]] | None = None) -> None:
        """A new state with these nodes."""
        self.version += 1
        if api is None:
            api = [{"name": "api", "ip": self.bridge, "port": self.nodes[NODES[0]].port}]
        answer = self.setup.state({"epoch": "1", "version": self.version, "pools": {"api": api, "webui": list(webui)}})
        assert answer.status_code == 200, answer.text

    def push_all(self, **changed: Any) -> None:
        self.push(*(self.peer(name, **changed) for name in self.nodes))

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.setup.base.removeprefix("http://").partition(":")
        return host, int(port)

    def connect(self, path: str = PATH, **options: Any) -> ClientConnection:
        url = self.setup.base.replace("http", "ws") + path
        options = {"additional_headers": KEY, "compression": None, "max_size": 64 << 20, "close_timeout": 1} | options
        return self.opened.enter_context(connect(url, **options))

    def connect_to(self, node: str) -> ClientConnection:
        for _ in range(100):
            one = self.connect()
            if node_of(one) == node:
                return one
            one.close()
        pytest.fail(f"100 new browsers and none at {node}")

    def raw(self, path: str = PATH, extra: bytes = b"", body: bytes = b"", **headers: str | None) -> socket.socket:
        """A connection that has said this opening; `headers` change it, None leaves one out."""
        said = OPENING | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in said.items() if value is not None]
        one = self.opened.enter_context(socket.create_connection(self.address, timeout=5))
        head = "\r\n".join([f"GET {path} HTTP/1.1", *lines]).encode()
        one.sendall(head + extra + b"\r\n\r\n" + body)
        return one


def node_of(one: ClientConnection) -> str:
    one.send("headers")
    return str(json.loads(one.recv(timeout=5))["node"])


def head_of(one: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while b"\r\n\r\n" not in received and (part := one.recv(1)):
            received += part
    return received


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame with the mask 0, which changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def code_of_close(one: ClientConnection, seconds: float = 5) -> tuple[int | None, float]:
    """The code that this socket is closed with, and after how many seconds."""
    begin = time.monotonic()
    with pytest.raises(ConnectionClosed) as closed:
        one.recv(timeout=seconds)
    received = closed.value.rcvd
    return received.code if received else None, time.monotonic() - begin


@contextlib.contextmanager
def on_stage(folder: Path, the_plan: Plan, tag: str) -> Iterator[Stage]:
    setup = Setup(folder, {}, the_plan, tag)
    nodes = {name: SocketNode(name) for name in NODES}
    try:
        setup.start_gateway()
        yield Stage(setup, nodes)
    finally:
        docker("rm", "-f", setup.container)
        for node in nodes.values():
            node.stop()


@pytest.fixture(scope="module")
def shared(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with on_stage(tmp_path_factory.mktemp("gateway"), gateway_plan(tls={"mode": "none"}), images) as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    shared.push_all()
    yield shared
    shared.opened.close()


def test_a_lost_nodes_sockets_are_closed_at_once_and_no_others(stage: Stage) -> None:
    lost, kept = stage.connect_to(NODES[0]), stage.connect_to(NODES[1])
    stage.push(stage.peer(NODES[1]))
    code, seconds = code_of_close(lost)
    print(f"\nclosed with {code} after {seconds:.2f} s")
    assert code == 1012
    assert seconds < NOTICED
    assert node_of(kept) == NODES[1]
    kept.close()
    wait_for("the node's side", lambda: stage.nodes[NODES[0]].open == 0, stage.setup.logs)


def test_a_node_at_another_address_is_another_node(stage: Stage) -> None:
    lost = stage.connect_to(NODES[0])
    stage.push(stage.peer(NODES[0], port=9), stage.peer(NODES[1]))
    assert code_of_close(lost)[0] == 1012


def test_a_draining_node_keeps_its_sockets_and_gets_no_new_ones(stage: Stage) -> None:
    kept = stage.connect_to(NODES[0])
    stage.push(stage.peer(NODES[0], weight=0), stage.peer(NODES[1]))
    time.sleep(1)
    assert node_of(kept) == NODES[0]
    kept.close()
    for _ in range(12):
        with stage.connect() as fresh:
            assert node_of(fresh) == NODES[1]


def test_no_close_frame_is_put_into_another_frame(stage: Stage) -> None:
    stage.push(stage.peer(NODES[0]))
    one = stage.raw()
    assert head_of(one).startswith(b"HTTP/1.1 101 ")
    one.sendall(masked(b"half"))
    began = b""
    while len(began) < 8:
        began += one.recv(100)
    assert began == b"\x82\x7e\x01\x00half"
    stage.push(stage.peer(NODES[1]))
    assert one.recv(100) == b""
    one.close()


def test_a_close_of_the_node_and_of_the_client_arrive(stage: Stage) -> None:
    told = stage.connect()
    told.send("close")
    assert code_of_close(told)[0] == 4321
    for one in (stage.connect(), stage.raw()):
        if isinstance(one, ClientConnection):
            one.close(1000)
        else:
            head_of(one)
            one.sendall(masked(struct.pack("!H", 1000), opcode=8))
            one.shutdown(socket.SHUT_WR)  # a client may be done before its close is answered
            one.close()
    wait_for("both closed", lambda: not any(node.open for node in stage.nodes.values()), stage.setup.logs)


def test_clients_that_vanish_leave_nothing_behind(stage: Stage) -> None:
    sockets = [stage.raw() for _ in range(20)]
    for one in sockets:
        assert head_of(one).startswith(b"HTTP/1.1 101 ")
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
        one.close()
    wait_for("all gone", lambda: not any(node.open for node in stage.nodes.values()), stage.setup.logs)


def test_large_messages_pass_whole_in_both_directions(stage: Stage) -> None:
    message = os.urandom(20 * MEBIBYTE)
    with stage.connect() as one:
        one.send(message)
        assert one.recv(timeout=30) == message
        one.send([message[:1000], message[1000:200_000], message[200_000:]])
        assert one.recv(timeout=30) == message


def test_a_frame_sent_along_with_the_opening_is_not_lost(stage: Stage) -> None:
    one = stage.raw(body=masked(b"early") + masked(b"and earlier"))
    assert head_of(one).startswith(b"HTTP/1.1 101 ")
    wait_for("echo", lambda: b"and earlier" in one.recv(100, socket.MSG_PEEK), stage.setup.logs)
    assert b"early" in one.recv(100)
    one.close()


def test_what_a_node_says_along_with_its_answer_is_not_lost(stage: Stage) -> None:
    answer = (
        b"HTTP/1.1 101 Go\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x05hello"
    )
    with listener(answer, stays=True) as port:
        stage.push(stage.peer(NODES[0], port=port))
        one = stage.raw()
        head = head_of(one).lower()
        assert head.startswith(b"http/1.1 101 ")
        assert b"sec-websocket-accept: x\r\n" in head
        assert b"connection: upgrade\r\n" in head
        assert one.recv(7) == b"\x81\x05hello"


def test_the_node_sees_the_token_and_nothing_of_the_visitor(stage: Stage) -> None:
    headers = {**KEY, "Cookie": "session=ok", "X-Api-Key": "mine", "X-Forwarded-For": "1.2.3.4", "Forwarded": "for=x",
               "Keep-Alive": "5", "TE": "trailers", "Proxy-Authorization": "x", "X-Real-Ip": "1.2.3.4",
               "X-Request-Id": "socket-0001"}  # fmt: skip
    with stage.connect("/webui/a%20b/%C3%A9%0d%0ax?c=%0d%0a&d", additional_headers=headers, origin="http://here",
                       subprotocols=None) as one:  # fmt: skip
        one.send("headers")
        answer = json.loads(one.recv(timeout=5))
    seen = {name.lower(): value for name, value in answer["headers"]}
    assert len(seen) == len(answer["headers"]), "a header twice"
    assert answer["path"] == "/a%20b/%C3%A9%0D%0Ax?c=%0d%0a&d"
    assert seen["authorization"] == SHOWN_TOKEN
    assert seen["x-forwarded-prefix"] == "/webui"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-host"] == seen["host"] + f":{stage.address[1]}"
    assert seen["origin"] == "http://here"
    assert seen["x-request-id"] == "socket-0001"
    assert "1.2.3.4" not in seen["x-forwarded-for"]
    assert not set(seen) & {"cookie", "x-api-key", "forwarded", "keep-alive", "te", "proxy-authorization", "x-real-ip"}
    answer_head = head_of(stage.raw(X_Request_Id="socket-0002")).lower()
    assert b"x-content-type-options: nosniff" in answer_head
    assert b"x-request-id: socket-0002" in answer_head
    assert b"cluster-token" not in answer_head


def test_the_apis_sockets_keep_the_visitors_key(stage: Stage) -> None:
    with stage.connect(
        "/api/v1/jobs/1/ws?a=b%2f", additional_headers={**KEY, "Cookie": "a=b", "X-Api-Key": "k"}
    ) as one:
        one.send("headers")
        answer = json.loads(one.recv(timeout=5))
    seen = {name.lower(): value for name, value in answer["headers"]}
    assert answer["path"] == "/api/v1/jobs/1/ws?a=b%2f"
    assert (seen["authorization"], seen["x-api-key"], seen["cookie"]) == (KEY["Authorization"], "k", "a=b")
    assert "x-forwarded-prefix" not in seen
    lost = stage.connect("/api/v1/jobs/1/ws")
    stage.push(stage.peer(NODES[0]), api=[])
    assert code_of_close(lost)[0] == 1012


def test_a_request_for_no_socket_goes_on_as_it_was(stage: Stage) -> None:
    for path in ("/api/v1/jobs/1/ws", PATH):
        one = stage.raw(path, Connection="close", Upgrade=None)
        received = head_of(one) + one.recv(1000)
        assert received.startswith(b"HTTP/1.1 200 "), received
    for changed in ({"Upgrade": "h2c"}, {"Upgrade": "websocket2"}):
        received = head_of(stage.raw(**changed))
        assert received.startswith(b"HTTP/1.1 200 "), received


@pytest.mark.parametrize(
    "changed",
    [
        {"Connection": "close"}, {"Connection": "keep-alive, notupgrade"}, {"Sec-WebSocket-Key": None},
        {"Sec-WebSocket-Key": "short"}, {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==, x"},
        {"Sec-WebSocket-Version": "8"}, {"Sec-WebSocket-Version": None}, {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"}, {"Origin": "a\x01b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_crooked_opening_never_reaches_a_node(stage: Stage, changed: dict[str, str | None]) -> None:
    before = sum(len(node.handshakes) for node in stage.nodes.values())
    headers = {name.replace("-", "_"): value for name, value in changed.items()}
    one = stage.raw("/api/v1/jobs/1/ws", **headers, body=b"0\r\n\r\n")
    received = head_of(one)
    assert received.startswith(b"HTTP/1.1 400 "), received
    assert b"application/problem+json" in received
    assert sum(len(node.handshakes) for node in stage.nodes.values()) == before


def test_a_bare_return_ends_no_header(stage: Stage) -> None:
    received = head_of(stage.raw(extra=b"\r\nOrigin: a\rAuthorization: b"))
    assert not received.startswith(b"HTTP/1.1 101 "), received


def test_a_stranger_is_refused_and_a_node_refusal_is_passed_on(stage: Stage) -> None:
    for headers, path, status, body in (
        ({}, PATH, 401, b'"unauthorized"'),
        ({"Authorization": SHOWN_TOKEN}, PATH, 401, b'"unauthorized"'),
        (KEY, "/webui/refuse", 403, b"not for you"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            stage.connect(path, additional_headers=headers)
        response = refused.value.response
        assert (response.status_code, body in (response.body or b"")) == (status, True), response


@contextlib.contextmanager
def listener(answer: bytes | None, stays: bool = False) -> Iterator[int]:
    """A port where whoever connects gets `answer`, or, with None, silence: as from a frozen process."""
    with socket.create_server(("0.0.0.0", 0), backlog=16) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = server.accept()
                    taken.append(one)
                    if answer is not None:
                        one.recv(65536)
                        one.sendall(answer)
                        if not stays:
                            one.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for one in taken:
                one.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101 ok\r\nUpgrade: h2c\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello",
     b"HTTP/1.1 101 Switching\r\n" + b"X: y\r\n" * 5000],
    ids=["nothing", "nonsense", "other-protocol", "no-upgrade", "endless"],
)  # fmt: skip
def test_a_peer_that_speaks_nonsense_is_a_bad_gateway(stage: Stage, answer: bytes) -> None:
    with listener(answer, stays=len(answer) > 16384) as port:
        stage.push(stage.peer(NODES[0], port=port))
        received = head_of(stage.raw())
    assert received.startswith(b"HTTP/1.1 502 "), received
    assert b"application/problem+json" in received


def test_an_opening_goes_to_the_next_node_when_one_refuses_or_freezes(stage: Stage) -> None:
    for port in (9, None):
        with contextlib.ExitStack() as stack:
            frozen = port or stack.enter_context(listener(None))
            stage.push(stage.peer(NODES[0], port=frozen), stage.peer(NODES[1]))
            openings = [stack.enter_context(contextlib.closing(stage.raw())) for _ in range(8)]
            time.sleep(0.5)  # all are under way; some of them to the frozen one
            stage.push(stage.peer(NODES[1]))
            for one in openings:
                assert head_of(one).startswith(b"HTTP/1.1 101 ")


def test_while_there_is_no_node_it_waits_for_one_but_not_for_ever(stage: Stage) -> None:
    stage.push()
    waiting = stage.raw()
    time.sleep(0.5)
    stage.push(stage.peer(NODES[0]))
    assert head_of(waiting).startswith(b"HTTP/1.1 101 ")
    stage.push()
    received = head_of(stage.raw())
    assert received.startswith(b"HTTP/1.1 503 "), received
    assert b"Retry-After: 2" in received


def test_the_log_names_the_node_and_never_the_token(stage: Stage) -> None:
    mark = f"socket-{uuid.uuid4().hex}"
    with stage.connect(additional_headers={**KEY, "X-Request-Id": mark}) as one:
        node = node_of(one)

    def lines() -> list[str]:
        return [line for line in docker("logs", stage.setup.container).stdout.splitlines() if mark in line]

    wait_for("log line", lambda: bool(lines()), stage.setup.logs)
    entry = json.loads(lines()[0])
    assert (entry["status"], entry["upstream"]) == ("101", f"{stage.bridge}:{stage.nodes[node].port}")
    logs = docker("logs", stage.setup.container)
    assert "cluster-token" not in logs.stdout + logs.stderr


def memory_of(stage: Stage) -> int:
    """Bytes that the gateway's processes have for themselves: the container's memory without the page cache."""
    shown = docker("exec", stage.setup.container, "sh", "-c", "cat /sys/fs/cgroup/memory.stat /proc/meminfo").stdout
    anonymous = [line.split()[1] for line in shown.splitlines() if line.startswith(("anon ", "sock "))]
    if anonymous:
        return sum(map(int, anonymous))
    shown = docker("exec", stage.setup.container, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.stat").stdout
    return sum(int(line.split()[1]) for line in shown.splitlines() if line.startswith("rss "))


def test_five_hundred_sockets_cost_little_memory(stage: Stage) -> None:
    before = memory_of(stage)
    assert before > MEBIBYTE
    sockets = [stage.raw() for _ in range(500)]
    for one in sockets:
        assert head_of(one).startswith(b"HTTP/1.1 101 ")
    idle = memory_of(stage)
    assert head_of(stage.raw()).startswith(b"HTTP/1.1 101 ")
    for _ in range(20):
        for one in sockets:
            one.sendall(masked(b"x" * 4096))
        for one in sockets:
            left = 4100
            while left:
                left -= len(one.recv(left))
    busy = memory_of(stage)
    print(f"\nper socket: {(idle - before) / 500 / 1024:.1f} KiB idle, {(busy - before) / 500 / 1024:.1f} KiB busy")
    stage.push()
    for one in sockets:
        assert one.recv(2) == b"\x88\x12"
        one.close()
    assert (busy - before) / 500 < 100 * 1024


def test_messages_that_grow_byte_by_byte_cost_no_memory(stage: Stage) -> None:
    """nginx keeps what a request once allocated; each message is a little too large for what is there."""
    before = memory_of(stage)
    one = stage.raw()
    head_of(one)
    for size in range(1, 4300):
        one.sendall(masked(b"x" * size))
        left = size + (2 if size < 126 else 4)
        while left:
            left -= len(one.recv(left))
    grown = memory_of(stage) - before
    print(f"\none socket, 4,299 messages: {grown / MEBIBYTE:.1f} MiB")
    assert grown < 4 * MEBIBYTE


def test_a_reader_that_does_not_read_holds_up_only_its_own_node(stage: Stage) -> None:
    before = memory_of(stage)
    slow = stage.raw()
    head_of(slow)
    slow.sendall(masked(b"bytes %d" % (60 * MEBIBYTE)))
    time.sleep(1)
    grown = memory_of(stage) - before
    print(f"\n60 MiB for a reader that sleeps: the gateway holds {grown / MEBIBYTE:.1f} MiB")
    assert grown < 16 * MEBIBYTE
    assert slow.recv(2) == b"\x82\x7f", "it has begun"
    with stage.connect() as other:
        assert node_of(other) in NODES
    slow.close()


def worker_pids(stage: Stage) -> set[str]:
    shown = docker("top", stage.setup.container, "-eo", "pid,args").stdout
    return {line.split()[0] for line in shown.splitlines() if "nginx: worker" in line}


def reload(stage: Stage) -> None:
    before = worker_pids(stage)
    done = docker("exec", stage.setup.container, "gateway-entrypoint", "-s", "reload")
    assert done.returncode == 0, done.stderr
    fresh: Callable[[], bool] = lambda: len(worker_pids(stage) - before) >= 4  # noqa: E731
    wait_for("new workers", fresh, stage.setup.logs)


def test_reloads_keep_sockets_and_do_not_pile_up_workers(stage: Stage) -> None:
    first = stage.connect_to(NODES[0])
    for _ in range(3):
        reload(stage)
        assert node_of(first) == NODES[0]
        fresh = stage.connect()
        assert node_of(fresh) in NODES
        fresh.close()
    time.sleep(1)
    assert node_of(first) == NODES[0], "three reloads later"
    stage.push(stage.peer(NODES[1]))
    assert code_of_close(first)[0] == 1012, "an old worker looks after its sockets too"
    stage.push_all()
    second = stage.connect_to(NODES[0])
    for _ in range(4):
        reload(stage)
    assert code_of_close(second)[0] == 1012
    wait_for("the old workers' end", lambda: len(worker_pids(stage)) == 4, stage.setup.logs)
