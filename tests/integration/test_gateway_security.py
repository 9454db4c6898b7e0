"""What a stranger, or a client that does not play by the rules, tries on the real gateway."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_stage import KEY, MEBIBYTE, USER, Setup, running

SUBMIT = "/api/v1/jobs"
FITS_MEMORY = 16 << 10

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def setup(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    the_plan = gateway_plan(tls={"mode": "none"}, submissions_per_second=5, max_body_mib=1)
    with running(tmp_path_factory.mktemp("gateway"), the_plan, images) as made:
        yield made


def first_words(setup: Setup, request: bytes, seconds: float = 3) -> bytes:
    """What the gateway says to these bytes; empty where it goes on waiting."""
    host, _, port = setup.base.removeprefix("http://").partition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as raw:
        raw.sendall(request)
        with contextlib.suppress(TimeoutError, ConnectionResetError):  # it lingers: the body is not sent yet
            while not received.rstrip().endswith(b"}") and (part := raw.recv(65536)):
                received += part
    return received


def half_sent(method: str, path: str, length: str, key: str = "Bearer stranger") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n{length}\r\nConnection: close\r\n\r\n"
    return head.encode() + b"400\r\n" + b"x" * 1024


@pytest.mark.parametrize("path", [SUBMIT, "/api/v1/other", "/api/v1/jobs/1/events", "/webui/page"])
@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_stranger_cannot_have_a_large_body_kept(setup: Setup, method: str, path: str, length: str) -> None:
    """Bodies wait in /tmp, which is memory; without a key nobody may fill it."""
    refused = first_words(setup, half_sent(method, path, length))
    assert refused.startswith(b"HTTP/1.1 401 "), refused
    assert b"application/problem+json" in refused


def test_bodies_with_a_key_reach_the_api(setup: Setup) -> None:
    taken = httpx.post(setup.base + "/api/v1/other", content=b"x" * MEBIBYTE, headers=KEY)
    assert (taken.status_code, taken.json()["bytes"]) == (200, MEBIBYTE)
    assert taken.json()["headers"]["authorization"] == KEY["Authorization"]
    streamed = httpx.post(setup.base + "/api/v1/other", content=iter([b"x" * 1000] * 100), headers=KEY)
    assert streamed.json()["bytes"] == 100_000


def test_only_the_first_small_body_of_a_key_takes_the_detour(setup: Setup) -> None:
    """Then the api is left to judge the key itself, with the request."""

    def asked() -> int:
        return sum(upstream.seen().get("authorize", 0) for upstream in setup.upstreams.values())

    key, counts = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}, [asked()]
    for _ in range(3):
        small = httpx.post(setup.base + "/api/v1/other", content=b"x" * FITS_MEMORY, headers=key)
        assert (small.status_code, small.json()["bytes"]) == (200, FITS_MEMORY)
        counts.append(asked() - counts[0])
    assert counts[1:] == [1, 1, 1]


def test_nobody_waits_for_a_body_that_a_stranger_sends_byte_by_byte(setup: Setup) -> None:
    for key in ("", "Authorization: Bearer stranger\r\n"):
        head = f"POST /api/v1/other HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 900\r\nConnection: close\r\n\r\n"
        refused = first_words(setup, head.encode() + b"x")
        assert refused.startswith(b"HTTP/1.1 401 "), refused


def test_http2_bodies_without_a_length_are_no_way_around_it(images: str, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl, which speaks HTTP/2")
    body = tmp_path / "body"
    body.write_bytes(b"x" * MEBIBYTE)
    (tmp_path / "gateway").mkdir()
    with running(tmp_path / "gateway", gateway_plan(server_name="localhost"), images) as setup:
        said = {}
        for method in ("POST", "GET"):  # a dropped body is not waited for, but curl goes on sending it: -m
            words = [curl, "-sk", "--http2", "-m", "2", "-X", method, "-H", "Content-Length:", "--data-binary"]
            argv = [*words, f"@{body}", setup.tls_base + "/api/v1/other"]
            said[method] = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        assert json.loads(said["POST"])["type"] == "unauthorized"
        assert json.loads(said["GET"])["bytes"] == 0, "left to the api, without the body"
        assert "buffered to a temporary file" not in docker("logs", setup.container).stderr


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def in_cases(word: str, number: int) -> str:
    """Another mix of small and capital letters for each number."""
    return "".join(letter.upper() if number >> place & 1 else letter for place, letter in enumerate(word))


@pytest.mark.parametrize("disguise", ["other header", "user name", "second header", "scheme", "blanks"])
def test_the_limit_follows_the_key_and_not_its_disguise(setup: Setup, disguise: str) -> None:
    key = f"{USER}{uuid.uuid4().hex}"

    def headers(turn: int) -> list[tuple[str, str | bytes]]:
        return {
            "other header": [("X-Api-Key", key), ("Authorization", f"Bearer junk{turn}")],
            "user name": [("Authorization", basic(f"user{turn}", key))],
            "second header": [("X-Api-Key", key), ("X-Api-Key", f"junk{turn}")],
            "scheme": [("Authorization", f"{in_cases('bearer', turn)} {key}")],
            "blanks": [("Authorization", f"Bearer {key}".encode() + b"\xa0" * turn)],
        }[disguise]  # fmt: skip

    with httpx.Client(base_url=setup.base) as client:
        answers = [client.post(SUBMIT, json={}, headers=headers(turn)).status_code for turn in range(40)]  # type: ignore[arg-type]
    assert answers.count(429) >= 10, answers


@pytest.mark.parametrize(
    "header",
    [
        "X-Api-Key: {key} {tabs}",
        "X-Api-Key: {tabs} {key}",
        "X-Api-Key: {key}{tabs}\r\nX-Api-Key: junk",
        "Authorization: Bearer {key}{tabs}",
        "Authorization: {tabs}{basic}",
        "Authorization: {basic} {tabs}",
    ],
)
def test_no_blank_around_a_key_makes_it_another(setup: Setup, header: str) -> None:
    """The api's server drops blanks and tabs, so all of these are good."""
    key, answers = f"{USER}{uuid.uuid4().hex}", []
    for turn in range(40):
        line = header.format(key=key, tabs="\t" * turn, basic=basic(f"user{turn}", key))
        head = f"POST {SUBMIT} HTTP/1.1\r\nHost: x\r\n{line}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        answers.append(first_words(setup, head.encode() + b"{}").split(b" ")[1])
    assert set(answers) == {b"200", b"429"}, answers
    assert answers.count(b"429") >= 10, answers


@pytest.mark.parametrize(
    "head",
    [
        "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked",
        "GET /webui/ HTTP/1.1\r\nHost: x\r\nHost: y",
        "GET /webui/ HTTP/1.1\r\nHost: a b",
        "GET /webui/%00 HTTP/1.1\r\nHost: x",
        "GET /webui/ HTTP/3.0\r\nHost: x",
        "TRACE /webui/ HTTP/1.1\r\nHost: x",
        "CONNECT x:1 HTTP/1.1\r\nHost: x",
        "GET /webui/ HTTP/1.1\r\nHost: x\r\nX-Junk: " + "j" * 70_000,
        "GET http://x/webui/page HTTP/1.1\r\nHost: x",
        "GET //webui//page HTTP/1.1\r\nHost: x",
        "GET /WEBUI/page HTTP/1.1\r\nHost: x",
        "GET /_auth;/../webui/page HTTP/1.1\r\nHost: x",
        "GET /healthz/..%2fwebui/page HTTP/1.1\r\nHost: x",
        "GET /webui/queue/join HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade"
        "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "GET /webui/page HTTP/1.1\r\nHost: x\r\nX-Original-Uri: /healthz\r\nX-Accel-Redirect: /_problem",
    ],
)
def test_crooked_requests_of_a_stranger_get_a_problem(setup: Setup, head: str) -> None:
    received = first_words(setup, f"{head}\r\nConnection: close\r\n\r\n".encode())
    assert received[9:10] == b"4" or received[9:12] in (b"501", b"505"), received
    assert b"application/problem+json" in received, received
    assert b"cluster-token" not in received


def test_checking_the_configuration_leaves_the_running_gateway_its_socket(setup: Setup) -> None:
    checked = docker("exec", setup.container, "gateway-entrypoint", "-t")
    assert checked.returncode == 0, checked.stderr
    assert setup.socket.exists()
    assert setup.state().status_code == 200


def test_an_address_that_tries_keys_has_to_wait_but_not_its_neighbours(setup: Setup) -> None:
    """All of these come from one address. The last test here: it goes on for a minute."""
    neighbour = {"X-Api-Key": f"{USER}{uuid.uuid4()}"}
    with httpx.Client(base_url=setup.base) as client:
        assert client.get("/webui/page", headers=neighbour).status_code == 200
        tried = [client.get("/webui/page", headers={"X-Api-Key": str(turn)}).status_code for turn in range(60)]
        assert tried[-20:] == [429] * 20
        assert tried.count(401) <= 30
        posted = client.post("/api/v1/other", json={}, headers={"X-Api-Key": "another"})
        assert (posted.status_code, posted.json()["type"]) == (429, "too-many-requests")
        assert int(posted.headers["retry-after"]) >= 1
        for path in ("/webui/page", "/api/v1/other"):
            assert client.get(path, headers=neighbour).status_code == 200, path
            # Who shows no key at all tries none: browsers do, before they ask their user for one.
            assert client.get(path).status_code != 429, path
