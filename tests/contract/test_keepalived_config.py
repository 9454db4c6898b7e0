"""The rendered keepalived configuration, judged by the image's own keepalived, and the image's scripts at work."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator.plan import plan
from generator.planned import Plan
from generator.render import render_host
from generator.sources import read_sources
from tests.unit.generator.clusters import cluster, three_hosts

pytestmark = pytest.mark.docker
VIP = "192.168.1.100"
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777")


def gateways(count: int = 2, **vrrp: Any) -> Plan:
    """This many gateway hosts and one for everything else."""
    hosts: dict[str, dict[str, Any]] = {
        f"gw-{n}": {"address": f"192.168.1.{n}", "roles": ["gateway"]} for n in range(1, count + 1)
    }
    hosts["node"] = {"address": "192.168.1.90", "roles": ["control", "queue", "worker"], "cpu_workers": 1}
    return plan(cluster(hosts=hosts, images={"webui": "cpu"}, gateway={"vip": VIP, "vrrp": vrrp}))


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)


def entrypoint(tag: str, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the container of the compose file starts, as root there; on a network of its own here."""
    settings = {"APPLIANCE_NODE_NAME": "gw-1", "APPLIANCE_HOST_ADDRESS": "192.168.1.1", **environment}
    options = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
    options += ["--user", "0:0", "--cap-add", "SETGID", "--cap-add", "SETUID"]
    mount = ["-v", f"{folder}:/etc/appliance-keepalived:ro"]
    return docker("run", "--rm", *HARDENED, *options, *mount, f"animatediff-ha/keepalived:{tag}", *words)


def judge(tag: str, the_plan: Plan, folder: Path, spoil: tuple[str, str] = ("", "")) -> str:
    """What keepalived says against the first host's configuration; nothing when it is content."""
    folder.chmod(0o755)
    text = render_host(the_plan.cluster, the_plan.hosts[0], read_sources())[
        "config/keepalived/keepalived.conf"
    ].decode()
    (folder / "keepalived.conf").write_text(text.replace(*spoil))
    result = entrypoint(tag, folder, "--config-test", APPLIANCE_VRRP_INTERFACE="eth0")
    said = result.stdout + result.stderr
    assert (result.returncode == 0) == (said == ""), said
    return said


@pytest.mark.parametrize(
    "the_plan", [gateways(), gateways(5), gateways(router_id=255)], ids=["two", "five", "router-id"]
)
def test_keepalived_accepts_the_rendered_configuration(images: str, the_plan: Plan, tmp_path: Path) -> None:
    assert judge(images, the_plan, tmp_path) == ""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (("nopreempt", "nopreemption"), "Unknown keyword 'nopreemption'"),
        (("advert_int 0.2", "advert_int 0.001"), "Advert interval"),
        (("keepalived-check-gateway", "keepalived-check-nothing"), "Disabling track script gateway"),
    ],
    ids=["keyword", "value", "script"],
)
def test_keepalived_refuses_a_broken_one(images: str, tmp_path: Path, spoil: tuple[str, str], said: str) -> None:
    """Proof that the test above can fail; of the script, that it would not be started."""
    assert said in judge(images, gateways(), tmp_path, spoil)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no interface of this host has the address 192.168.1.1: correct hosts.gw-1.address in cluster.yaml"),
        (
            {"APPLIANCE_VRRP_INTERFACE": "bond7"},
            "no interface of this host is called bond7: correct gateway.vrrp.inter",
        ),
        ({"APPLIANCE_HOST_ADDRESS": ""}, "APPLIANCE_HOST_ADDRESS: is missing"),
    ],
    ids=["address", "name", "nothing"],
)
def test_a_host_without_the_interface_is_told(
    images: str, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    result = entrypoint(images, tmp_path, **environment)
    assert result.returncode == 1
    assert said in result.stderr


# --- the check ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def container(images: str) -> Iterator[str]:
    """Runs nothing; on the host's network, so that its scripts reach the small servers of the test."""
    name = f"animatediff-test-keepalived-{uuid.uuid4().hex[:6]}"
    words = ["--network", "host", "--entrypoint", "sleep", f"animatediff-ha/keepalived:{images}", "infinity"]
    assert docker("run", "-d", "--init", "--name", name, *HARDENED, *words).returncode == 0
    yield name
    docker("rm", "-f", name)


@contextmanager
def gateway(answer: bytes | None) -> Iterator[str]:
    """The address of a small server that says this to everybody; None: it takes the question and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client:
                    client.settimeout(2)
                    asked = b""  # bash sends it line by line
                    while not asked.endswith(b"\r\n\r\n") and (more := client.recv(1000)):
                        asked += more
                    if answer is None:
                        over.wait(5)
                    else:
                        client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    yield address


READY = b"HTTP/1.1 200 OK\r\n\r\n"
UNREADY = b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\n\r\n"
STRANGE = b"220 mail.example.net ESMTP\r\n"
SILENT = None
GONE = b"gone"


@pytest.mark.parametrize(
    ("own", "peers", "may_hold"),
    [
        (READY, [READY], True),
        (READY, [GONE], True),
        (UNREADY, [UNREADY], True),
        (UNREADY, [GONE, SILENT], True),
        (UNREADY, [STRANGE], True),
        (UNREADY, [READY], False),
        (UNREADY, [GONE, SILENT, UNREADY, READY], False),
        (BROKEN, [READY], False),
        (BROKEN, [UNREADY], True),
        (GONE, [UNREADY], False),
        (SILENT, [UNREADY], False),
        (b"", [UNREADY], False),
        (b"\r\n", [UNREADY], False),
    ],
)
def test_who_may_hold_the_address(container: str, own: bytes | None, peers: list[bytes | None], may_hold: bool) -> None:
    with ExitStack() as stack:
        addresses = [stack.enter_context(nobody() if one == GONE else gateway(one)) for one in (own, *peers)]
        result = docker("exec", container, "timeout", "2", "keepalived-check-gateway", *addresses)
    assert (result.returncode, result.stdout, result.stderr) == (0 if may_hold else 1, "", "")


def test_unhealthy_when_the_gateway_is_not_checked(container: str) -> None:
    def health() -> tuple[int, str]:
        result = docker("exec", container, "keepalived-healthcheck")
        return result.returncode, result.stderr.strip()

    docker("exec", container, "rm", "-f", "/tmp/keepalived-checked")
    assert health() == (1, "the gateway has not been checked")
    docker("exec", container, "keepalived-check-gateway", "127.0.0.1:1")
    assert health() == (0, "")
    docker("exec", container, "touch", "--date=1 minute ago", "/tmp/keepalived-checked")
    status, said = health()
    assert status == 1
    assert re.match("the gateway was last checked 6[0-9] ", said)


def test_it_runs_as_anyone_where_the_compose_file_does_not_say_root(container: str) -> None:
    assert docker("exec", container, "id", "--user").stdout == "10001\n"


def test_the_rendered_service_gets_what_it_needs_and_no_more() -> None:
    the_plan = plan(three_hosts(gateway={"vip": VIP}))
    compose = render_host(the_plan.cluster, the_plan.by_name["gpu-02"], read_sources())["compose.yaml"]
    service = yaml.safe_load(compose)["services"]["keepalived"]
    assert service["cap_add"] == ["NET_ADMIN", "NET_RAW", "SETGID", "SETUID"]
    assert (service["network_mode"], "networks" in service, "ports" in service) == ("host", False, False)
    assert service["environment"]["APPLIANCE_HOST_ADDRESS"] == "192.168.1.11"
    assert service["environment"]["APPLIANCE_VIRTUAL_ADDRESS"] == VIP
