"""Gateways before the same nodes: ours, the article's nginx, HAProxy in two tempers. All stick by the same cookie."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.acme_stage import must
from tests.integration.fault_stage.stage import PORT, Stage
from tests.integration.gateway_stage import KEY, PLAIN, Setup, wait_for

COOKIE = "appliance_client"
# As in the article: passive checks, three failures within half a minute, then out for half a minute.
ARTICLE = """
pid /tmp/nginx.pid;
daemon off;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
    scgi_temp_path /tmp/s;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    upstream nodes {{
        hash $cookie_{cookie} consistent;
        {servers}
    }}
    server {{
        listen 8080;
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 3600s;
            proxy_send_timeout 3600s;
            proxy_pass http://nodes;
        }}
    }}
}}
"""
HAPROXY = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 1s
    timeout client 3600s
    timeout server 3600s
    timeout tunnel 3600s
    timeout check {check}
    option redispatch
    retries 3
frontend all
    bind :8080
    default_backend nodes
backend nodes
    balance hash req.cook({cookie})
    hash-type consistent
    option httpchk GET /internal/ping
    http-check expect string "status\\": \\"ok"
    default-server inter {inter} fall 2 rise 2 {more}
    {servers}
"""


@dataclass
class Contender:
    """`key` are the headers of its visitors."""

    name: str
    address: tuple[str, int]
    key: Mapping[str, str] = field(default_factory=dict)

    def is_whole(self, stage: Stage) -> bool:
        """Whether each node gets visitors, and none of them an error."""
        found = set()
        with httpx.Client(verify=PLAIN, timeout=1) as client:
            for number in range(60):
                cookie = {"Cookie": f"{COOKIE}={number:032x}"}
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    url = "http://{}:{}/webui/page".format(*self.address)
                    found.add(client.get(url, headers={**self.key, **cookie}).json().get("node"))
        return found == set(stage.by_name())


@dataclass
class Ours(Contender):
    setup: Setup | None = None
    targets: str = ""

    def start_controller(self) -> None:
        assert self.setup
        self.setup.start_controller(APPLIANCE_CONTROLLER_TARGETS=self.targets, APPLIANCE_PROBE_TIMEOUT_SECONDS="0.2")

    @property
    def has_controller(self) -> bool:
        return self.setup is not None and self.setup.controller is not None

    def stop_controller(self) -> None:
        assert self.setup
        self.setup.stop_controller()

    def kill_controller(self) -> None:
        assert self.setup
        assert self.setup.controller
        self.setup.controller.kill()
        self.setup.controller.wait()
        self.setup.controller = None

    def push(self, body: str) -> int:
        assert self.setup
        return self.setup.state(body).status_code

    def state(self) -> dict[str, Any]:
        assert self.setup
        found: dict[str, Any] = self.setup.state().json()["state"]
        return found

    def logs(self) -> str:
        assert self.setup
        return self.setup.logs()

    def peers(self) -> set[str]:
        assert self.setup
        return self.setup.pool()


@contextlib.contextmanager
def ours(stage: Stage, tag: str, folder: Path) -> Iterator[Ours]:
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(folder, {}, gateway_plan(tls={"mode": "none"}, submissions_per_second=10_000), tag)
    peers = [{"name": node.name, "address": f"{node.ip}:{PORT}"} for node in stage.nodes]
    try:
        setup.start_gateway()
        must("network", "connect", stage.network, setup.container)
        setup.find_ports()
        host, _, port = setup.base.removeprefix("http://").partition(":")
        made = Ours("ours", (host, int(port)), KEY, setup, json.dumps({"api": peers, "webui": peers}))
        made.start_controller()
        wait_for("peers", lambda: made.peers() == set(stage.by_name()), setup.logs)
        yield made
    finally:
        if setup.controller:
            setup.controller.kill()
            setup.controller.wait()
        docker("rm", "--force", setup.container)


@contextlib.contextmanager
def article(stage: Stage, tag: str, folder: Path) -> Iterator[Contender]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    servers = "\n        ".join(f"server {node.ip}:{PORT} max_fails=3 fail_timeout=30s;" for node in stage.nodes)
    file = folder / "article.conf"
    file.write_text(ARTICLE.format(cookie=COOKIE, servers=servers))
    name = f"{stage.network}-article"
    try:
        must(
            "run", "-d", "--name", name, "--network", stage.network, "--tmpfs", "/tmp:mode=1777",
            "-p", "127.0.0.1::8080", "-v", f"{file}:/etc/article.conf:ro", "--entrypoint", "nginx",
            f"animatediff-ha/gateway:{tag}", "-e", "stderr", "-c", "/etc/article.conf",
        )  # fmt: skip
        host, _, port = must("port", name, "8080").split()[0].partition(":")
        yield Contender("article's nginx", (host, int(port)))
    finally:
        docker("rm", "--force", name)


def haproxy_image(tag: str) -> str:
    """Debian's HAProxy on the project's own base, so that it has the same libraries as our nginx."""
    name = f"animatediff-bench-haproxy:{tag}"
    lines = (
        f"FROM animatediff-ha/base:{tag}",
        "USER 0:0",
        "RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends haproxy",
        "USER 10001:10001",
    )
    done = subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, "-"],
        input="\n".join(lines), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return name


@contextlib.contextmanager
def haproxy(stage: Stage, tag: str, folder: Path, inter: str, more: str = "") -> Iterator[Contender]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    servers = "\n    ".join(f"server n{index} {node.ip}:{PORT} check" for index, node in enumerate(stage.nodes))
    check = "200ms" if inter.endswith("ms") else "1s"
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY.format(cookie=COOKIE, inter=inter, more=more, servers=servers, check=check))
    name = f"{stage.network}-haproxy-{inter}"
    try:
        must(
            "run", "-d", "--name", name, "--network", stage.network, "-p", "127.0.0.1::8080",
            "-v", f"{file}:/etc/haproxy.cfg:ro", "--entrypoint", "haproxy", haproxy_image(tag),
            "-db", "-f", "/etc/haproxy.cfg",
        )  # fmt: skip
        host, _, port = must("port", name, "8080").split()[0].partition(":")
        yield Contender(f"HAProxy, check {inter}", (host, int(port)))
    finally:
        docker("rm", "--force", name)
