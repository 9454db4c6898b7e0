"""Three hosts on one machine: a network namespace and a Docker daemon each, joined by a bridge in its own one.

A stand-in for NVIDIA's container hook lies in the daemons' PATH, so that a rendered GPU reservation runs unchanged.
What it stands in for is the driver; that a container gets the one GPU it reserved is still Docker's doing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from generator.docker import Engine

PREFIX = "adha"
BRIDGE_NAMESPACE = f"{PREFIX}-net"
CLIENT = f"{PREFIX}-client"
START_SECONDS = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class HostMachine:
    name: str
    address: str
    engine: Engine

    @property
    def namespace(self) -> str:
        return f"{PREFIX}-{self.name}"

    def cut(self) -> None:
        """Pull the cable."""
        ip("netns", "exec", BRIDGE_NAMESPACE, "ip", "link", "set", f"v-{self.name}", "down")

    def plug(self) -> None:
        ip("netns", "exec", BRIDGE_NAMESPACE, "ip", "link", "set", f"v-{self.name}", "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def from_outside(work: Callable[[], T]) -> T:
    """Run `work` in a thread that lives in the client's namespace: its sockets reach the hosts as a client's would."""

    def there() -> T:
        with Path(f"/run/netns/{CLIENT}").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return work()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(there).result()


@contextmanager
def machines(
    addresses: dict[str, str], folder: Path, images: list[str], source: Engine
) -> Iterator[dict[str, HostMachine]]:
    """Hosts by name, each with the `images` loaded from `source`; everything is removed at the end."""
    with ExitStack() as stack:
        stack.enter_context(_network(addresses))
        hook = folder / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\nexit 0\n")
        hook.chmod(0o755)
        archive = folder / "images.tar"
        source.save(images, archive)
        hosts = {
            name: stack.enter_context(
                _daemon(HostMachine(name, address, _engine(folder / name)), folder / name, hook.parent)
            )
            for name, address in addresses.items()
        }
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: host.engine.load(archive), hosts.values()))
        archive.unlink()
        yield hosts


@contextmanager
def ssh_server(host: HostMachine, folder: Path, sshd: str) -> Iterator[str]:
    """A real sshd on the host for one throw-away key; yields the command that reaches it from the client."""
    folder.mkdir()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    settings = {
        "Port": "22",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub",
        "PidFile": folder / "pid",
        "PermitRootLogin": "prohibit-password",
        "StrictModes": "no",
        "UsePAM": "no",
        # All hosts of this test share one file system, so each one's own engine has to be named.
        "SetEnv": f"DOCKER_HOST={host.engine.host}",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    # Nor is the machine's own systemd the host's: `up` would have it start this test's containers at every boot.
    alone = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'test ! -d /run/systemd || mount -t tmpfs tmpfs /run/systemd; exec "$@"',
        "sh",
    ]
    command = ["nsenter", f"--net=/run/netns/{host.namespace}", *alone, sshd, "-D", "-e", "-f", str(folder / "config")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for_words(server, folder / "log", "Server listening")
        options = ["BatchMode=yes", "ConnectTimeout=5", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
        yield " ".join(["ssh", *(f"-o {option}" for option in options), f"-i {folder}/user_key"])
    finally:
        server.terminate()
        server.wait(10)


def _wait_for_words(server: subprocess.Popen[bytes], log: Path, words: str) -> None:
    end = time.monotonic() + START_SECONDS
    while words not in (said := log.read_text()):
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{log}: no {words!r}:\n{said}")
        time.sleep(0.05)


def _engine(folder: Path) -> Engine:
    return Engine(f"unix://{folder}/docker.sock")


@contextmanager
def _network(addresses: dict[str, str]) -> Iterator[None]:
    everyone = {**addresses, "client": "192.168.1.200"}
    _remove_network(everyone)
    try:
        ip("netns", "add", BRIDGE_NAMESPACE)
        ip("netns", "exec", BRIDGE_NAMESPACE, "ip", "link", "add", "br0", "type", "bridge")
        ip("netns", "exec", BRIDGE_NAMESPACE, "ip", "link", "set", "br0", "up")
        for name, address in everyone.items():
            namespace = f"{PREFIX}-{name}"
            ip("netns", "add", namespace)
            ip(
                "link",
                "add",
                f"v-{name}",
                "netns",
                BRIDGE_NAMESPACE,
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                namespace,
            )
            ip("netns", "exec", BRIDGE_NAMESPACE, "ip", "link", "set", f"v-{name}", "master", "br0", "up")
            ip("netns", "exec", namespace, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            ip("netns", "exec", namespace, "ip", "link", "set", "eth0", "up")
            ip("netns", "exec", namespace, "ip", "link", "set", "lo", "up")
            ip("netns", "exec", namespace, "ip", "route", "add", "default", "dev", "eth0")
        yield
    finally:
        _remove_network(everyone)


def _remove_network(names: dict[str, str]) -> None:
    for name in [f"{PREFIX}-{name}" for name in names] + [BRIDGE_NAMESPACE]:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def _daemon(host: HostMachine, folder: Path, extra_path: Path) -> Iterator[HostMachine]:
    folder.mkdir()
    # Not `ip netns exec`: it mounts a new /sys, without the control groups.
    command = ["nsenter", f"--net=/run/netns/{host.namespace}"]
    # Shared mounts, as systemd makes them on a real host: the node-exporter follows what is mounted there.
    command += ["unshare", "--mount", "--propagation", "shared"]
    command += ["dockerd", "--host", f"unix://{folder}/docker.sock"]
    command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    command += ["--cgroup-parent", f"/{host.namespace}", "--containerd-namespace", host.namespace]
    command += ["--containerd-plugins-namespace", f"{host.namespace}-plugins"]
    environment = {**os.environ, "PATH": f"{extra_path}:{os.environ['PATH']}"}
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_for(daemon, host.engine, folder / "log")
        yield host
    finally:
        _stop(daemon, host.engine, folder)


def _wait_for(daemon: subprocess.Popen[bytes], engine: Engine, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while engine.why_not(timeout=5.0) is not None:
        if daemon.poll() is not None or time.monotonic() > end:
            raise RuntimeError("dockerd did not start:\n" + "\n".join(log.read_text().splitlines()[-20:]))
        time.sleep(0.2)


def _stop(daemon: subprocess.Popen[bytes], engine: Engine, folder: Path) -> None:
    if daemon.poll() is None:
        ids = engine.run("ps", "--all", "--quiet").split()
        if ids:
            engine.run("rm", "--force", "--volumes", *ids, timeout=120)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    # Containers on the host's own network leave it mounted here.
    for mount in (folder / "exec/netns").glob("*"):
        subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
