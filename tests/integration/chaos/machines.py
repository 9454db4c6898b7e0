"""Network namespaces with an address each, their firewalls and their clocks. Needs root on the engine's machine."""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generator import processes

Rule = tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """A queue host, or one GPU with its webui and its agent. `pid` lives in its network namespace for ever."""

    name: str
    address: str
    pid: int
    clock: Path

    def block(self, rules: Sequence[Rule]) -> None:
        self._iptables("-I", rules)

    def unblock(self, rules: Sequence[Rule]) -> None:
        self._iptables("-D", rules)

    def _iptables(self, action: str, rules: Sequence[Rule]) -> None:
        for chain, *words in rules:
            command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "iptables", "-w", action, chain, *words]
            processes.run([*command, "-j", "DROP"], timeout=20)

    def set_clock(self, seconds: int) -> None:
        set_clock(self.clock, seconds)


def set_clock(file: Path, seconds: int) -> None:
    """In place: the containers have this very file mapped."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8) as page:
        page[:8] = struct.pack("q", seconds)


def new_clock(file: Path) -> None:
    file.write_bytes(struct.pack("q", 0))
    file.chmod(0o644)


def everything() -> list[Rule]:
    """A pulled cable; the machine's own loopback stays."""
    return [("INPUT", "!", "-i", "lo"), ("OUTPUT", "!", "-o", "lo")]


def incoming() -> list[Rule]:
    return [("INPUT", "!", "-i", "lo")]


def outgoing() -> list[Rule]:
    return [("OUTPUT", "!", "-o", "lo")]


def between(addresses: Sequence[str]) -> list[Rule]:
    return [rule for address in addresses for rule in (("INPUT", "-s", address), ("OUTPUT", "-d", address))]


def own_port(port: int) -> list[Rule]:
    """Loopback only: the agent and its webui do not hear each other."""
    return [("INPUT", "-i", "lo", "-p", "tcp", end, str(port)) for end in ("--dport", "--sport")]


def processes_under(pid: int) -> Iterator[tuple[int, str]]:
    """Descendants of a container's first process with their command lines."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        try:
            yield child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        yield from processes_under(child)


def send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
