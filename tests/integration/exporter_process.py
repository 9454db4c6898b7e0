"""The exporter as the process that a container runs, on a loopback port; and a gateway's door for it to ask at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.redis_server import PASSWORD, SERVICES, free_ports

TOKEN = "cluster-token-of-the-tests"
NODE = "gpu-01"
READY_SECONDS = 15.0
Labels = frozenset[tuple[str, str]]


@dataclass
class Scrape:
    text: str
    seconds: float
    values: dict[str, dict[Labels, float]] = field(default_factory=dict)
    node: str = NODE

    def __post_init__(self) -> None:
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                labels = dict(sample.labels)
                assert labels.pop("node_name") == self.node, sample
                known = self.values.setdefault(sample.name, {})
                assert frozenset(labels.items()) not in known, f"twice: {sample}"
                known[frozenset(labels.items())] = sample.value

    def of(self, metric: str, /, **labels: str) -> float | None:
        """The value of the one series with these labels among others."""
        found = [value for known, value in self.values.get(metric, {}).items() if labels.items() <= dict(known).items()]
        assert len(found) < 2, f"{metric} {labels}: {found}"
        return found[0] if found else None


@dataclass
class Running:
    url: str
    pid: int
    log: Path

    async def scrape(self) -> Scrape:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            begin = time.perf_counter()
            answer = await client.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            seconds = time.perf_counter() - begin
        assert answer.status_code == 200, answer.text
        return Scrape(answer.text, seconds)

    def cpu_seconds(self) -> float:
        parts = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def running_exporter(folder: Path, redis_port: int, more: Mapping[str, str]) -> AsyncIterator[Running]:
    """Asked to end at the end, it has to exit 0 within its time."""
    (folder / "redis_password").write_text(PASSWORD)
    (folder / "cluster_token").write_text(TOKEN)
    (port,) = free_ports(1)
    environment = {
        "PYTHONPATH": SERVICES,
        "PATH": os.environ["PATH"],
        "APPLIANCE_SECRETS_DIR": str(folder),
        "APPLIANCE_NODE_NAME": NODE,
        "APPLIANCE_REDIS_USERNAME": "default",
        "APPLIANCE_REDIS_ADDRESS": f"127.0.0.1:{redis_port}",
        "APPLIANCE_LISTEN": f"127.0.0.1:{port}",
        **more,
    }
    log_path = folder / "exporter.log"
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "appliance", "exporter", env=environment, stdout=log, stderr=log
        )
        running = Running(f"http://127.0.0.1:{port}", process.pid, log_path)
        try:
            await _wait_until_alive(running)
            yield running
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 10) == 0, log_path.read_text()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _wait_until_alive(running: Running) -> None:
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"{running.url}/healthz")).status_code == 200:
                    return
            assert time.monotonic() < deadline, running.log.read_text()
            await asyncio.sleep(0.05)


@dataclass
class Door:
    """A gateway's unix socket, as nginx serves it: answers GET /counts, with what the test has put into `answer`."""

    socket: Path
    counts: dict[str, object] = field(default_factory=dict)
    raw: bytes | None = None
    status: int = 200
    silent: bool = False

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Door]:
        server = await asyncio.start_unix_server(self._answer, self.socket)
        try:
            yield self
        finally:
            server.close()
            self.socket.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if self.silent:
                await reader.read()
            assert head.startswith(b"GET /counts "), head
            body = json.dumps(self.counts).encode() if self.raw is None else self.raw
            writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" % self.status)
            writer.write(body)
            await writer.drain()
        writer.close()
