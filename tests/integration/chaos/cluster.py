"""The example cluster as it is rendered, its three hosts' containers on one engine, a network namespace per machine.

What differs from `render`'s output is written down in `_service`: the ports of a host become addresses of a private
network (the namespace outlives the containers in it, as a machine outlives its services), the GPUs are drawn by numpy,
and clocks can be set. Everything else, timings, users, certificates and persistence, is the generator's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from appliance.queue import Queue
from appliance.redis_link import RedisLink
from appliance.settings import QueueSettings, Reader, RedisSettings, read_common, read_queue, read_redis
from appliance.storage import MODEL_FOLDERS, prepare
from generator import tree
from generator.docker import Engine
from generator.load import load
from generator.model import LogDriver, Role
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, lay_out, redis_names
from generator.sources import ROOT, read_sources
from tests.integration.chaos.machines import Machine, new_clock

USERS = ("ada", "ben", "cyd")
API_PORT = 8000
WEBUI_PORT = 7860
READY_SECONDS = 120.0
LOG_LINES = 20_000
GPUS_PER_HOST = (2, 2, 1)
CLOCK_IMAGE = "animatediff-test/clock"
HERE = Path(__file__).parent
SERVING = frozenset({Role.GATEWAY, Role.CONTROL, Role.QUEUE, Role.WORKER})

# Poison differs from worker to worker: some die of it, some hang.
CRASHES = {"only_prompt_contains": "poison", "crash_at_step": 3}
HANGS = {"only_prompt_contains": "poison", "hang_at_step": 3}
HUNGRY = {"fail_prompt_contains": "hungry", "reason": "OOM"}


@dataclass(frozen=True)
class Options:
    """What a run changes in the rendered services, by role: `api`, `agent`, `webui`."""

    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    mounts: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Path in the container → file on this machine: how a broken build gets into the real images."""
    step_seconds: float = 0.1
    gpus_per_host: tuple[int, int, int] = GPUS_PER_HOST


@dataclass(frozen=True)
class Worker:
    name: str
    host: str
    machine: Machine
    agent: str
    webui: str


@dataclass
class ChaosCluster:
    project: str
    engine: Engine
    folder: Path
    plan: Plan
    hosts: dict[str, Machine]
    workers: dict[str, Worker]
    apis: dict[str, str]
    """Queue host → base URL of its api."""
    keys: dict[str, str]
    redis_settings: RedisSettings
    queue_settings: QueueSettings

    @property
    def jobs_dir(self) -> Path:
        return self.folder / "storage" / "jobs"

    def container(self, service: str) -> str:
        return f"{self.project}-{service}-1"

    def queue(self) -> Queue:
        return Queue(RedisLink(self.redis_settings), self.queue_settings)

    def link(self) -> RedisLink:
        return RedisLink(self.redis_settings)

    def host_of(self, address: str) -> str:
        return next(name for name, machine in self.hosts.items() if machine.address == address)

    def running(self, service: str) -> bool:
        return self.engine.container(self.container(service)).state == "running"

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Every worker idle, as each api sees it."""
        end = time.monotonic() + seconds
        for url in self.apis.values():
            while (problem := self._not_ready(url)) is not None:
                if time.monotonic() > end:
                    raise RuntimeError(f"the cluster is not ready after {seconds:g} s: {problem}\n{self.tails()}")
                time.sleep(0.2)

    def _not_ready(self, url: str) -> str | None:
        try:
            headers = {"X-Api-Key": self.keys["operator"]}
            answer = httpx.get(f"{url}/api/v1/cluster", headers=headers, timeout=3, trust_env=False)
            known = answer.json()["workers"]
            states = {worker["name"]: worker["state"] if worker["alive"] else "silent" for worker in known}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"{url}: {error!r}"
        missing = {name for name in self.workers if states.get(name) != "idle"}
        return f"{url}: {states}" if missing else None

    def tails(self, lines: int = 15) -> str:
        texts = []
        for one in self.engine.containers(self.project):
            if not one.service.startswith("net-"):
                said = self.engine.logs(one.name, lines=lines)
                texts.append(f"--- {one.service} ({one.state}, restarts {one.restarts})\n{said}")
        return "\n".join(texts)

    def save_logs(self) -> None:
        """Beside the history, for whoever looks into a failure."""
        folder = self.folder / "logs"
        folder.mkdir(exist_ok=True)
        for one in self.engine.containers(self.project):
            if not one.service.startswith("net-"):
                (folder / f"{one.service}.log").write_text(self.engine.logs(one.name, lines=LOG_LINES))


@contextmanager
def running_cluster(engine: Engine, tag: str, folder: Path, options: Options | None = None) -> Iterator[ChaosCluster]:
    options = options or Options()
    project = f"adha-chaos-{os.getpid() % 10_000}-{random.SystemRandom().randrange(16**4):04x}"
    with ExitStack() as stack:
        cluster = _lay_out(engine, tag, folder, project, options)
        stack.callback(_remove, engine, project, folder)
        engine.compose(folder, "up", "--detach", "--quiet-pull", timeout=300)
        cluster = _with_pids(cluster)
        stack.callback(cluster.save_logs)
        cluster.wait_ready()
        yield cluster


def _remove(engine: Engine, project: str, folder: Path) -> None:
    for one in engine.containers(project):
        if one.state == "paused":
            engine.unpause(one.id)
    engine.compose(folder, "down", "--volumes", "--timeout", "1", timeout=300)
    shutil.rmtree(folder / "storage", ignore_errors=True)


def _with_pids(cluster: ChaosCluster) -> ChaosCluster:
    def alive(machine: Machine) -> Machine:
        pid = cluster.engine.host_pid(cluster.container(f"net-{machine.name}"))
        return Machine(machine.name, machine.address, pid, machine.clock)

    cluster.hosts = {name: alive(machine) for name, machine in cluster.hosts.items()}
    cluster.workers = {
        name: Worker(name, worker.host, alive(worker.machine), worker.agent, worker.webui)
        for name, worker in cluster.workers.items()
    }
    return cluster


# --- from the rendered hosts to one compose file -----------------------------------------------------------------


def _lay_out(engine: Engine, tag: str, folder: Path, project: str, options: Options) -> ChaosCluster:
    prefix = free_prefix()
    the_plan, keys = _render(folder, tag, prefix, options)
    clock = _clock_library(engine, tag, folder)
    storage = folder / "storage"
    prepare(storage / "jobs")
    prepare(storage / "models", MODEL_FOLDERS)
    file = _ComposeFile(project, prefix, folder, clock, options, f"animatediff-ha/redis:{tag}")
    for number, host in enumerate(the_plan.hosts):
        file.add_host(host.name, host.address)
        rendered = yaml.safe_load((folder / "hosts" / host.name / "compose.yaml").read_text())
        for service, body in rendered["services"].items():
            file.add_service(host.name, service, body, address=f"{prefix}.{100 + 10 * number}", secrets=rendered)
    (folder / "compose.yaml").write_text(json.dumps(file.content(), indent=1))
    environment = file.environments[next(name for name in file.environments if name.startswith("api-"))]
    redis_settings, queue_settings = _settings(environment, folder / "hosts" / the_plan.hosts[0].name / "secrets")
    apis = {
        host.name: f"http://{host.address}:{API_PORT}" for host in the_plan.hosts if f"api-{host.name}" in file.services
    }
    return ChaosCluster(
        project, engine, folder, the_plan, file.hosts, file.workers, apis, keys, redis_settings, queue_settings
    )


def _render(folder: Path, tag: str, prefix: str, options: Options) -> tuple[Plan, dict[str, str]]:
    example = load(ROOT / "config/cluster.example.yaml").cluster
    hosts = {
        name: host.model_copy(
            # An api on each, so that clients are on both sides of whatever gets parted.
            update={
                "address": f"{prefix}.{10 + number}",
                "gpus": host.gpus[:gpus],
                # And nothing of what only watches: that is the test's own part here.
                "roles": [*(role for role in host.roles if role in SERVING), *({Role.CONTROL} - set(host.roles))],
            }
        )
        for number, ((name, host), gpus) in enumerate(
            zip(example.hosts.items(), options.gpus_per_host, strict=True), start=1
        )
    }
    images = example.images.model_copy(update={"tag": tag, "webui": type(example.images.webui)("synthetic")})
    worker = example.worker.model_copy(update={"step_seconds": options.step_seconds, "threads": 1})
    logs = example.logs.model_copy(update={"driver": LogDriver.NONE})
    the_plan = plan(example.model_copy(update={"hosts": hosts, "images": images, "worker": worker, "logs": logs}))
    tree.write(folder / "hosts", render(the_plan, read_sources()))
    store = Store(folder / "store")
    addresses = tuple(host.address for host in the_plan.hosts)
    store.create_missing(addresses, tls=True, redis=redis_names(the_plan))
    values = store.read()
    lay_out(the_plan, folder / "hosts", values)
    keys = {"operator": values["api_key"].decode(), **{user: f"key-of-{user}" for user in USERS}}
    for host in the_plan.hosts:
        file = folder / "hosts" / host.name / "secrets" / "api_keys"
        if file.exists():
            _add_users(file, keys)
    return the_plan, keys


def _add_users(file: Path, keys: dict[str, str]) -> None:
    import hashlib

    with file.open("a") as opened:
        for user in USERS:
            opened.write(f"{user}:user:{hashlib.sha256(keys[user].encode()).hexdigest()}\n")


def _settings(environment: dict[str, str], secrets: Path) -> tuple[RedisSettings, QueueSettings]:
    """As the api reads them, so that the test reaches Redis by the same way, whatever that way asks for."""
    here = {name: value.replace("/run/secrets", str(secrets)) for name, value in environment.items()}
    reader = Reader({**here, "APPLIANCE_SECRETS_DIR": str(secrets)})
    redis, queue = read_redis(reader, read_common(reader, "chaos")), read_queue(reader)
    reader.finish()
    return redis, queue


def _clock_library(engine: Engine, tag: str, folder: Path) -> Path:
    """Built in a container: the machine that runs the tests need not have a compiler."""
    context = folder / "clock"
    context.mkdir()
    shutil.copy(HERE / "clock.c", context)
    install = "apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev"
    (context / "Dockerfile").write_text(
        f"FROM animatediff-ha/base:{tag}\nRUN {install}\nCOPY clock.c /\n"
        "RUN gcc -shared -fPIC -O2 -Wall -Werror -o /clock.so /clock.c\n"
    )
    ref = f"{CLOCK_IMAGE}:{tag}"
    for _ in engine.build(["--tag", ref, str(context)], timeout=300):
        pass
    made = engine.run("create", ref).strip()
    try:
        engine.run("cp", f"{made}:/clock.so", str(context / "clock.so"))
    finally:
        engine.remove(made)
    (context / "clock.so").chmod(0o755)
    return context / "clock.so"


class _ComposeFile:
    def __init__(self, project: str, prefix: str, folder: Path, clock: Path, options: Options, image: str) -> None:
        self.hosts: dict[str, Machine] = {}
        self.workers: dict[str, Worker] = {}
        self.services: dict[str, Any] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self._project = project
        self._prefix = prefix
        self._folder = folder
        self._clock = clock
        self._options = options
        self._image = image

    def content(self) -> dict[str, Any]:
        volumes: dict[str, Any] = {
            f"{kind}-{host}": {} for host in self.hosts for kind in ("redis-data", "sentinel-data")
        }
        network = {"ipam": {"config": [{"subnet": f"{self._prefix}.0/24"}]}}
        return {
            "name": self._project,
            "services": self.services,
            "networks": {"chaos": network},
            "volumes": volumes,
        }

    def add_host(self, name: str, address: str) -> None:
        self.hosts[name] = self._add_machine(name, address)

    def _add_machine(self, name: str, address: str) -> Machine:
        self.services[f"net-{name}"] = {
            "image": self._image,
            "pull_policy": "never",
            "entrypoint": ["sleep", "infinity"],
            "healthcheck": {"disable": True},
            "init": True,
            "stop_grace_period": "1s",
            "networks": {"chaos": {"ipv4_address": address}},
        }
        clock = self._folder / f"clock-{name}"
        new_clock(clock)
        return Machine(name, address, 0, clock)

    def add_service(self, host: str, service: str, body: dict[str, Any], address: str, secrets: dict[str, Any]) -> None:
        role, _, number = service.partition("-")
        if role in ("redis", "sentinel", "api"):
            self._put(f"{role}-{host}", self.hosts[host], self._service(host, role, body, secrets))
        elif role in ("webui", "agent"):
            name = f"{host}-{number}"
            if f"{host}/{number}" not in self.workers:
                base, _, last = address.rpartition(".")
                machine = self._add_machine(name, f"{base}.{int(last) + int(number)}")
                worker = Worker(f"{host}/{number}", host, machine, f"agent-{name}", f"webui-{name}")
                self.workers[worker.name] = worker
            machine = self.workers[f"{host}/{number}"].machine
            self._put(f"{role}-{name}", machine, self._service(host, role, body, secrets))

    def _put(self, name: str, machine: Machine, body: dict[str, Any]) -> None:
        body["network_mode"] = f"service:net-{machine.name}"
        body["environment"] = {
            **body.get("environment", {}),
            "LD_PRELOAD": "/opt/chaos/clock.so",
            "CHAOS_CLOCK": "/opt/chaos/offset",
        }
        body["volumes"] += [
            _bind(self._clock, "/opt/chaos/clock.so"),
            _bind(machine.clock, "/opt/chaos/offset"),
        ]
        self.services[name] = body
        self.environments[name] = body["environment"]

    def _service(self, host: str, role: str, body: dict[str, Any], rendered: dict[str, Any]) -> dict[str, Any]:
        folder = self._folder / "hosts" / host
        kept = ("image", "pull_policy", "user", "init", "read_only", "cap_drop", "security_opt", "tmpfs", "command")
        service: dict[str, Any] = {name: body[name] for name in kept}
        service |= {"restart": body["restart"], "stop_grace_period": "10s"}
        # Twenty health checks every five seconds would be most of what the machine does.
        service["healthcheck"] = {"disable": True}
        service["environment"] = {**body.get("environment", {}), **self._changes(role)}
        service["volumes"] = [self._volume(host, folder, volume) for volume in body.get("volumes", [])]
        for name in body.get("secrets", []):
            file = folder / rendered["secrets"][name]["file"]
            service["volumes"].append(_bind(file, f"/run/secrets/{name}"))
        for target, source in self._options.mounts.get(role, {}).items():
            service["volumes"].append(_bind(source, target))
        if role == "webui":
            service["deploy"] = {"resources": {"limits": {"memory": "400m", "pids": 256}}}
        return service

    def _changes(self, role: str) -> dict[str, str]:
        own: dict[str, str] = {}
        if role == "agent":
            own = {
                "APPLIANCE_WEBUI_URL": f"http://127.0.0.1:{WEBUI_PORT}",
                **{f"APPLIANCE_{phase}_SECONDS": "4" for phase in ("NO_PROGRESS", "DECODE", "ENCODE")},
                "APPLIANCE_DRAIN_SECONDS": "2",
            }
        elif role == "webui":
            hangs = len(self.workers) % 2 == 0
            own = {
                "APPLIANCE_SYNTHETIC_FAULTS": json.dumps((HANGS if hangs else CRASHES) | HUNGRY),
                "APPLIANCE_STOP_SECONDS": "2",
                "APPLIANCE_CHECKPOINT_SECONDS": "1",
            }
        return own | dict(self._options.environment.get(role, {}))

    def _volume(self, host: str, folder: Path, volume: dict[str, Any]) -> dict[str, Any]:
        if volume["type"] == "bind":
            return {**volume, "source": str((folder / volume["source"]).resolve())}
        if volume["source"] in ("jobs", "models"):
            return {**volume, "type": "bind", "source": str(self._folder / "storage" / volume["source"])}
        return {**volume, "source": f"{volume['source']}-{host}"}


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(source.resolve()), "target": target, "read_only": True}


def free_prefix() -> str:
    """The first three numbers of a network that nothing on this machine routes to."""
    routes = subprocess.run(["ip", "-4", "route", "show", "table", "all"], check=True, capture_output=True, text=True)
    for number in random.SystemRandom().sample(range(256), 256):
        prefix = f"10.213.{number}"
        if prefix not in routes.stdout:
            return prefix
    raise RuntimeError("no network 10.213.x.0/24 is free")
