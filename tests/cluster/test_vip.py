"""The virtual address on two real hosts with the rendered gateway, controller and keepalived: a client outside asks
through it every 20 ms while a host, a process or a cable is lost, and the gap is printed.

Behind the gateways there are small servers in the client's namespace, in the place of an api and of one worker.
"""

from __future__ import annotations

import http.client
import http.server
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from generator import tree
from generator.docker import Engine
from generator.errors import ToolError
from generator.plan import plan
from generator.planned import Plan
from generator.render import render
from generator.secrets import Store, lay_out, redis_names
from generator.sources import read_sources
from tests.cluster.hosts import CLIENT, HostMachine, from_outside, ip, machines
from tests.unit.generator.clusters import cluster as small_cluster

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
HOSTS = {"gw-1": "192.168.1.10", "gw-2": "192.168.1.11"}
OUTSIDE = "192.168.1.200"
VIP = "192.168.1.100"
API, WEBUI = 8000, 7860
PROMISED_SECONDS = 1.0
UNSEEN_SECONDS = 2.5
"""Where keepalived lives and its gateway does not: it has to find out first."""


class Answer(http.server.BaseHTTPRequestHandler):
    """Everything is well, whatever is asked."""

    def do_GET(self) -> None:
        body = json.dumps({"status": "ok", "fingerprint": "f", "engine": "none"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(port: int) -> Iterator[None]:
    """A small server at this port of the client's namespace."""
    server = from_outside(lambda: http.server.ThreadingHTTPServer((OUTSIDE, port), Answer))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Watch:
    """Asks through the virtual address every 20 ms, each time on a new connection that is given 250 ms."""

    trusted: Path
    path: str
    answers: list[tuple[float, int, str]] = field(default_factory=list)
    """(when it came, status, content type), of whatever was answered."""
    refused: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        context = ssl.create_default_context(cafile=str(self.trusted))
        with ThreadPoolExecutor(max_workers=16) as pool:  # in the namespace of the thread that starts them
            while not self._over.wait(0.02):
                pool.submit(self._ask, context)

    def stop(self) -> None:
        self._over.set()

    def _ask(self, context: ssl.SSLContext) -> None:
        connection = http.client.HTTPSConnection(VIP, timeout=0.25, context=context)
        try:
            connection.request("GET", self.path, headers={"X-Api-Key": "any"})
            answer = connection.getresponse()
            answer.read()
            self.answers.append((time.monotonic(), answer.status, answer.getheader("Content-Type", "")))
        except (OSError, http.client.HTTPException) as error:
            self.refused.append(repr(error))
        finally:
            connection.close()

    def good(self, since: float) -> list[float]:
        return sorted(at for at, status, _ in self.answers if status == 200 and at >= since)

    def gap(self, since: float) -> float:
        """The longest time without a good answer from `since` to now."""
        times = [since, *self.good(since), time.monotonic()]
        return max(late - early for early, late in pairwise(times))


@dataclass(frozen=True)
class Gateways:
    plan: Plan
    hosts: dict[str, HostMachine]
    folder: Path
    authority: Path

    def holders(self) -> list[str]:
        return [name for name, host in self.hosts.items() if _has_address(host)]

    def holder(self) -> str:
        self.wait(lambda: len(self.holders()) == 1, "one host has the address")
        return self.holders()[0]

    def other(self, name: str) -> str:
        return next(one for one in self.hosts if one != name)

    def id_of(self, host: str, service: str) -> str:
        found = self.hosts[host].engine.containers(self.plan.cluster.name, service=service)
        assert len(found) == 1, f"{service} on {host}: {found}"
        return found[0].id

    def up(self, host: str, *options: str) -> None:
        engine, folder = self.hosts[host].engine, self.folder / "out" / host
        try:
            engine.compose(folder, "up", "--detach", "--wait", "--wait-timeout", "60", *options, timeout=90)
        except ToolError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def wait(self, true: Callable[[], bool], what: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        told = []
        for name, host in self.hosts.items():
            for one in host.engine.containers(self.plan.cluster.name):
                lines = [
                    line for line in host.engine.logs(one.id, lines=200).splitlines() if "http_request" not in line
                ]
                told += [f"--- {one.service} on {name} ({one.state} {one.health})", *lines[-20:]]
        return "\n".join(told)

    def all_well(self) -> None:
        """Both hosts run everything, both gateways are ready, and one host has the address."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.up, [name for name in self.hosts if not self._runs(name)]))
        for name in self.hosts:
            self.wait(partial(self._runs, name, healthy=True), f"{name} is healthy")
            self.wait(partial(_ready, self.hosts[name].address), f"{name} is ready")
        time.sleep(0.7)  # two good checks, of the host without the address too
        self.holder()

    def _runs(self, host: str, *, healthy: bool = False) -> bool:
        found = self.hosts[host].engine.containers(self.plan.cluster.name)
        well = ("healthy",) if healthy else ("healthy", "starting", "unhealthy")
        return len(found) == 4 and all(one.state == "running" and one.health in well for one in found)


def _has_address(host: HostMachine) -> bool:
    command = ["nsenter", f"--net=/run/netns/{host.namespace}", "ip", "-4", "-oneline", "address", "show", "to", VIP]
    return VIP in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _ready(address: str) -> bool:
    def ask() -> bool:
        connection = http.client.HTTPConnection(address, 80, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    return from_outside(ask)


@pytest.fixture(scope="module")
def gateways(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("vip")
    the_plan, authority = _render(folder, images)
    needed = [the_plan.cluster.images[name] for name in ("gateway", "keepalived", "services")]
    with machines(HOSTS, folder / "machines", needed, engine) as hosts:
        made = Gateways(the_plan, hosts, folder, authority)
        with serving(API), ThreadPoolExecutor() as pool:
            list(pool.map(made.up, hosts))
            yield made


@pytest.fixture(scope="module")
def worker(gateways: Gateways) -> Iterator[None]:
    with serving(WEBUI):
        yield


def _render(folder: Path, tag: str) -> tuple[Plan, Path]:
    hosts: dict[str, dict[str, Any]] = {name: {"address": at, "roles": ["gateway"]} for name, at in HOSTS.items()}
    hosts["node"] = {"address": OUTSIDE, "roles": ["control", "queue", "worker"], "cpu_workers": 1}
    the_plan = plan(
        small_cluster(
            hosts=hosts,
            images={"webui": "synthetic", "tag": tag},
            network={"subnet": "192.168.1.0/24"},
            gateway={"vip": VIP},
        )
    )
    tree.write(folder / "out", render(the_plan, read_sources()))
    store = Store(folder / "store")
    store.create_missing((VIP, *HOSTS.values()), tls=True, redis=redis_names(the_plan))
    lay_out(the_plan, folder / "out", store.read())
    shutil.rmtree(folder / "out" / "node")
    return the_plan, store.authority


@contextmanager
def watching(gateways: Gateways, path: str = "/api/v1/cluster") -> Iterator[Watch]:
    watch = Watch(gateways.authority, path)
    thread = threading.Thread(target=lambda: from_outside(watch.run))
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()


@pytest.fixture
def watch(gateways: Gateways, worker: None) -> Iterator[Watch]:
    """Both hosts well, one worker, and the client at work."""
    gateways.all_well()
    with watching(gateways) as watch:
        gateways.wait(lambda: len(watch.answers) > 10, "the address answers")
        yield watch


def moved(gateways: Gateways, watch: Watch, lose: Callable[[str], object], what: str, most: float) -> str:
    """Loses the holder in this way, and asserts that the other host has the address in time. Returns who lost it."""
    old = gateways.holder()
    new = gateways.other(old)
    begin = time.monotonic()
    lose(old)
    gateways.wait(lambda: _has_address(gateways.hosts[new]), f"{new} takes the address")
    last = time.monotonic()
    gateways.wait(lambda: len(watch.good(last)) > 10, "answers come again")
    gap = watch.gap(begin)
    print(f"\n{what}: {gap:.2f} s without an answer")
    assert gap <= most, gateways.logs()
    return old


def stays(gateways: Gateways, watch: Watch, holder: str, what: str, change: Callable[[], object]) -> None:
    """The change moves nothing and is not noticed."""
    begin = time.monotonic()
    change()
    gateways.wait(lambda: _ready(gateways.hosts[gateways.other(holder)].address), "the other host is ready")
    time.sleep(2)
    gap = watch.gap(begin)
    print(f"{what}: {gap:.2f} s without an answer")
    assert gateways.holders() == [holder], gateways.logs()
    assert gap <= PROMISED_SECONDS


def test_without_any_node_the_address_says_so(gateways: Gateways) -> None:
    """Neither gateway is ready: an address that left both would leave clients without any answer."""
    gateways.wait(lambda: not any(_ready(at) for at in HOSTS.values()), "no gateway is ready")
    time.sleep(2)  # checks that would take the address away, had they failed
    holder = gateways.holder()
    with watching(gateways, "/webui/") as watch:
        time.sleep(2)
    assert gateways.holders() == [holder]
    assert {(status, kind) for _, status, kind in watch.answers} == {(503, "application/problem+json")}
    assert watch.refused == []


def test_a_killed_gateway_host(gateways: Gateways, watch: Watch) -> None:
    """`kill -9` of all it runs; Docker starts everything again, and keepalived finds an address that it left."""

    def kill(host: str) -> None:
        engine = gateways.hosts[host].engine
        pids = [str(one.pid) for one in engine.containers(gateways.plan.cluster.name)]
        subprocess.run(["kill", "-9", *pids], check=True)

    old = moved(gateways, watch, kill, "all containers killed", PROMISED_SECONDS)
    stays(gateways, watch, gateways.other(old), "and back", lambda: None)


def test_a_gateway_host_killed_for_good(gateways: Gateways, watch: Watch) -> None:
    """Nobody is left to take the address from the old host, which goes on answering for it until the kernel does."""

    def kill(host: str) -> None:
        engine = gateways.hosts[host].engine
        engine.kill(*(one.id for one in engine.containers(gateways.plan.cluster.name)))

    def newcomer() -> bool:
        ip("netns", "exec", CLIENT, "ip", "neigh", "flush", "all")
        time.sleep(0.2)
        return gateways.holders() == [gateways.other(old)]

    old = moved(gateways, watch, kill, "all containers killed for good", PROMISED_SECONDS)
    begin = time.monotonic()
    gateways.wait(newcomer, "the old host's address is gone")
    print(f"its address is gone {time.monotonic() - begin:.1f} s later")
    assert time.monotonic() - begin < 5
    begin = time.monotonic()
    gateways.wait(lambda: newcomer() and len(watch.good(begin)) > 50, "a client that has to ask who has the address")
    assert watch.gap(begin) <= PROMISED_SECONDS


def test_keepalived_is_stopped(gateways: Gateways, watch: Watch) -> None:
    def stop(host: str) -> None:
        gateways.hosts[host].engine.stop(gateways.id_of(host, "keepalived"))

    old = moved(gateways, watch, stop, "keepalived stopped", PROMISED_SECONDS)
    stays(gateways, watch, gateways.other(old), "and started", lambda: gateways.up(old))


def test_the_cable_is_pulled(gateways: Gateways, watch: Watch) -> None:
    old = moved(gateways, watch, lambda host: gateways.hosts[host].cut(), "cable pulled", PROMISED_SECONDS)
    stays(gateways, watch, gateways.other(old), "and plugged", gateways.hosts[old].plug)


@pytest.mark.parametrize(("how", "back"), [("kill", "start"), ("pause", "unpause")])
def test_nginx_is_dead_and_keepalived_alive(gateways: Gateways, watch: Watch, how: str, back: str) -> None:
    def lose(host: str) -> None:
        gateways.hosts[host].engine.run(how, gateways.id_of(host, "gateway"))

    old = moved(gateways, watch, lose, f"nginx: docker {how}", UNSEEN_SECONDS)
    engine, gateway = gateways.hosts[old].engine, gateways.id_of(old, "gateway")
    stays(gateways, watch, gateways.other(old), f"and {back}", lambda: engine.run(back, gateway))


def test_a_new_gateway_container_moves_the_address(gateways: Gateways, watch: Watch) -> None:
    """Compose makes keepalived, which depends on the gateway, anew as well."""
    begin = time.monotonic()
    old = gateways.holder()
    change = {"services": {"gateway": {"environment": {"APPLIANCE_NODE_NAME": f"{old}-changed"}}}}
    (gateways.folder / "out" / old / "compose.override.yaml").write_text(yaml.safe_dump(change))
    gateways.up(old)
    assert gateways.holder() == gateways.other(old)
    gap = watch.gap(begin)
    print(f"\ngateway made anew: {gap:.2f} s without an answer")
    assert gap <= PROMISED_SECONDS


@pytest.mark.long
def test_a_gateway_that_knows_no_node_gives_the_address_to_one_that_does(gateways: Gateways, watch: Watch) -> None:
    def forget(host: str) -> None:
        """Its controller is gone, and a new nginx has nobody to tell it of any node."""
        engine = gateways.hosts[host].engine
        engine.stop(gateways.id_of(host, "controller"))
        engine.kill(gateways.id_of(host, "gateway"))
        engine.start(gateways.id_of(host, "gateway"))

    old = moved(gateways, watch, forget, "a gateway without a node", UNSEEN_SECONDS)
    controller = gateways.id_of(old, "controller")
    stays(gateways, watch, gateways.other(old), "and with", lambda: gateways.hosts[old].engine.start(controller))


def test_hosts_that_do_not_hear_each_other(gateways: Gateways, watch: Watch) -> None:
    """A switch that drops VRRP, not a cable: both hold the address, both serve, and one yields at the end."""
    deaf = ["iptables", "{}", "INPUT", "--protocol", "112", "--jump", "DROP"]

    def everywhere(change: str) -> None:
        for host in gateways.hosts.values():
            ip("netns", "exec", host.namespace, *(word.format(change) for word in deaf))

    gateways.holder()
    begin = time.monotonic()
    everywhere("-I")
    try:
        gateways.wait(lambda: len(gateways.holders()) == 2, "both hold it")
        time.sleep(1)
    finally:
        everywhere("-D")
    gateways.wait(lambda: len(gateways.holders()) == 1, "one yields")
    time.sleep(1.5)
    gap = watch.gap(begin)
    print(f"\nVRRP dropped and back: {gap:.2f} s without an answer")
    assert gap <= PROMISED_SECONDS
    assert len(gateways.holders()) == 1
