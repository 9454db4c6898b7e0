"""The nodes' containers on a network of their own, and what can be done to them from outside."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.acme_stage import must
from tests.integration.gateway_stage import wait_for

PORT = 7860
SCRIPT = Path(__file__).with_name("node.py")


@dataclass
class Node:
    """One node's container; `name` is the worker's."""

    name: str
    container: str
    ip: str
    _pid: int = 0

    @property
    def pid(self) -> int:
        """Of its process on this machine."""
        return self._pid or self.look()

    def look(self) -> int:
        """Asks for the process beforehand: a fault begins when it is told to, not when Docker has answered."""
        self._pid = int(must("inspect", "--format", "{{.State.Pid}}", self.container))
        assert self._pid, f"{self.name} does not run"  # 0 would be our own group
        return self._pid

    def listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex((self.ip, PORT)) == 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._pid = 0

    def start(self) -> None:
        must("start", self.container)
        wait_for(self.name, self.listens, self.said)
        self.look()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def set_mode(self, **mode: str) -> None:
        """Of node.py; nothing: well again."""
        query = "&".join(f"{name}={value}" for name, value in mode.items())
        with urllib.request.urlopen(f"http://{self.ip}:{PORT}/mode?{query}", timeout=5) as answer:
            assert answer.status == 200

    def drop(self, chain: str) -> None:
        """Nothing comes in (INPUT) or goes out (OUTPUT) any more."""
        self._filter("-A", chain)

    def pass_again(self) -> None:
        for chain in ("INPUT", "OUTPUT"):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._filter("-D", chain)

    def _filter(self, what: str, chain: str) -> None:
        words = ["nsenter", "--target", str(self.pid), "--net", "iptables", "-w", what, chain, "-j", "DROP"]
        subprocess.run(words, check=True, capture_output=True, timeout=10)

    def said(self) -> str:
        return must("logs", self.container)

    def posts(self) -> list[str]:
        """The ids of all posts that it has ever taken."""
        return [line.split()[1] for line in self.said().splitlines() if line.startswith("post ")]


@dataclass
class Stage:
    nodes: list[Node]
    network: str
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}


@contextlib.contextmanager
def three_nodes(tag: str) -> Iterator[Stage]:
    """On a network with fixed addresses: a node that was killed comes back where it was."""
    mark = uuid.uuid4().hex[:6]
    network, prefix = f"adha-faults-{mark}", f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
    with contextlib.ExitStack() as closing:
        must("network", "create", "--subnet", f"{prefix}.0/24", network)
        closing.callback(must, "network", "rm", network)
        nodes = []
        for number in (1, 2, 3):
            node = Node(f"gpu-0{number}/0", f"{network}-node-{number}", f"{prefix}.{10 + number}")
            closing.callback(must, "rm", "--force", node.container)
            must(
                "run", "-d", "--name", node.container, "--network", network, "--ip", node.ip,
                "--volume", f"{SCRIPT}:/node.py:ro", "--entrypoint", "/opt/venv/bin/python",
                f"animatediff-ha/services:{tag}", "/node.py", node.name,
            )  # fmt: skip
            wait_for(node.name, node.listens, node.said)
            node.look()
            nodes.append(node)
        yield Stage(nodes, network, closing)
