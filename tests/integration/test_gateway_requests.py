"""What the gateway makes of a request: whose it is, where it goes, what is refused and what is logged."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets.sync.client

from tests.contract.test_gateway_config import docker
from tests.integration.gateway_stage import (  # noqa: F401
    KEY,
    MEBIBYTE,
    NODES,
    PLAIN,
    SHOWN_TOKEN,
    USER,
    Setup,
    Visitors,
    setup,
    shared,
    wait_for,
)

pytestmark = pytest.mark.docker


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
