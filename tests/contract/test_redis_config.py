"""The rendered Redis and Sentinel configurations in the real image: who may enter, and who is master after a fault."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "config" / "redis"
IMAGE = "animatediff-ha/redis:dev"
SUBNET = "10.213.77"
PASSWORDS = {"appliance": "secret-of-appliance", "replica": "secret-of-replica", "sentinel": "secret-of-sentinel"}
HASHES = {user: hashlib.sha256(password.encode()).hexdigest() for user, password in PASSWORDS.items()}

REDIS_USERS = """\
user default reset off
user appliance on #{appliance} ~{{q}}:* &{{q}}:* +@all -@admin -@dangerous +info +role
user replica on #{replica} +psync +replconf +ping
user sentinel on #{sentinel} &* +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish +info \
+client|setname +client|kill +script|kill
""".format(**HASHES)
SENTINEL_USERS = """\
user default reset off
user appliance on #{appliance} &* +ping +info +role +subscribe +psubscribe +unsubscribe +punsubscribe +client|setname \
+client|setinfo +sentinel|master +sentinel|masters +sentinel|replicas +sentinel|slaves +sentinel|sentinels \
+sentinel|get-master-addr-by-name +sentinel|ckquorum
user sentinel on #{sentinel} &* +ping +info +role +publish +subscribe +client|setname +sentinel|is-master-down-by-addr
""".format(**HASHES)
REDIS_AUTH = "masteruser replica\nmasterauth {replica}\n".format(**PASSWORDS)
SENTINEL_AUTH = """\
sentinel auth-user queue sentinel
sentinel auth-pass queue {sentinel}
sentinel sentinel-user sentinel
sentinel sentinel-pass {sentinel}
""".format(**PASSWORDS)


@dataclass(frozen=True)
class Queue:
    port: int = 6379
    announce_address: str = ""
    master_address: str = ""
    master_port: int = 6379
    min_replicas: int = 0
    maxmemory_bytes: int = 64 << 20
    sentinel_port: int = 26379
    quorum: int = 2
    down_after_ms: int = 1000
    failover_timeout_ms: int = 6000
    sentinel_addresses: tuple[str, ...] = ()


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
class Cluster:
    """Containers of one test: a network of its own, one folder of rendered files and secrets per host."""

    folder: Path
    prefix: str = field(default_factory=lambda: f"gateway-redis-{uuid.uuid4().hex[:6]}")
    started: list[str] = field(default_factory=list)

    def start(self, mode: str, queue: Queue, address: str) -> str:
        name = f"{self.prefix}-{mode}-{address.rpartition('.')[2]}"
        configuration, secrets = self.write(queue, address)
        must(
            "run", "-d", "--name", name, "--label", "team=gateway", "--network", self.prefix, "--ip", address,
            "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--init",
            "--tmpfs", "/tmp:mode=1777", "-v", f"{configuration}:/etc/appliance-redis:ro",
            "-v", f"{secrets}:/run/secrets:ro", IMAGE, mode,
        )  # fmt: skip
        self.started.append(name)
        return name

    def write(self, queue: Queue, address: str) -> tuple[Path, Path]:
        environment = jinja2.Environment(  # noqa: S701  (no HTML)
            loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        configuration, secrets = self.folder / address / "config", self.folder / address / "secrets"
        for folder in (self.folder, configuration, secrets):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
        for source in TEMPLATES.glob("*.j2"):
            (configuration / source.stem).write_text(environment.get_template(source.name).render(queue=queue))
        for name, text in {
            "redis_users.acl": REDIS_USERS,
            "sentinel_users.acl": SENTINEL_USERS,
            "redis_auth.conf": REDIS_AUTH,
            "sentinel_auth.conf": SENTINEL_AUTH,
            "redis_password": PASSWORDS["appliance"],
        }.items():
            (secrets / name).write_text(text)
        return configuration, secrets

    def cli(self, name: str, *command: str, user: str | None = "appliance") -> str:
        """One redis-cli command in the container; `port 26379` for sentinels. Errors come back as text."""
        port = "26379" if "-sentinel-" in name else "6379"
        login = ["-e", f"REDISCLI_AUTH={PASSWORDS[user]}"] if user else []
        as_user = ["--user", user] if user else []
        result = docker("exec", *login, name, "redis-cli", "-p", port, *as_user, "--no-auth-warning", *command)
        return (result.stdout + result.stderr).strip()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{docker('logs', '--tail', '15', name).stdout}" for name in self.started)

    def wait_healthy(self, name: str, mode: str) -> None:
        def healthy() -> bool:
            return docker("exec", name, "redis-healthcheck", mode).returncode == 0

        wait_for(f"{name} healthy", healthy, self.logs)


@pytest.fixture(scope="module")
def image() -> str:
    """The redis image, built where it is absent."""
    if shutil.which("docker") is None or docker("info").returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("no Docker engine answers, and CI is set")
        pytest.skip("no Docker engine answers")
    if docker("image", "inspect", IMAGE).returncode != 0:
        base = "BASE=" + os.environ.get("ANIMATEDIFF_BASE_IMAGE", "animatediff-ha/base:trixie")
        must("buildx", "build", "--load", "--build-arg", base, "--tag", IMAGE, str(ROOT / "images" / "redis"))
    return IMAGE


@pytest.fixture
def cluster(image: str, tmp_path: Path) -> Iterator[Cluster]:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)  # the containers read the files as uid 10001
    made = Cluster(tmp_path / "hosts")
    must("network", "create", "--label", "team=gateway", "--subnet", f"{SUBNET}.0/24", made.prefix)
    try:
        yield made
    finally:
        for name in made.started:
            docker("rm", "-f", "-v", name)
        docker("network", "rm", made.prefix)


@pytest.mark.docker
def test_a_single_redis_answers_only_with_the_password(cluster: Cluster) -> None:
    redis = cluster.start("server", Queue(), f"{SUBNET}.10")
    cluster.wait_healthy(redis, "server")
    assert "NOAUTH" in cluster.cli(redis, "ping", user=None)
    assert cluster.cli(redis, "set", "{q}:a", "1") == "OK"
    assert cluster.cli(redis, "wait", "0", "100") == "0"
    assert "run_id" in cluster.cli(redis, "info", "server")
    for refused in (("set", "other", "1"), ("flushall",), ("config", "get", "masterauth"),
                    ("replicaof", "1.2.3.4", "1"), ("keys", "*"), ("shutdown",)):  # fmt: skip
        assert "NOPERM" in cluster.cli(redis, *refused), refused


@pytest.mark.docker
def test_data_survive_a_kill(cluster: Cluster) -> None:
    redis = cluster.start("server", Queue(), f"{SUBNET}.10")
    cluster.wait_healthy(redis, "server")
    cluster.cli(redis, "set", "{q}:a", "kept")
    time.sleep(1.2)  # everysec
    must("kill", redis)
    must("start", redis)
    cluster.wait_healthy(redis, "server")
    assert cluster.cli(redis, "get", "{q}:a") == "kept"


def trio() -> dict[str, Queue]:
    hosts = [f"{SUBNET}.{n}" for n in (11, 12, 13)]
    sentinels = tuple(f"{host[:-2]}{int(host[-2:]) + 10}:26379" for host in hosts)
    return {
        host: Queue(
            announce_address=host,
            master_address="" if host == hosts[0] else hosts[0],
            min_replicas=1,
            sentinel_addresses=sentinels,
        )
        for host in hosts
    }


def master_of(cluster: Cluster, sentinel: str) -> str:
    return cluster.cli(sentinel, "sentinel", "get-master-addr-by-name", "queue").split("\n")[0]


@pytest.mark.docker
def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(cluster: Cluster) -> None:
    redises, sentinels = {}, {}
    for host, queue in trio().items():
        redises[host] = cluster.start("server", queue, host)
        # The sentinels have addresses of their own here; in production a host's two ports share one address.
        address = f"{SUBNET}.{int(host[-2:]) + 10}"
        as_sentinel = Queue(
            announce_address=address, master_address=f"{SUBNET}.11", sentinel_addresses=queue.sentinel_addresses
        )
        sentinels[host] = cluster.start("sentinel", as_sentinel, address)
    first, second = list(redises)[:2]
    watcher = sentinels[second]
    wait_for("quorum", lambda: "OK 3 usable" in cluster.cli(watcher, "sentinel", "ckquorum", "queue"), cluster.logs)
    wait_for(
        "replicas", lambda: "connected_slaves:2" in cluster.cli(redises[first], "info", "replication"), cluster.logs
    )
    wait_for("known", lambda: cluster.cli(watcher, "sentinel", "replicas", "queue").count(":6379") >= 2, cluster.logs)
    assert "NOAUTH" in cluster.cli(watcher, "ping", user=None)
    assert "NOPERM" in cluster.cli(watcher, "sentinel", "failover", "queue")
    assert cluster.cli(redises[first], "set", "{q}:a", "1") == "OK"
    identity = docker("exec", watcher, "grep", "^sentinel myid", "/data/sentinel.conf").stdout

    must("kill", redises[first])
    seconds = wait_for("failover", lambda: master_of(cluster, watcher) not in ("", first), cluster.logs)
    print(f"\nfailover seen after {seconds:.1f} s")
    new = master_of(cluster, watcher)
    wait_for("writes", lambda: cluster.cli(redises[new], "set", "{q}:b", "2") == "OK", cluster.logs)

    must("start", redises[first])
    cluster.wait_healthy(redises[first], "server")
    # At once, by the entrypoint: a Sentinel alone would need seconds, in which the old master takes writes.
    assert cluster.cli(redises[first], "role").split("\n")[0] == "slave"
    wait_for("resync", lambda: cluster.cli(redises[first], "get", "{q}:b") == "2", cluster.logs)

    must("restart", "-t", "5", watcher)
    cluster.wait_healthy(watcher, "sentinel")
    assert docker("exec", watcher, "grep", "^sentinel myid", "/data/sentinel.conf").stdout == identity != ""
    assert master_of(cluster, watcher) == new


@pytest.mark.docker
def test_a_changed_configuration_keeps_role_and_identity(cluster: Cluster) -> None:
    """As after an upgrade: a new rendering arrives while another host than the rendered one is master."""
    host = f"{SUBNET}.12"
    queue = Queue(announce_address=host, sentinel_addresses=(f"{SUBNET}.99:26379",))
    redis = cluster.start("server", queue, host)
    sentinel = cluster.start("sentinel", queue, f"{SUBNET}.22")
    cluster.wait_healthy(redis, "server")
    cluster.wait_healthy(sentinel, "sentinel")
    identity = docker("exec", sentinel, "grep", "^sentinel myid", "/data/sentinel.conf").stdout
    promoted = f"{SUBNET}.50"
    for name, edit in {
        redis: f"echo replicaof {promoted} 6379 >> /data/redis.conf",
        sentinel: f"sed -i 's/^sentinel monitor queue [^ ]*/sentinel monitor queue {promoted}/' /data/sentinel.conf",
    }.items():
        must("stop", "-t", "5", name)
        volume = ["--volumes-from", name, "--entrypoint", "bash"]
        must("run", "--rm", "--label", "team=gateway", *volume, IMAGE, "-c", edit)
    changed = Queue(announce_address=host, sentinel_addresses=queue.sentinel_addresses, maxmemory_bytes=65 << 20,
                    down_after_ms=1500)  # fmt: skip
    for name, address in ((redis, host), (sentinel, f"{SUBNET}.22")):
        cluster.write(changed, address)
        must("start", name)
    cluster.wait_healthy(redis, "server")
    cluster.wait_healthy(sentinel, "sentinel")
    assert cluster.cli(redis, "role").split("\n")[:2] == ["slave", promoted]
    assert docker("exec", sentinel, "grep", "^sentinel myid", "/data/sentinel.conf").stdout == identity != ""
    assert master_of(cluster, sentinel) == promoted
    assert "down-after-milliseconds\n1500" in cluster.cli(sentinel, "sentinel", "master", "queue")
