"""What the gateway costs: requests per CPU second of nginx, ours beside a bare proxy_pass with keepalive.

    python tests/bench/overhead.py [--rounds 5] [--seconds 3] [--tag 0.1.0]

Needs wrk (Debian: `apt-get install wrk`). All are the gateway's own image before the same backend, a request each time
with an API key: `bare` is `proxy_pass` and nothing else, `logged` has nginx's own access log besides, `duties` has what
every request owes its operator and its browser, by nginx's own means and with one fixed peer: a JSON line, an id,
the headers; `api` and `page` are our routes of these names, with balancing, limits, authentication, error pages and
counters as well. They take turns in one run, so what else the machine does hits all of them. Printed are ratios, no
verdict.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In the place of this folder, whose queue.py would hide Python's.
sys.path[:1] = [str(ROOT), *(str(ROOT / "images" / name) for name in ("services", "sdapi"))]

from tests.contract.test_gateway_config import docker, gateway_plan  # noqa: E402
from tests.integration.acme_stage import must  # noqa: E402
from tests.integration.gateway_stage import KEY, NODES, Setup, wait_for  # noqa: E402

CONNECTIONS = 32
COOKIE = "appliance_client=" + "0123456789abcdef" * 2
FRAME = """
load_module /usr/lib/nginx/modules/ndk_http_module.so;
pid /tmp/nginx.pid;
daemon off;
worker_processes 4;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    {log}
    client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
    scgi_temp_path /tmp/s;
    keepalive_requests 1000000;
    {inside}
}}
"""
BACKEND = """server {
        listen 9000;
        default_type application/json;
        location = /internal/auth { return 204; }
        location / { return 200 '{"id": "0190", "state": "running", "progress": 0.25, "position": 0}'; }
    }"""
BARE = """upstream backend {{ server {backend}:9000; keepalive 32; }}
    server {{
        listen 8080;
        location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; {more} proxy_pass http://backend; }}
    }}"""
JSON_LOG = """log_format json escape=json
        '{"@timestamp":"$time_iso8601","message":"$request_method $uri $status","service":"gateway",'
        '"event":"http_request","request_id":"$request_id","client":"$remote_addr","method":"$request_method",'
        '"path":"$uri","status":"$status","bytes":"$bytes_sent","seconds":"$request_time","upstream":"$upstream_addr",'
        '"upstream_status":"$upstream_status","upstream_seconds":"$upstream_response_time",'
        '"user_agent":"$http_user_agent"}';
    access_log /dev/stdout json buffer=4k flush=1s;"""
HEADERS = """
            proxy_set_header Host $host;
            proxy_set_header X-Request-Id $request_id;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            add_header X-Request-Id $request_id always;
            add_header X-Content-Type-Options nosniff always;
            add_header X-Frame-Options SAMEORIGIN always;
            add_header Referrer-Policy same-origin always;
            add_header Cross-Origin-Resource-Policy same-origin always;
            add_header Cross-Origin-Opener-Policy same-origin always;
            add_header Content-Security-Policy "default-src 'none'; sandbox allow-same-origin" always;"""
# By name: the log, and what stands beside proxy_pass.
PEERS = {
    "bare": ("access_log off;", ""),
    "logged": ("access_log /dev/stdout;", ""),
    "duties": (JSON_LOG, HEADERS),
}


@dataclass(frozen=True)
class Contestant:
    container: str
    url: str


def start(name: str, tag: str, file: Path, text: str) -> str:
    """An nginx of the gateway's image on this configuration; its address."""
    file.write_text(text)
    must(
        "run", "-d", "--name", name, "--tmpfs", "/tmp:mode=1777", "-v", f"{file}:/etc/bench.conf:ro",
        "--entrypoint", "nginx", f"animatediff-ha/gateway:{tag}", "-e", "stderr", "-c", "/etc/bench.conf",
    )  # fmt: skip
    return address_of(name)


def address_of(name: str) -> str:
    return must("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def cpu_seconds(container: str) -> float:
    """Of all its processes, by the kernel's own account of its cgroup."""
    pid = must("inspect", "--format", "{{.State.Pid}}", container)
    group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("::")[2]
    if (stat := Path(f"/sys/fs/cgroup{group}/cpu.stat")).exists():
        return int(re.findall(r"usage_usec (\d+)", stat.read_text())[0]) / 1e6
    groups = [line.split(":") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    path = next(path for _, names, path in groups if "cpuacct" in names.split(","))
    return int(Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").read_text()) / 1e9


def measure(one: Contestant, seconds: int) -> float:
    """Requests per CPU second."""
    headers = [f"Authorization: {KEY['Authorization']}", f"Cookie: {COOKIE}"]
    before = cpu_seconds(one.container)
    words = [part for line in headers for part in ("-H", line)]
    argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", *words, one.url]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    used = cpu_seconds(one.container) - before
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    assert "Non-2xx" not in said, said
    return int(found[1]) / used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--tag", default="0.1.0")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="animatediff-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run(folder, options.tag, options.rounds, options.seconds)


def run(folder: Path, tag: str, rounds: int, seconds: int) -> None:
    prefix = f"animatediff-bench-{os.getpid()}"
    made = [f"{prefix}-{name}" for name in ("backend", *PEERS)]
    setup = Setup(folder / "ours", {}, gateway_plan(tls={"mode": "none"}), tag)
    setup.folder.mkdir()
    try:
        text = FRAME.format(log="access_log off;", inside=BACKEND)
        backend = start(made[0], tag, folder / "backend.conf", text)
        contestants = {}
        for name, (log, more) in PEERS.items():
            text = FRAME.format(log=log, inside=BARE.format(backend=backend, more=more))
            address = start(f"{prefix}-{name}", tag, folder / f"{name}.conf", text)
            contestants[name] = Contestant(f"{prefix}-{name}", f"http://{address}:8080/x")
        setup.start_gateway()
        peers = [{"name": name, "ip": backend, "port": 9000, "weight": 1} for name in NODES]
        state = {"epoch": "1", "version": 1, "pools": {"api": peers, "webui": peers}}
        answer = setup.state(state)
        assert answer.status_code == 200, answer.text
        ours = address_of(setup.container)
        contestants |= {
            name: Contestant(setup.container, f"http://{ours}:8080{path}")
            for name, path in (("api", "/api/v1/jobs/0190"), ("page", "/webui/page"))
        }
        wait_for("gateway", lambda: setup.status("/readyz") == 200, setup.logs)
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(1, rounds + 1):
            # Whoever comes last in one round comes first in the next.
            for name in sorted(contestants, reverse=bool(number % 2)):
                rates[name].append(measure(contestants[name], seconds))
            print(f"round {number} of {rounds}: " + ", ".join(f"{name} {all_[-1]:.0f}" for name, all_ in rates.items()))
    finally:
        docker("rm", "--force", setup.container, *made)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print(f"\n{'requests per CPU second':<26}{'':>8}" + "".join(f"  {'of ' + name:>9}" for name in PEERS))
    for name, rate in middle.items():
        print(f"{name:<26}{rate:8.0f}" + "".join(f"  {rate / middle[peer]:9.2f}" for peer in PEERS))


if __name__ == "__main__":
    main()
