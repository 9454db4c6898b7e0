"""Two gateways with a keeper each, in front of a real ACME server (Debian's pebble) and one node."""

from __future__ import annotations

import contextlib
import json
import os
import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from generator.certificates import make_authority, make_server
from generator.docker import Engine
from generator.planned import CertificatePlan, Plan
from generator.secrets import nginx_header
from tests.contract.test_gateway_config import docker, gateway_plan, render
from tests.integration.gateway_stage import TOKEN, Upstream

NAME = "video.example.net"
DIRECTORY = "https://pebble:14000/dir"
NODE = "gpu-01/0"
ANYONE = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ANYONE.check_hostname = False
ANYONE.verify_mode = ssl.CERT_NONE
CHALLENGES = "/var/lib/acme-challenge/.well-known/acme-challenge"
UID = os.getuid() or 10001


def must(*arguments: str) -> str:
    result = docker(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def wait_for(what: str, ready: Callable[[], bool], hint: Callable[[], str], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds} s\n{hint()}")
        time.sleep(0.05)


def shown_at(port: int) -> x509.Certificate:
    """The certificate of a new handshake."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode())


@dataclass
class Gateway:
    """One nginx on a rendered configuration, with what a controller would have told it."""

    name: str
    tag: str
    folder: Path
    plan: Plan
    network: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    http: str = ""
    tls_port: int = 0
    node: dict[str, object] = field(default_factory=dict)

    def start(self, upstream: Upstream, host: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        configuration = render(self.plan, self.folder / "nginx")
        token = self.folder / "cluster_token.nginx"
        token.write_bytes(nginx_header(TOKEN))
        run = self.folder / "run"
        run.mkdir(mode=0o700)
        if os.getuid() == 0:
            os.chown(run, UID, UID)
        places = (f"{configuration}:/etc/appliance-nginx:ro", f"{run}:/run/gateway",
                  f"{token}:/run/secrets/cluster_token.nginx:ro", *self.mounts)  # fmt: skip
        must(
            "run", "-d", "--name", self.name, "--read-only", "--cap-drop", "ALL", "--init",
            "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777", "--user", f"{UID}:{UID}",
            "-e", "APPLIANCE_NODE_NAME=gpu-01", "-p", "127.0.0.1::8080", "-p", "127.0.0.1::8443", *self.network,
            *(word for place in places for word in ("-v", place)), f"animatediff-ha/gateway:{self.tag}",
        )  # fmt: skip
        self.node = {"name": NODE, "ip": host, "port": upstream.port}
        self._settle()

    def restart(self) -> None:
        must("restart", self.name)
        self._settle()

    def _settle(self) -> None:
        """Docker has chosen its ports; it answers, and knows its node."""
        self.http = "http://" + must("port", self.name, "8080").split()[0]
        self.tls_port = int(must("port", self.name, "8443").split()[0].rpartition(":")[2])
        wait_for(self.name, self.answers, self.logs)
        pools = {"api": [self.node], "webui": [{**self.node, "weight": 1}]}
        door = str(self.folder / "run/state.sock")
        with httpx.Client(transport=httpx.HTTPTransport(uds=door, verify=ANYONE)) as client:
            answer = client.put("http://state/state", json={"epoch": "1", "version": 1, "pools": pools})
        assert answer.status_code == 200, answer.text

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.http}/healthz", timeout=2, verify=ANYONE).status_code == 200
        except httpx.HTTPError:
            return False

    def shown(self) -> x509.Certificate:
        return shown_at(self.tls_port)

    def serials(self, count: int = 16) -> set[int]:
        """Of so many new handshakes: each worker process has its share."""
        return {self.shown().serial_number for _ in range(count)}

    def wait_for_issuer(self) -> None:
        wait_for("one of pebble's", lambda: is_issued(self.shown()), self.logs, 15)

    def wait_for_serial(self, serial: int) -> None:
        wait_for(f"serial {serial:x}", lambda: self.serials() == {serial}, self.logs, 15)

    def errors(self) -> list[str]:
        return [line for line in self.logs(lines=2000).splitlines() if "[error]" in line and "certificate" in line]

    def logs(self, lines: int = 30) -> str:
        result = docker("logs", "--tail", str(lines), self.name)
        return result.stdout + result.stderr


@dataclass
class Keeper:
    """The acme service beside one gateway."""

    name: str
    tag: str
    network: str
    volumes: tuple[str, ...]
    authority: Path

    def start(self) -> None:
        must(
            "run", "-d", "--name", self.name, "--network", self.network, "--read-only", "--cap-drop", "ALL", "--init",
            "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777", "--user", "10001:10001",
            "-e", f"APPLIANCE_ACME_DIRECTORY={DIRECTORY}", "-e", "APPLIANCE_ACME_EMAIL=admin@example.net",
            "-e", f"APPLIANCE_ACME_NAME={NAME}", "-e", "APPLIANCE_NODE_NAME=gpu-01",
            "-v", f"{self.authority}:/etc/pebble-ca.crt:ro", "-e", "REQUESTS_CA_BUNDLE=/etc/pebble-ca.crt",
            *(word for place in self.volumes for word in ("-v", place)), f"animatediff-ha/acme:{self.tag}",
        )  # fmt: skip

    def renew(self, signal: str = "USR2") -> None:
        must("kill", "--signal", signal, self.name)

    def wait_for(self, event: str, count: int = 1) -> None:
        wait_for(f"{count} {event}", lambda: len(self.events(event)) >= count, self.logs)

    def events(self, event: str) -> list[str]:
        lines = (json.loads(line) for line in docker("logs", self.name).stdout.splitlines())
        return [line["message"] for line in lines if line["event"] == event]

    def logs(self) -> str:
        result = docker("logs", "--tail", "30", self.name)
        return result.stdout + result.stderr

    def health(self) -> tuple[int, str]:
        result = docker("exec", self.name, "/usr/bin/python3", "-m", "keeper", "healthcheck")
        return result.returncode, result.stderr.strip()


def start_pebble(engine: Engine, tag: str, folder: Path, name: str, network: str) -> None:
    """A container `name`, called `pebble` in the network; `folder`/pebble/ca.crt vouches for its address."""
    context = folder / "pebble"
    context.mkdir(exist_ok=True)  # docker makes it where something else mounts it first
    install = "apt-get update && apt-get install --yes --no-install-recommends pebble"
    (context / "Dockerfile").write_text(f"FROM animatediff-ha/base:{tag}\nRUN {install}\nUSER 10001\n")
    for _ in engine.build(["--tag", f"animatediff-test/pebble:{tag}", str(context)], timeout=300):
        pass
    authority = make_authority()
    key, chain = make_server(*authority, ("pebble",))
    settings = {"pebble": {
        "listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000", "httpPort": 8080,
        "certificate": "/pebble/tls.crt", "privateKey": "/pebble/tls.key", "tlsPort": 8443,
    }}  # fmt: skip
    files = {"ca.crt": authority[1], "tls.crt": chain, "tls.key": key, "pebble.json": json.dumps(settings).encode()}
    for file, content in files.items():
        (context / file).write_bytes(content)
        (context / file).chmod(0o644)
    must(
        "run", "-d", "--name", name, "--network", network, "--network-alias", "pebble",
        # Each order is to be validated, at once.
        "-e", "PEBBLE_VA_NOSLEEP=1", "-e", "PEBBLE_AUTHZREUSE=0", "-e", "PEBBLE_WFE_NONCEREJECT=0",
        "-v", f"{context}:/pebble:ro", f"animatediff-test/pebble:{tag}",
        "pebble", "-config", "/pebble/pebble.json",
    )  # fmt: skip


@dataclass
class Stage:
    """`gateways[0]` has the name; `gateways[1]` is only asked by it."""

    tag: str
    folder: Path
    name: str = field(default_factory=lambda: f"animatediff-test-acme-{uuid.uuid4().hex[:6]}")
    upstream: Upstream = field(default_factory=lambda: Upstream(NODE))
    gateways: list[Gateway] = field(default_factory=list)
    keepers: list[Keeper] = field(default_factory=list)

    @property
    def pebble(self) -> str:
        return f"{self.name}-pebble"

    def start(self, engine: Engine) -> None:
        self.folder.chmod(0o755)
        self.upstream.start()
        prefix = self._make_network()
        start_pebble(engine, self.tag, self.folder, self.pebble, self.name)
        addresses = [f"{prefix}.11", f"{prefix}.12"]
        for index, address in enumerate(addresses):
            volumes = [f"{self.name}-{kind}{index}" for kind in ("tls", "challenge", "state")]
            alias = ("--network-alias", NAME) if index == 0 else ()
            gateway = Gateway(
                f"{self.name}-gateway{index}",
                self.tag,
                self.folder / f"gateway{index}",
                acme_plan(addresses[1 - index]),
                ("--network", self.name, "--ip", address, *alias),
                (f"{volumes[0]}:/etc/nginx/tls:ro", f"{volumes[1]}:/var/lib/acme-challenge:ro"),
            )
            places = [f"{volume}:{place}" for volume, place in zip(volumes, KEPT, strict=True)]
            ca = self.folder / "pebble/ca.crt"
            self.keepers.append(Keeper(f"{self.name}-acme{index}", self.tag, self.name, tuple(places), ca))
            self.gateways.append(gateway)
            gateway.start(self.upstream, f"{prefix}.1")

    def _make_network(self) -> str:
        for _ in range(20):
            prefix = f"10.213.{random.randrange(256)}"
            if docker("network", "create", "--subnet", f"{prefix}.0/24", self.name).returncode == 0:
                return prefix
        raise AssertionError("no free network among 10.213.*.0/24")

    def certify(self) -> None:
        """Both gateways have a certificate of pebble's."""
        for keeper, gateway in zip(self.keepers, self.gateways, strict=True):
            if docker("inspect", keeper.name).returncode:
                keeper.start()
                keeper.wait_for("acme_renewed")
                gateway.wait_for_issuer()

    def stop(self) -> None:
        names = [*(keeper.name for keeper in self.keepers), *(gateway.name for gateway in self.gateways)]
        docker("rm", "--force", "--volumes", *names, self.pebble)
        docker("volume", "rm", *(f"{self.name}-{kind}{n}" for kind in ("tls", "challenge", "state") for n in (0, 1)))
        docker("network", "rm", self.name)
        self.upstream.stop()


KEPT = ("/etc/nginx/tls", "/var/lib/acme-challenge", "/var/lib/acme")


def is_issued(certificate: x509.Certificate) -> bool:
    return "Pebble" in certificate.issuer.rfc4514_string()


def acme_plan(sibling: str) -> Plan:
    """As rendered for the first of two gateways, the other of which listens on its container's own port."""
    the_plan = gateway_plan(server_name=NAME, tls={"mode": "acme", "directory": DIRECTORY})
    first = the_plan.hosts[0]
    assert first.gateway
    assert first.gateway.certificate
    assert first.gateway.certificate.acme
    acme = replace(first.gateway.certificate.acme, siblings=(f"{sibling}:8080",))
    certificate: CertificatePlan = replace(first.gateway.certificate, acme=acme)
    return replace(the_plan, hosts=(replace(first, gateway=replace(first.gateway, certificate=certificate)),))


@contextlib.contextmanager
def running(engine: Engine, tag: str, folder: Path) -> Iterator[Stage]:
    stage = Stage(tag, folder)
    try:
        stage.start(engine)
        yield stage
    finally:
        stage.stop()
