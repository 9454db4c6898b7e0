"""Full TLS handshakes per CPU second: our nginx, which reads its certificate anew, a fixed certificate, and HAProxy.

    python tests/bench/handshakes.py [--rounds 5] [--seconds 3] [--tag 0.1.0]

`fixed` is the gateway's image and its rendered configuration, but ssl_certificate names the pair itself. HAProxy is
Debian's on the same base image, with the same ciphers. They take turns in one run, so what else the machine does hits
all. Printed are ratios, no verdict.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, whose queue.py would hide Python's.
sys.path[:1] = [str(ROOT), *(str(ROOT / "images" / name) for name in ("services", "sdapi"))]

from generator.certificates import make_authority, make_server  # noqa: E402
from tests.contract.test_gateway_config import docker, gateway_plan  # noqa: E402
from tests.integration.acme_stage import NAME, UID, Gateway, must  # noqa: E402
from tests.integration.fault_stage.contenders import haproxy_image  # noqa: E402
from tests.integration.gateway_stage import Upstream  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
HAPROXY = """
global
    maxconn 2000
    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
    ssl-default-bind-ciphers ECDHE+AESGCM:ECDHE+CHACHA20
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend all
    bind :8443 ssl crt /tls/haproxy.pem alpn h2,http/1.1
    http-request return status 200
"""
LUA = re.compile(r"ssl_certificate_by_lua_block \{.*?\n        \}\n", re.DOTALL)


class Fixed(Gateway):
    """nginx's own way."""

    def start(self, upstream: Upstream, host: str) -> None:
        super().start(upstream, host)
        file = self.folder / "nginx/nginx.conf"
        text, count = LUA.subn("", file.read_text())
        assert count == 1
        for kind in ("crt", "key"):
            text = text.replace(f"/tmp/placeholder.{kind}", f"/etc/nginx/tls/tls.{kind}")
        file.write_text(text)
        self.restart()


@dataclass(frozen=True)
class Contestant:
    container: str
    port: int


def start_haproxy(name: str, tag: str, folder: Path, tls: Path) -> Contestant:
    folder.mkdir()
    folder.chmod(0o755)
    pair = tls / "haproxy.pem"
    pair.write_bytes((tls / "tls.crt").read_bytes() + (tls / "tls.key").read_bytes())
    os.chown(pair, UID, UID)
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY)
    must(
        "run", "-d", "--name", name, "-p", "127.0.0.1::8443", "-v", f"{tls}:/tls:ro", "--user", f"{UID}:{UID}",
        "-v", f"{file}:/etc/haproxy.cfg:ro", "--entrypoint", "haproxy", haproxy_image(tag),
        "-db", "-f", "/etc/haproxy.cfg",
    )  # fmt: skip
    return Contestant(name, int(must("port", name, "8443").split()[0].rpartition(":")[2]))


def cpu_seconds(container: str) -> float:
    """Of all its processes, since they began."""
    pids = must("top", container, "-eo", "pid").split()[1:]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / TICKS


def handshakes(one: Contestant, tag: str, seconds: int) -> float:
    """Per CPU second."""
    before = cpu_seconds(one.container)
    said = must(
        "run", "--rm", "--network", "host", "--entrypoint", "openssl", f"animatediff-ha/gateway:{tag}",
        "s_time", "-connect", f"127.0.0.1:{one.port}", "-new", "-time", str(seconds),
    )  # fmt: skip
    found = re.search(r"^(\d+) connections in \d+ real seconds", said, re.MULTILINE)
    assert found, said
    return int(found[1]) / (cpu_seconds(one.container) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--tag", default="0.1.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="animatediff-bench-") as name:
        measure(Path(name), options.tag, options.rounds, options.seconds)


def measure(folder: Path, tag: str, rounds: int, seconds: int) -> None:
    folder.chmod(0o755)
    tls = folder / "tls"
    tls.mkdir()
    for file, content in zip(("tls.key", "tls.crt"), make_server(*make_authority(), (NAME,)), strict=True):
        (tls / file).write_bytes(content)
        os.chown(tls / file, UID, UID)
    prefix = f"animatediff-bench-tls-{os.getpid()}"
    kinds = {"fixed": Fixed, "ours": Gateway}
    gateways = {
        name: kind(f"{prefix}-{name}", tag, folder / name, gateway_plan(server_name=NAME))
        for name, kind in kinds.items()
    }
    try:
        contestants = {"HAProxy": start_haproxy(f"{prefix}-haproxy", tag, folder / "haproxy", tls)}
        for name, gateway in gateways.items():
            gateway.mounts = (f"{tls}:/etc/nginx/tls:ro",)
            gateway.start(Upstream("nobody"), "127.0.0.1")
            contestants[name] = Contestant(gateway.name, gateway.tls_port)
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(1, rounds + 1):
            # Whoever comes last in one round comes first in the next.
            for name in sorted(contestants, reverse=bool(number % 2)):
                rates[name].append(handshakes(contestants[name], tag, seconds))
            print(f"round {number} of {rounds}: " + ", ".join(f"{name} {all_[-1]:.0f}" for name, all_ in rates.items()))
    finally:
        docker("rm", "--force", f"{prefix}-haproxy", *(gateway.name for gateway in gateways.values()))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print("full handshakes per CPU second: " + ", ".join(f"{name} {rate:.0f}" for name, rate in middle.items()))
    for other in ("fixed", "HAProxy"):
        print(f"ours to {other}: {middle['ours'] / middle[other]:.2f}")


if __name__ == "__main__":
    main()
