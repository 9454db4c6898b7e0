"""The rendered Redis and Sentinel configurations in the real image: who may enter, and who is master after a fault."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from generator.certificates import make_authority, make_server
from generator.plan import plan
from generator.planned import Plan
from generator.redis_access import access_files
from generator.render import render_host
from generator.secrets import redis_names
from generator.sources import read_sources
from tests.unit.generator.clusters import cluster, one_host

SUBNET = "10.213.77"
ADDRESSES = {f"gpu-0{n}": f"{SUBNET}.{10 + n}" for n in (1, 2, 3)}
PASSWORDS = {"appliance": "secret-of-appliance", "replica": "secret-of-replica", "sentinel": "secret-of-sentinel"}
SMALL = {"maxmemory_mib": 64}

pytestmark = pytest.mark.docker


def single() -> Plan:
    return plan(one_host(queue=SMALL))


def replicated(**queue: Any) -> Plan:
    """Three hosts with a Redis and a Sentinel each; gpu-01 starts as master."""
    roles = ["gateway", "control", "queue", "worker"]
    hosts = {name: {"address": address, "roles": roles, "cpu_workers": 1} for name, address in ADDRESSES.items()}
    return plan(cluster(hosts=hosts, images={"webui": "cpu"}, queue={**SMALL, **queue}))


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=False)


def must(*arguments: str) -> str:
    result = docker(*arguments)
    assert result.returncode == 0, f"docker {' '.join(arguments)}: {result.stderr}"
    return result.stdout.strip()


def wait_for(what: str, ready: Callable[[], bool], hint: Callable[[], str], seconds: float = 20) -> float:
    """Seconds until `ready()`; on the deadline an error that shows what `hint()` says."""
    begin = time.monotonic()
    while not ready():
        if time.monotonic() - begin > seconds:
            pytest.fail(f"{what}: not within {seconds} s\n{hint()}")
        time.sleep(0.1)
    return time.monotonic() - begin


@dataclass
class Machines:
    """Containers of one test: for every host a network of its own, shared by its Redis and its Sentinel."""

    tag: str
    folder: Path
    prefix: str = field(default_factory=lambda: f"animatediff-test-redis-{uuid.uuid4().hex[:6]}")
    started: list[str] = field(default_factory=list)
    authority: tuple[bytes, bytes] = field(default_factory=make_authority)

    @property
    def image(self) -> str:
        return f"animatediff-ha/redis:{self.tag}"

    def write(self, the_plan: Plan) -> None:
        """Every host's rendered configuration and secrets."""
        for host in the_plan.hosts:
            assert host.queue
            files = render_host(the_plan.cluster, host, read_sources())
            contents = {name: data for name, data in files.items() if name.startswith("config/redis/")}
            access = access_files(**PASSWORDS, replicated=host.queue.sentinels)
            contents |= {f"secrets/{name}": text.encode() for name, text in access.items()}
            contents["secrets/redis_password"] = PASSWORDS["appliance"].encode()
            if host.queue.tls:
                key, chain = make_server(*self.authority, redis_names(the_plan)[host.name])
                contents |= {"secrets/redis.key": key, "secrets/redis.crt": chain}
                contents["secrets/ca.crt"] = self.authority[1]
            for name, content in contents.items():
                path = self.folder / host.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def add_host(self, host: str, address: str) -> None:
        """The host itself: it keeps the address while its Redis is dead."""
        at = ["--network", self.prefix, "--ip", address]
        self._run(f"{self.prefix}-{host}", *at, "--entrypoint", "sleep", self.image, "infinity")

    def start(self, mode: str, host: str) -> str:
        name = f"{self.prefix}-{host}-{mode}"
        self._run(
            name, "--network", f"container:{self.prefix}-{host}", "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:mode=1777",
            "-v", f"{self.folder / host / 'config/redis'}:/etc/appliance-redis:ro",
            "-v", f"{self.folder / host / 'secrets'}:/run/secrets:ro", self.image, mode,
        )  # fmt: skip
        return name

    def _run(self, name: str, *words: str) -> None:
        self.started.append(name)
        must("run", "-d", "--init", "--name", name, *words)

    def remove(self) -> None:
        docker("rm", "-f", "-v", *self.started)
        docker("network", "rm", self.prefix)

    def cli(self, name: str, *command: str, user: str | None = "appliance") -> str:
        """One redis-cli command in the container; `port 26379` for sentinels. Errors come back as text."""
        port = "26379" if name.endswith("-sentinel") else "6379"
        login = ["-e", f"REDISCLI_AUTH={PASSWORDS[user]}"] if user else []
        as_user = ["--user", user] if user else []
        tls = ["--tls", "--cacert", "/run/secrets/ca.crt"] if "-gpu-" in name else []
        result = docker("exec", *login, name, "redis-cli", *tls, "-p", port, *as_user, "--no-auth-warning", *command)
        return (result.stdout + result.stderr).strip()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{docker('logs', '--tail', '15', name).stdout}" for name in self.started)

    def wait_healthy(self, name: str, mode: str) -> None:
        def healthy() -> bool:
            return docker("exec", name, "redis-healthcheck", mode).returncode == 0

        wait_for(f"{name} healthy", healthy, self.logs)


@pytest.fixture
def machines(images: str, tmp_path: Path) -> Iterator[Machines]:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)  # the containers read the files as uid 10001
    made = Machines(images, tmp_path / "hosts")
    with ExitStack() as stack:
        stack.callback(made.remove)
        must("network", "create", "--subnet", f"{SUBNET}.0/24", made.prefix)
        yield made


@pytest.fixture
def demo(machines: Machines) -> str:
    """The Redis of a cluster of one host."""
    machines.write(single())
    machines.add_host("demo", f"{SUBNET}.10")
    redis = machines.start("server", "demo")
    machines.wait_healthy(redis, "server")
    return redis


def test_a_single_redis_answers_only_with_the_password(machines: Machines, demo: str) -> None:
    assert "NOAUTH" in machines.cli(demo, "ping", user=None)
    assert machines.cli(demo, "set", "{q}:a", "1") == "OK"
    assert machines.cli(demo, "wait", "0", "100") == "0"
    assert "run_id" in machines.cli(demo, "info", "server")
    for refused in (("set", "other", "1"), ("flushall",), ("config", "get", "masterauth"),
                    ("replicaof", "1.2.3.4", "1"), ("keys", "*"), ("shutdown",)):  # fmt: skip
        assert "NOPERM" in machines.cli(demo, *refused), refused


def test_data_survive_a_kill(machines: Machines, demo: str) -> None:
    machines.cli(demo, "set", "{q}:a", "kept")
    # What a script writes goes into the file as a transaction.
    script = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('SET', KEYS[2], ARGV[1])"
    assert machines.cli(demo, "eval", script, "2", "{q}:b", "{q}:c", "kept") == "OK"
    time.sleep(1.2)  # everysec
    must("kill", demo)
    must("start", demo)
    machines.wait_healthy(demo, "server")
    assert [machines.cli(demo, "get", f"{{q}}:{name}") for name in "abc"] == ["kept"] * 3


def test_a_configuration_lost_in_a_crash_of_the_host_is_made_again(machines: Machines, demo: str) -> None:
    """A file system may keep the name of a file and lose its content: Redis would start empty and without users."""
    assert machines.cli(demo, "set", "{q}:a", "kept") == "OK"
    must("stop", "-t", "5", demo)
    must("run", "--rm", "--volumes-from", demo, "--entrypoint", "bash", machines.image, "-c", ": > /data/redis.conf")
    must("start", demo)
    machines.wait_healthy(demo, "server")
    assert "NOAUTH" in machines.cli(demo, "ping", user=None)
    assert machines.cli(demo, "get", "{q}:a") == "kept"


def master_of(machines: Machines, sentinel: str) -> str:
    return machines.cli(sentinel, "sentinel", "get-master-addr-by-name", "queue").split("\n")[0]


def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(machines: Machines) -> None:
    machines.write(replicated())
    redises = {}
    for host, address in ADDRESSES.items():
        machines.add_host(host, address)
        redises[address] = machines.start("server", host)
    first, second, _ = redises
    # The Sentinels come when both replicas are there: they ask for them every 10 s only.
    wait_for("replicas", lambda: "connected_slaves:2" in machines.cli(redises[first], "info"), machines.logs)
    sentinels = {address: machines.start("sentinel", host) for host, address in ADDRESSES.items()}
    watcher = sentinels[second]
    wait_for("quorum", lambda: "OK 3 usable" in machines.cli(watcher, "sentinel", "ckquorum", "queue"), machines.logs)
    wait_for("known", lambda: machines.cli(watcher, "sentinel", "replicas", "queue").count(":6379") >= 2, machines.logs)
    assert "NOAUTH" in machines.cli(watcher, "ping", user=None)
    assert "NOPERM" in machines.cli(watcher, "sentinel", "failover", "queue")
    assert machines.cli(redises[first], "set", "{q}:a", "1") == "OK"
    identity = docker("exec", watcher, "grep", "^sentinel myid", "/data/sentinel.conf").stdout

    must("kill", redises[first])
    seconds = wait_for("failover", lambda: master_of(machines, watcher) not in ("", first), machines.logs)
    print(f"\nfailover seen after {seconds:.1f} s")
    new = master_of(machines, watcher)
    wait_for("writes", lambda: machines.cli(redises[new], "set", "{q}:b", "2") == "OK", machines.logs)

    must("start", redises[first])
    machines.wait_healthy(redises[first], "server")
    # At once, by the entrypoint: a Sentinel alone would need seconds, in which the old master takes writes.
    assert machines.cli(redises[first], "role").split("\n")[0] == "slave"
    wait_for("resync", lambda: machines.cli(redises[first], "get", "{q}:b") == "2", machines.logs)

    must("restart", "-t", "5", watcher)
    machines.wait_healthy(watcher, "sentinel")
    assert docker("exec", watcher, "grep", "^sentinel myid", "/data/sentinel.conf").stdout == identity != ""
    assert master_of(machines, watcher) == new


def test_a_changed_configuration_keeps_role_and_identity(machines: Machines) -> None:
    """As after an upgrade: a new rendering arrives while another host than the rendered one is master."""
    machines.write(replicated())
    machines.add_host("gpu-01", ADDRESSES["gpu-01"])
    redis = machines.start("server", "gpu-01")
    sentinel = machines.start("sentinel", "gpu-01")
    machines.wait_healthy(redis, "server")
    machines.wait_healthy(sentinel, "sentinel")
    identity = docker("exec", sentinel, "grep", "^sentinel myid", "/data/sentinel.conf").stdout
    promoted = f"{SUBNET}.50"
    for name, edit in {
        redis: f"echo replicaof {promoted} 6379 >> /data/redis.conf",
        sentinel: f"sed -i 's/^sentinel monitor queue [^ ]*/sentinel monitor queue {promoted}/' /data/sentinel.conf",
    }.items():
        must("stop", "-t", "5", name)
        volume = ["--volumes-from", name, "--entrypoint", "bash"]
        must("run", "--rm", *volume, machines.image, "-c", edit)
    machines.write(replicated(maxmemory_mib=65, sentinel_quorum=3))
    must("start", redis, sentinel)
    machines.wait_healthy(redis, "server")
    machines.wait_healthy(sentinel, "sentinel")
    assert machines.cli(redis, "role").split("\n")[:2] == ["slave", promoted]
    assert docker("exec", sentinel, "grep", "^sentinel myid", "/data/sentinel.conf").stdout == identity != ""
    assert master_of(machines, sentinel) == promoted
    assert "quorum\n3" in machines.cli(sentinel, "sentinel", "master", "queue")
    assert "maxmemory:68157440" in machines.cli(redis, "info", "memory")
