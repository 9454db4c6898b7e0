"""The Redis and Sentinels of several hosts, as they are rendered, on one engine: each pair has an address of its own,
which a container that only sleeps holds for both."""

from __future__ import annotations

import ipaddress
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from generator import processes, tree
from generator.docker import Engine
from generator.errors import ToolError
from generator.model import Cluster, Role
from generator.ops.cluster import Place, places
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, lay_out, redis_names
from generator.sources import read_sources

SERVICES = ("redis", "sentinel")


class QueueHosts:
    """`cluster`'s hosts get the addresses of a network of this stage."""

    def __init__(self, engine: Engine, cluster: Cluster, folder: Path, tag: str) -> None:
        self.engine, self.folder = engine, folder
        self.store = Store(folder / "store")
        self.name = f"adha-queue-{uuid.uuid4().hex[:6]}"
        net = f"10.213.{uuid.uuid4().int % 250}"
        engine.run("network", "create", "--subnet", f"{net}.0/24", self.name)
        addresses = {name: f"{net}.{11 + index}" for index, name in enumerate(cluster.hosts)}
        for name, address in addresses.items():
            holder = ("--name", self._holder(name), "--network", self.name, "--ip", address, "--entrypoint", "sleep")
            engine.run("run", "--detach", *holder, f"animatediff-ha/redis:{tag}", "infinity")
        hosts = {
            name: host.model_copy(update={"address": ipaddress.IPv4Address(addresses[name])})
            for name, host in cluster.hosts.items()
        }
        images = cluster.images.model_copy(update={"tag": tag})
        self.cluster = cluster.model_copy(update={"hosts": hosts, "images": images})

    def _holder(self, host: str) -> str:
        return f"{self.name}-{host}"

    def render(self, queues: Sequence[str]) -> Plan:
        """With the role `queue` on these hosts; their order is the file's."""
        hosts = {
            name: host.model_copy(
                update={
                    "roles": (
                        *(r for r in host.roles if r is not Role.QUEUE),
                        *((Role.QUEUE,) if name in queues else ()),
                    )
                }
            )
            for name, host in self.cluster.hosts.items()
        }
        self.plan = plan(self.cluster.model_copy(update={"hosts": hosts}))
        tree.write(self.folder, render(self.plan, read_sources()))
        for name in self.plan.by_name:
            place = (
                f"    networks: !reset null\n    ports: !reset []\n    network_mode: container:{self._holder(name)}\n"
            )
            text = f"name: {self._holder(name)}\nservices:\n" + "".join(f"  {one}:\n{place}" for one in SERVICES)
            if not self.plan.by_name[name].queue:
                text = f"name: {self._holder(name)}\n"
            elif not self._is_replicated(name):
                text = text.partition("  sentinel:")[0]
            (self.folder / name / "compose.override.yaml").write_text(text)
        self.lay_out()
        return self.plan

    def _is_replicated(self, host: str) -> bool:
        queue = self.plan.by_name[host].queue
        return bool(queue and queue.sentinels)

    def lay_out(self) -> None:
        self.store.create_missing(("localhost",), tls=True, redis=redis_names(self.plan))
        lay_out(self.plan, self.folder, self.store.read())

    @property
    def places(self) -> list[Place]:
        """Of the hosts with a queue, as if all were this machine."""
        found = [place for place in places(self.plan, self.folder) if place.host.queue]
        return [replace(place, ssh=()) for place in found]

    def place(self, host: str) -> Place:
        return next(place for place in self.places if place.host.name == host)

    def up(self, host: str, *, anew: bool = False) -> None:
        """Both services, whether they are healthy or not; made anew as `up --recreate` does."""
        services = SERVICES if self._is_replicated(host) else SERVICES[:1]
        options = ["--force-recreate"] if anew else []
        processes.run(self.place(host).compose("up", "--detach", "--no-deps", *options, *services), timeout=60)

    def kill(self, host: str) -> None:
        processes.run(self.place(host).compose("kill", *SERVICES), timeout=60)

    def down(self, host: str) -> None:
        """Stopped and removed; what they have saved stays."""
        processes.run(self.place(host).compose("rm", "--stop", "--force", *SERVICES), timeout=60)

    def ask(self, host: str, *command: str, port: int = 6379) -> Any:
        planned = self.plan.by_name[host]
        password = (self.folder / host / "secrets/redis_password").read_text()
        tls = {"ssl": True, "ssl_ca_certs": str(self.folder / host / "secrets/ca.crt")}
        use = tls if planned.queue and planned.queue.tls else {}
        about: dict[str, Any] = {"socket_timeout": 1, "socket_connect_timeout": 1, "decode_responses": True, **use}
        with Redis(planned.address, port, username="appliance", password=password, retry=None, **about) as client:
            return client.execute_command(*command)

    def info(self, host: str) -> dict[str, Any]:
        found = self.ask(host, "INFO", "replication")
        assert isinstance(found, dict)
        return found

    def master_seen_from(self, host: str) -> str:
        """The name of the host that its Sentinel calls the master."""
        address, _ = self.ask(host, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "queue", port=26379)
        return next(name for name, planned in self.plan.by_name.items() if planned.address == address)

    def logs(self, host: str, service: str = "redis") -> str:
        return processes.run(self.place(host).compose("logs", "--no-log-prefix", service), timeout=30)

    @contextmanager
    def written(self) -> Iterator[list[str]]:
        """Keys that were acknowledged meanwhile, as the api acknowledges jobs: by the master and a replica."""
        acknowledged: list[str] = []
        ended = Event()

        def write() -> None:
            number = 0
            while not ended.wait(0.05):
                number += 1
                for host in self.plan.by_name:
                    try:
                        master = self.master_seen_from(host)
                        if self._write(master, f"{{q}}:k{number}"):
                            acknowledged.append(f"{{q}}:k{number}")
                            break
                    except (RedisError, OSError, StopIteration):
                        continue

        writer = Thread(target=write, daemon=True)
        writer.start()
        try:
            yield acknowledged
        finally:
            ended.set()
            writer.join()

    def _write(self, host: str, key: str) -> bool:
        planned = self.plan.by_name[host]
        password = (self.folder / host / "secrets/redis_password").read_text()
        tls = {"ssl": True, "ssl_ca_certs": str(self.folder / host / "secrets/ca.crt")}
        about: dict[str, Any] = {"socket_timeout": 1, "socket_connect_timeout": 1, **tls}
        with Redis(planned.address, 6379, username="appliance", password=password, retry=None, **about) as client:
            client.set(key, host)
            return int(client.execute_command("WAIT", 1, 500)) >= 1

    def lost(self, keys: Sequence[str]) -> list[str]:
        master = next(name for name in self.plan.by_name if self._is_master(name))
        return [key for key in keys if self.ask(master, "GET", key) is None]

    def _is_master(self, host: str) -> bool:
        try:
            return bool(self.info(host)["role"] == "master" and int(self.info(host)["connected_slaves"]) > 0)
        except (RedisError, OSError):
            return False

    def close(self) -> None:
        """Also of hosts that have no queue any more."""
        for name in self.cluster.hosts:
            ours = ("--filter", f"label=com.docker.compose.project={self._holder(name)}")
            for container in self.engine.run("ps", "--all", "--quiet", *ours).split():
                self.engine.run("rm", "--force", container)
            for volume in self.engine.run("volume", "ls", "--quiet", *ours).split():
                self.engine.run("volume", "rm", "--force", volume)
            for network in self.engine.run("network", "ls", "--quiet", *ours).split():
                self.engine.run("network", "rm", network)
            self.engine.run("rm", "--force", "--volumes", self._holder(name))
        self.engine.run("network", "rm", self.name)


def eventually(check: Callable[[], object], seconds: float, said: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except (RedisError, OSError, ToolError, StopIteration, KeyError):
            pass
        assert time.monotonic() < end, json.dumps(said(), default=str)
        time.sleep(0.2)
