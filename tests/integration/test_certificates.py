"""Certificates come and go while connections live on: from a real ACME server, and from files in a folder."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import websockets.asyncio.client
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from generator import certificates, tree
from generator.certificates import make_authority, make_server
from generator.docker import Engine
from generator.ops.client import Client
from generator.plan import plan
from generator.render import render
from generator.secrets import Store, lay_out
from generator.sources import read_sources
from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.acme_stage import (
    ANYONE,
    CHALLENGES,
    DIRECTORY,
    NAME,
    UID,
    Gateway,
    Stage,
    is_issued,
    must,
    running,
    shown_at,
    start_pebble,
    wait_for,
)
from tests.integration.gateway_stage import KEY, Upstream, free_port
from tests.unit.generator.clusters import one_host

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def stage(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with running(engine, images, tmp_path_factory.mktemp("acme")) as made:
        yield made


@pytest.fixture
def certified(stage: Stage) -> Stage:
    stage.certify()
    return stage


def test_from_a_placeholder_to_the_first_certificate(stage: Stage) -> None:
    first, second = stage.gateways
    assert first.answers()
    assert first.shown().subject.rfc4514_string() == "CN=placeholder"
    assert httpx.get(f"https://127.0.0.1:{first.tls_port}/healthz", verify=ANYONE).status_code == 200
    begin = time.monotonic()
    stage.certify()
    print(f"\nboth gateways have a certificate after {time.monotonic() - begin:.1f} s")
    # The directory asked the first gateway; the answer to the second one's challenge was with the second.
    for gateway in (first, second):
        names = gateway.shown().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [NAME]
        assert must("inspect", "--format", "{{.RestartCount}}", gateway.name) == "0"
    assert first.shown() != second.shown()
    assert all(keeper.health() == (0, "") for keeper in stage.keepers)
    assert must("exec", first.name, "find", "/etc/nginx/tls", "/var/lib/acme-challenge", "-type", "f").split() == [
        "/etc/nginx/tls/tls.key",
        "/etc/nginx/tls/tls.crt",
    ], "nothing is left of the challenges"


@dataclass
class Load:
    """Open loop: 50 requests a second, every other one on a connection of its own; WebSockets that never rest."""

    port: int
    answered: int = 0
    echoed: int = 0
    failed: list[str] = field(default_factory=list)
    serials: set[int] = field(default_factory=set)

    async def request(self, shared: httpx.AsyncClient, number: int) -> None:
        address = f"https://127.0.0.1:{self.port}/webui/page?{number}"
        try:
            if number % 2:
                answer = await shared.get(address)
            else:
                async with httpx.AsyncClient(verify=ANYONE, headers=KEY, timeout=10) as own:
                    answer = await own.get(address)
            assert answer.status_code == 200, answer.text
            self.answered += 1
        except Exception as error:
            self.failed.append(f"request {number}: {error!r}")

    async def talk(self, stop: asyncio.Event) -> None:
        address = f"wss://127.0.0.1:{self.port}/webui/queue/join"
        try:
            async with websockets.asyncio.client.connect(address, ssl=ANYONE, additional_headers=KEY) as socket:
                while not stop.is_set():
                    await socket.send("hello")
                    await asyncio.wait_for(socket.recv(), 10)
                    self.echoed += 1
                    await asyncio.sleep(0.1)
        except Exception as error:
            self.failed.append(f"WebSocket: {error!r}")

    async def around(self, change: Callable[[], None]) -> None:
        """Before, while and after `change` runs."""
        stop = asyncio.Event()
        async with httpx.AsyncClient(verify=ANYONE, headers=KEY, timeout=10) as shared:
            sockets = [asyncio.create_task(self.talk(stop)) for _ in range(10)]
            requests: list[asyncio.Task[None]] = []
            changing = asyncio.create_task(asyncio.to_thread(change))
            begin, after = time.monotonic(), 0
            while after < 50 and not (changing.done() and changing.exception()):
                requests.append(asyncio.create_task(self.request(shared, len(requests))))
                after += changing.done()
                await asyncio.sleep(max(0.0, begin + len(requests) / 50 - time.monotonic()))
            stop.set()
            await asyncio.gather(*requests, *sockets)
            await changing


async def test_a_renewal_under_load_drops_nothing(certified: Stage) -> None:
    gateway, keeper = certified.gateways[0], certified.keepers[0]
    before, load = gateway.shown().serial_number, Load(gateway.tls_port)

    def renew() -> None:
        time.sleep(1)
        keeper.renew()
        wait_for("another serial", lambda: before not in gateway.serials(4), keeper.logs)

    await load.around(renew)
    print(f"\n{load.answered} requests and {load.echoed} messages around a renewal, {len(load.failed)} failed")
    assert load.failed == []
    assert load.answered > 100
    assert load.echoed > 100
    assert len(gateway.serials()) == 1
    assert gateway.shown().serial_number != before
    assert is_issued(gateway.shown())


def test_a_directory_that_is_away_costs_nothing_but_patience(certified: Stage) -> None:
    gateway, keeper = certified.gateways[1], certified.keepers[1]
    serial = gateway.shown().serial_number
    docker("pause", certified.pebble)
    docker("network", "disconnect", "--force", certified.name, certified.pebble)
    try:
        keeper.renew()
        keeper.wait_for("acme_failed")
    finally:
        docker("unpause", certified.pebble)
        must("network", "connect", "--alias", "pebble", certified.name, certified.pebble)
    assert "next try in 600 s" in keeper.events("acme_failed")[0] or "next try in 59" in keeper.events("acme_failed")[0]
    assert gateway.shown().serial_number == serial
    assert keeper.health() == (0, "")
    must("restart", "--time", "5", keeper.name)
    keeper.wait_for("acme_start", 2)
    assert " in 5" in keeper.events("acme_start")[1], "a new container does not ask again at once"
    assert len(keeper.events("acme_failed")) == 1
    keeper.renew("USR1")
    wait_for("no failure on record", lambda: must("exec", keeper.name, "cat", "/var/lib/acme/tries.json") == "[]", str)
    assert len(keeper.events("acme_renewed")) <= 1, "a fresh one is not renewed by being asked for"
    keeper.renew()
    keeper.wait_for("acme_renewed", 2)
    wait_for("it is shown", lambda: serial not in gateway.serials(4), gateway.logs)


def ask(gateway: Gateway, target: str, method: str = "GET", *headers: str) -> tuple[int, bytes]:
    """A request as it stands, which no client has tidied up."""
    with socket.create_connection(("127.0.0.1", int(gateway.http.rpartition(":")[2])), 5) as connection:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {NAME}", "Connection: close", *headers]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def answer_of_the_second(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """A challenge that only the second gateway can answer, and beside it what has no name of one."""
    stage.certify()
    keeper = stage.keepers[1].name
    must("exec", keeper, "sh", "-c", f"mkdir -p {CHALLENGES} && printf token.thumbprint > {CHALLENGES}/to-ken_1")
    must("exec", keeper, "sh", "-c", f"ln -sf /etc/passwd {CHALLENGES}/link && mkdir -p {CHALLENGES}/folder")
    must("exec", keeper, "sh", "-c", f"cd {CHALLENGES} && echo PRIVATE | tee tls.key to-ken_1.crt .x folder/file")
    yield "/.well-known/acme-challenge/to-ken_1", b"token.thumbprint"
    must("exec", keeper, "rm", "-r", CHALLENGES)


def test_a_challenge_is_answered_by_whichever_gateway_is_asked(
    certified: Stage, answer_of_the_second: tuple[str, bytes]
) -> None:
    path, content = answer_of_the_second
    first, second = certified.gateways
    assert ask(second, path) == ask(first, path) == (200, content)
    assert ask(first, path, "GET", "X-Acme-Asked: 1")[0] == 404, "who is asked by a gateway asks no other"
    assert ask(first, path + "x")[0] == ask(second, path + "x")[0] == 404, "and two that know nothing do not go round"
    assert ask(first, path, "POST", "Content-Length: 0")[0] == 403
    assert ask(first, f"{path}?query")[0] == 200


@pytest.mark.parametrize(
    "name",
    ["link", "folder", "folder/", "", ".", "..", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/x",
     "to-ken_1/", "to-ken_1/..", "to-ken_1%00", "to-ken_1.crt", ".x", "folder/file", "a" * 129, "tls.key",
     "..%252f..%252fetc%252fpasswd",
     "../../../nginx/tls/tls.key", "//etc/passwd", "%c0%ae%c0%ae/x", "tøken"],
)  # fmt: skip
def test_nothing_else_can_be_read_where_challenges_lie(
    certified: Stage, answer_of_the_second: tuple[str, bytes], name: str
) -> None:
    for gateway in certified.gateways:
        status, body = ask(gateway, f"/.well-known/acme-challenge/{name}")
        assert status in (301, 308, 400, 403, 404), (status, body)
        assert b"root:" not in body
        assert b"PRIVATE" not in body
        assert b"thumbprint" not in body


# --- files in a folder ---------------------------------------------------------------------------------------------

Pair = tuple[bytes, bytes]


@dataclass
class Folder:
    """A gateway on a folder with a pair in it, as `secrets` and operators write it."""

    gateway: Gateway
    tls: Path
    pair: Pair

    def put(self, chain: bytes | None, key: bytes | None) -> None:
        for name, content in (("tls.crt", chain), ("tls.key", key)):
            if content is None:
                (self.tls / name).unlink(missing_ok=True)
                continue
            temporary = self.tls / f".{name}"
            temporary.write_bytes(content)
            os.chown(temporary, UID, UID)
            temporary.replace(self.tls / name)

    def renew(self) -> int:
        """Put a new good pair there; its serial."""
        self.pair = fresh()
        self.put(*self.pair)
        return x509.load_pem_x509_certificate(self.pair[0]).serial_number


AUTHORITY = make_authority()


def fresh() -> Pair:
    key, chain = make_server(*AUTHORITY, (NAME,))
    return chain, key


def aged(monkeypatch: pytest.MonkeyPatch, days: int) -> Pair:
    """A pair whose certificate ends so many days from now."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "SERVER_DAYS", days)
        return fresh()


def locked(key: bytes) -> bytes:
    opened = serialization.load_pem_private_key(key, password=None)
    encryption = serialization.BestAvailableEncryption(b"password")
    return opened.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.fixture(scope="module")
def folder(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    place = tmp_path_factory.mktemp("files")
    place.chmod(0o755)
    tls, upstream = place / "tls", Upstream("gpu-01/0")
    tls.mkdir()
    bridge = must("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    gateway = Gateway(f"animatediff-test-tls-{os.getpid()}", images, place, gateway_plan(server_name=NAME))
    gateway.mounts = (f"{tls}:/etc/nginx/tls:ro",)
    made = Folder(gateway, tls, fresh())
    made.put(*made.pair)
    upstream.start()
    try:
        gateway.start(upstream, bridge)
        yield made
    finally:
        docker("rm", "--force", gateway.name)
        upstream.stop()


def broken(how: str, good: Pair, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes | None, bytes | None]:
    other = fresh()
    return {
        "key of another": (other[0], good[1]),
        "certificate of another": (good[0], other[1]),
        "half a certificate": (other[0][: len(other[0]) // 4], other[1]),
        "half a key": (other[0], other[1][:100]),
        "empty": (b"", b""),
        "no certificate": (None, other[1]),
        "no key": (other[0], None),
        "nothing": (None, None),
        "key with a password": (other[0], locked(other[1])),
        "a megabyte": (b"x" * (1 << 20), other[1]),
        "expired": aged(monkeypatch, 0),
    }[how]


OFTEN = ("key of another", "expired")
RARE = ("certificate of another", "half a certificate", "half a key", "empty", "no certificate", "no key", "nothing",
        "key with a password", "a megabyte")  # fmt: skip


@pytest.mark.parametrize("how", [*OFTEN, *(pytest.param(how, marks=pytest.mark.long) for how in RARE)])
def test_whatever_is_wrong_the_last_good_pair_stays(folder: Folder, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = folder.gateway
    serial = folder.renew()
    gateway.wait_for_serial(serial)
    known = len(gateway.errors())
    folder.put(*broken(how, folder.pair, monkeypatch))
    wait_for("a complaint", lambda: gateway.serials() == {serial} and len(gateway.errors()) > known, gateway.logs, 15)
    time.sleep(1)
    assert gateway.serials() == {serial}
    assert len(gateway.errors()) == known + 1, "told once, not at each handshake"
    assert "the last good one stays in use" in gateway.errors()[-1]
    assert b"PRIVATE KEY" not in gateway.logs(lines=2000).encode()
    gateway.wait_for_serial(folder.renew())


def test_a_reload_with_broken_files_shows_the_last_good_pair(folder: Folder) -> None:
    gateway = folder.gateway
    serial = folder.renew()
    # Each worker process keeps a pair of its own, from its last handshake on: all of them must have had one.
    wait_for("everywhere", lambda: gateway.serials(64) == {serial}, gateway.logs, 15)
    folder.put(None, b"nonsense")
    must("exec", gateway.name, "gateway-entrypoint", "-s", "reload")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert gateway.serials(4) == {serial}
    gateway.wait_for_serial(folder.renew())


def test_a_start_with_broken_files_answers_all_the_same(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unusable certificate is no reason to take the health checks and the other hosts' questions away."""
    gateway = folder.gateway
    expired = aged(monkeypatch, 0)
    folder.put(None, None)
    gateway.restart()
    assert gateway.shown().subject.rfc4514_string() == "CN=placeholder"
    folder.put(*expired)
    gateway.wait_for_serial(x509.load_pem_x509_certificate(expired[0]).serial_number)
    gateway.wait_for_serial(folder.renew())


def test_an_rsa_pair_takes_the_place_of_an_elliptic_one_and_back(folder: Folder) -> None:
    """OpenSSL keeps a certificate for each kind of key; the old one must not be left beside the new."""
    gateway = folder.gateway
    gateway.wait_for_serial(folder.renew())
    make = ("req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=rsa", "-days", "30", "-keyout", "-")
    both = must("run", "--rm", "--entrypoint", "openssl", f"animatediff-ha/gateway:{gateway.tag}", *make).encode()
    folder.put(both, both)
    serial = x509.load_pem_x509_certificate(both[both.index(b"-----BEGIN CERT") :]).serial_number
    gateway.wait_for_serial(serial)
    gateway.wait_for_serial(folder.renew())


async def test_what_secrets_makes_anew_counts_without_a_reload(folder: Folder, tmp_path: Path) -> None:
    """`generator secrets`, under load, into the folder that is mounted."""
    gateway, load = folder.gateway, Load(folder.gateway.tls_port)
    the_plan, store = gateway_plan(server_name=NAME), Store(tmp_path / "secrets")

    def renew() -> None:
        for name in ("a.example.net", "b.example.net"):
            store.create_missing((name,), tls=True, redis={f"gpu-0{n}": (name,) for n in (1, 2, 3)})
            lay_out(the_plan, tmp_path, store.read(), uid=UID)
            laid = tmp_path / "gpu-01/secrets/tls"
            folder.put((laid / "tls.crt").read_bytes(), (laid / "tls.key").read_bytes())
            gateway.wait_for_serial(
                x509.load_pem_x509_certificate((laid / "tls.crt").read_bytes()).serial_number,
            )

    gateway.wait_for_serial(folder.renew())
    pid = must("exec", gateway.name, "cat", "/tmp/nginx.pid")
    await load.around(renew)
    assert load.failed == []
    assert load.answered > 50
    assert must("exec", gateway.name, "cat", "/tmp/nginx.pid") == pid
    client = ssl.create_default_context(cadata=(tmp_path / "secrets/ca.crt").read_text())
    with socket.create_connection(("127.0.0.1", gateway.tls_port), 5) as plain:
        client.wrap_socket(plain, server_hostname="b.example.net").close()
    assert gateway.shown().not_valid_after_utc > datetime.datetime.now(datetime.timezone.utc)


def test_our_own_client_asks_an_address_for_the_certificate_of_a_name(folder: Folder, tmp_path: Path) -> None:
    """`status` reaches each gateway by its address, whatever name the certificate is for."""
    folder.gateway.wait_for_serial(folder.renew())
    authority, url = tmp_path / "ca.crt", f"https://127.0.0.1:{folder.gateway.tls_port}"
    authority.write_bytes(AUTHORITY[1])
    for name, reached in ((NAME, True), ("", False), ("other.example.net", False)):
        with Client(url, "key", authority=authority, server_name=name) as client:
            assert client.ready() is reached, name


# --- as compose runs it --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_rendered_services_get_a_certificate(engine: Engine, images: str, tmp_path: Path) -> None:
    """compose.yaml as it is: volumes that nobody has prepared, the order of starting, the health checks."""
    host = {"address": "127.0.0.1", "roles": ["gateway", "control", "queue", "worker"], "cpu_workers": 1}
    cluster = one_host(
        name=f"test-acme-{os.getpid()}",
        hosts={"demo": host},
        images={"webui": "cpu", "tag": images},
        gateway={
            "server_name": NAME,
            "http_port": free_port(),
            "https_port": free_port(),
            "bind": "127.0.0.1",
            "tls": {"mode": "acme", "directory": DIRECTORY},
        },
    )
    tree.write(tmp_path, render(plan(cluster), read_sources()))
    store = Store(tmp_path / "store")
    store.create_missing((NAME,), tls=False)
    lay_out(plan(cluster), tmp_path, store.read())
    folder, pebble = tmp_path / "demo", f"{cluster.name}-pebble"
    tmp_path.chmod(0o755)
    (folder / "compose.override.yaml").write_text(
        f"""services:
  gateway: {{networks: {{cluster: {{aliases: [{NAME}]}}}}}}
  acme:
    environment: {{REQUESTS_CA_BUNDLE: /etc/pebble/ca.crt}}
    volumes: ["{tmp_path}/pebble:/etc/pebble:ro"]
"""
    )
    try:
        # No directory answers yet, and `up` ends well all the same: the next host is not to wait for it.
        engine.compose(folder, "up", "--detach", "--wait", "acme", timeout=60)
        wait_for("it is told", lambda: "acme_failed" in engine.compose(folder, "logs", "acme"), str)
        assert shown_at(cluster.gateway.https_port).subject.rfc4514_string() == "CN=placeholder"
        start_pebble(engine, images, tmp_path, pebble, f"{cluster.name}_cluster")
        engine.compose(folder, "kill", "--signal", "USR1", "acme")
        wait_for("it is shown", lambda: is_issued(shown_at(cluster.gateway.https_port)), str)
        assert "healthy" in engine.compose(folder, "ps", "acme")
    finally:
        docker("rm", "--force", "--volumes", pebble)
        engine.compose(folder, "down", "--volumes", "--timeout", "3")
