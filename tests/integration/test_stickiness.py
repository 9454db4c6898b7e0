"""Which of 1,500 browsers move when nodes come, go and change their weight: the table, through the real gateway."""

from __future__ import annotations

import asyncio
import random
import socket
import uuid
from collections.abc import Iterator, Mapping

import pytest

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_socket_node import KEY
from tests.integration.gateway_stage import Setup, wait_for

CLIENTS = 1500
CONNECTIONS = 12
A, B, C, ADDED = "gpu-01/0", "gpu-02/0", "gpu-03/0", "gpu-04/0"
NODES = (A, B, C, ADDED)
FIRST_PORT = 9000
UPSTREAM = """
load_module /usr/lib/nginx/modules/ndk_http_module.so;
pid /tmp/nginx.pid;
daemon off;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
    scgi_temp_path /tmp/s;
    {servers}
}}
"""

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def nodes(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a container that is four nodes and an api, which all know their names and nothing else."""
    file = tmp_path_factory.mktemp("nodes") / "nginx.conf"
    file.parent.parent.parent.chmod(0o755)
    file.parent.parent.chmod(0o755)
    file.parent.chmod(0o755)
    server = 'server {{ listen {port}; location / {{ return 200 "{name}"; }} }}\n    '
    servers = "".join(server.format(port=FIRST_PORT + index, name=name) for index, name in enumerate(NODES))
    file.write_text(UPSTREAM.format(servers=servers))
    name = f"animatediff-test-nodes-{uuid.uuid4().hex[:6]}"
    started = docker(
        "run", "-d", "--name", name, "--tmpfs", "/tmp:mode=1777", "-v", f"{file}:/etc/nodes.conf:ro",
        "--entrypoint", "nginx", f"animatediff-ha/gateway:{images}", "-e", "stderr", "-c", "/etc/nodes.conf",
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stderr
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = docker("inspect", "--format", template, name).stdout.strip()

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((address, FIRST_PORT)) == 0

        wait_for("nodes", listens, lambda: docker("logs", name).stderr)
        yield address
    finally:
        docker("rm", "-f", name)


@pytest.fixture(scope="module")
def setup(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    made = Setup(tmp_path_factory.mktemp("gateway"), {}, gateway_plan(tls={"mode": "none"}), images)
    try:
        made.start_gateway()
        yield made
    finally:
        docker("rm", "-f", made.container)


class Clients:
    """Browsers with cookies that they have had for long; the same ones in every run."""

    def __init__(self, setup: Setup, address: str) -> None:
        self._setup, self._address, self._version = setup, address, 0
        names = random.Random(7)
        self._cookies = [f"{names.getrandbits(128):032x}" for _ in range(CLIENTS)]

    def push(self, weights: Mapping[str, float]) -> None:
        self._version += 1
        peers = [
            {"name": name, "ip": self._address, "port": FIRST_PORT + NODES.index(name), "weight": weight}
            for name, weight in weights.items()
        ]
        api = [{"name": "api", "ip": self._address, "port": FIRST_PORT}]
        state = {"epoch": "1", "version": self._version, "pools": {"api": api, "webui": peers}}
        assert self._setup.state(state).status_code == 200

    def nodes(self, weights: Mapping[str, float]) -> list[str]:
        """Each client's node with these weights."""
        self.push(weights)
        return asyncio.run(self._ask_all())

    async def _ask_all(self) -> list[str]:
        found: dict[int, str] = {}
        waiting = iter(range(CLIENTS))

        async def ask_some() -> None:
            host, _, port = self._setup.base.removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            for number in waiting:
                head = f"GET /webui/x HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY['Authorization']}\r\nCookie: "
                writer.write(f"{head}appliance_client={self._cookies[number]}\r\n\r\n".encode())
                head_back = (await reader.readuntil(b"\r\n\r\n")).lower()
                assert head_back.startswith(b"http/1.1 200 "), head_back
                assert b"set-cookie" not in head_back
                length = int(head_back.partition(b"content-length: ")[2].split(b"\r\n")[0])
                found[number] = (await reader.readexactly(length)).decode()
            writer.close()

        await asyncio.wait_for(asyncio.gather(*(ask_some() for _ in range(CONNECTIONS))), 60)
        return [found[number] for number in range(CLIENTS)]


def share(nodes: list[str], name: str) -> float:
    return nodes.count(name) / CLIENTS


def test_only_those_move_who_have_to(setup: Setup, nodes: str) -> None:
    clients = Clients(setup, nodes)
    three = {A: 1.0, B: 1.0, C: 1.0}
    rows: list[str] = []
    before = home = clients.nodes(three)
    assert all(0.28 < share(home, name) < 0.39 for name in three)

    def step(what: str, weights: Mapping[str, float], leaving: str | None = None, gaining: str | None = None) -> None:
        nonlocal before
        now = clients.nodes(weights)
        moves = {(old, new) for old, new in zip(before, now, strict=True) if old != new}
        moved = sum(old != new for old, new in zip(before, now, strict=True))
        there = share(now, leaving or gaining or "")
        rows.append(f"{what:<24} {moved / CLIENTS:6.1%} moved; on the one concerned {there:6.1%}")
        assert all(old == leaving or new == gaining for old, new in moves), (what, moves)
        if leaving:
            assert leaving not in now
            assert moved == before.count(leaving)
        if gaining:
            assert moved == now.count(gaining) - before.count(gaining)
        before = now

    step("node down", {A: 1, C: 1}, leaving=B)
    step("node back", three, gaining=B)
    assert before == home
    step("node added", {**three, ADDED: 1}, gaining=ADDED)
    assert 0.2 < share(before, ADDED) < 0.3
    step("node drained", {**three, ADDED: 0}, leaving=ADDED)
    assert before == home
    for percent, low, high in ((10, 0.02, 0.05), (50, 0.11, 0.18), (100, 0.2, 0.3)):
        step(f"canary to {percent} % of a node", {**three, ADDED: percent / 100}, gaining=ADDED)
        assert low < share(before, ADDED) < high
    step("canary back to 0 %", {**three, ADDED: 0}, leaving=ADDED)
    assert before == home
    print("\n" + "\n".join(rows))
