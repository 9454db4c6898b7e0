"""Full TLS handshakes per CPU second of nginx: ours, which reads its certificate anew, against a fixed one.

    python tests/bench/handshakes.py [--rounds 5] [--seconds 3] [--tag 0.1.0]

Both are the gateway's image and its rendered configuration; in the other one ssl_certificate names the pair itself.
They take turns in one run, so what else the machine does hits both. Printed is the ratio, no verdict.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, whose queue.py would hide Python's.
sys.path[:1] = [str(ROOT), *(str(ROOT / "images" / name) for name in ("services", "sdapi"))]

from generator.certificates import make_authority, make_server  # noqa: E402
from tests.contract.test_gateway_config import docker, gateway_plan  # noqa: E402
from tests.integration.acme_stage import NAME, UID, Gateway, must  # noqa: E402
from tests.integration.test_gateway import Upstream  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
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


def cpu_seconds(gateway: Gateway) -> float:
    """Of all its processes, since they began."""
    pids = must("top", gateway.name, "-eo", "pid").split()[1:]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / TICKS


def handshakes(gateway: Gateway, seconds: int) -> float:
    """Per CPU second of the gateway."""
    before = cpu_seconds(gateway)
    said = must(
        "run", "--rm", "--network", "host", "--entrypoint", "openssl", f"animatediff-ha/gateway:{gateway.tag}",
        "s_time", "-connect", f"127.0.0.1:{gateway.tls_port}", "-new", "-time", str(seconds),
    )  # fmt: skip
    found = re.search(r"^(\d+) connections in \d+ real seconds", said, re.MULTILINE)
    assert found, said
    return int(found[1]) / (cpu_seconds(gateway) - before)


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
    kinds = {"fixed": Fixed, "ours": Gateway}
    gateways = {
        name: kind(f"animatediff-bench-tls-{name}-{os.getpid()}", tag, folder / name, gateway_plan(server_name=NAME))
        for name, kind in kinds.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    try:
        for gateway in gateways.values():
            gateway.mounts = (f"{tls}:/etc/nginx/tls:ro",)
            gateway.start(Upstream("nobody"), "127.0.0.1")
        for number in range(1, rounds + 1):
            # Whoever comes second in one round comes first in the next.
            for name in sorted(gateways, reverse=bool(number % 2)):
                rates[name].append(handshakes(gateways[name], seconds))
            print(f"round {number} of {rounds}: " + ", ".join(f"{name} {all_[-1]:.0f}" for name, all_ in rates.items()))
    finally:
        docker("rm", "--force", *(gateway.name for gateway in gateways.values()))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print(f"full handshakes per CPU second: {middle['ours']:.0f}, with a fixed certificate {middle['fixed']:.0f}")
    print(f"ratio {middle['ours'] / middle['fixed']:.2f}")


if __name__ == "__main__":
    main()
