"""What can happen to a worker, to an api and to the queue's hosts. Every fault names how it is undone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from generator.errors import ToolError, Unhealthy
from tests.integration.chaos import machines
from tests.integration.chaos.cluster import WEBUI_PORT, ChaosCluster, Worker

Undo = Callable[[], None]
HOUR = 3600
FREEZE_TRIES = 8
HOG = "b'x' * (600 << 20)"


def nothing() -> None:
    """The restart policy, or nobody, undoes it."""


@dataclass(frozen=True)
class WorkerFault:
    do: Callable[[ChaosCluster, Worker], Undo]
    seconds: tuple[float, float]
    times: int
    """In a short run; a long one draws them with these weights."""


@dataclass(frozen=True)
class HostFault:
    """`do` gets the queue host that it is meant for."""

    do: Callable[[ChaosCluster, str], Undo]
    seconds: tuple[float, float]
    times: int
    victim: str = "master"
    """master, replica or any"""
    cuts_workers: bool = False
    """Its workers are in trouble with it."""


# --- containers --------------------------------------------------------------------------------------------------


def kill_9(cluster: ChaosCluster, service: str) -> Undo:
    """From outside, so that the engine takes it for a crash and the restart policy brings it back at once."""
    with contextlib.suppress(Unhealthy):  # dead already, and about to be started by the restart policy
        machines.send(cluster.engine.host_pid(cluster.container(service)), signal.SIGKILL)
    return nothing


def kill_for_good(cluster: ChaosCluster, service: str) -> Undo:
    with contextlib.suppress(ToolError):  # dead already, and about to be started by the restart policy
        cluster.engine.kill(cluster.container(service))
    return lambda: cluster.engine.start(cluster.container(service))


def freeze(cluster: ChaosCluster, service: str) -> Undo:
    name = cluster.container(service)
    for tries_left in reversed(range(FREEZE_TRIES)):
        try:
            cluster.engine.pause(name)
            break
        except ToolError:  # a process that is just being made, for one, cannot be frozen
            if not tries_left:
                raise
            time.sleep(0.3)
    return lambda: cluster.engine.unpause(name)


def stop(cluster: ChaosCluster, service: str) -> Undo:
    """SIGTERM: it may finish or hand back what it does."""
    cluster.engine.stop(cluster.container(service), grace_seconds=10)
    return lambda: cluster.engine.start(cluster.container(service))


# --- the engine process of a webui -------------------------------------------------------------------------------


def engine_pid(cluster: ChaosCluster, worker: Worker) -> int | None:
    try:
        first = cluster.engine.host_pid(cluster.container(worker.webui))
    except Unhealthy:
        return None
    found = [pid for pid, command in machines.processes_under(first) if "webui.worker" in command]
    return found[0] if found else None


def signal_engine(cluster: ChaosCluster, worker: Worker, number: signal.Signals) -> Undo:
    pid = engine_pid(cluster, worker)
    if pid is not None:
        machines.send(pid, number)
    return lambda: None if pid is None else thaw(pid)


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def run_out_of_memory(cluster: ChaosCluster, worker: Worker) -> Undo:
    """For real: a guest in the container takes more than its limit, and the kernel ends the engine first."""
    with contextlib.suppress(ToolError):  # the guest is next
        cluster.engine.exec(cluster.container(worker.webui), "/opt/venv/bin/python", "-c", HOG, timeout=20)
    return nothing


# --- networks and clocks -----------------------------------------------------------------------------------------


def block(machine: machines.Machine, rules: list[machines.Rule]) -> Undo:
    machine.block(rules)
    return lambda: machine.unblock(rules)


def cut_from_redis(cluster: ChaosCluster, worker: Worker) -> Undo:
    return block(worker.machine, machines.between([host.address for host in cluster.hosts.values()]))


def jump(machine: machines.Machine, seconds: int) -> Undo:
    machine.set_clock(seconds)
    return lambda: machine.set_clock(0)


def part(cluster: ChaosCluster, host: str) -> Undo:
    """The host, its api and its workers on one side, everybody else on the other; users reach both."""
    here = [cluster.hosts[host]] + [worker.machine for worker in cluster.workers.values() if worker.host == host]
    everyone = [*cluster.hosts.values(), *(worker.machine for worker in cluster.workers.values())]
    others = machines.between([machine.address for machine in everyone if machine not in here])
    for machine in here:
        machine.block(others)

    def rejoin() -> None:
        for machine in here:
            machine.unblock(others)

    return rejoin


def lose_host(cluster: ChaosCluster, host: str) -> Undo:
    undone = [kill_for_good(cluster, f"{service}-{host}") for service in ("redis", "sentinel")]

    def start_again() -> None:
        for undo in undone:
            undo()

    return start_again


WORKER_FAULTS: dict[str, WorkerFault] = {
    "agent killed": WorkerFault(lambda c, w: kill_9(c, w.agent), (0, 0), 6),
    "webui killed": WorkerFault(lambda c, w: kill_9(c, w.webui), (0, 0), 5),
    "webui OOM-killed by the kernel": WorkerFault(run_out_of_memory, (0, 0), 4),
    "engine crashed": WorkerFault(lambda c, w: signal_engine(c, w, signal.SIGSEGV), (0, 0), 3),
    "engine hung": WorkerFault(lambda c, w: signal_engine(c, w, signal.SIGSTOP), (5, 9), 4),
    "webui frozen": WorkerFault(lambda c, w: freeze(c, w.webui), (1, 6), 4),
    "agent frozen": WorkerFault(lambda c, w: freeze(c, w.agent), (1, 8), 6),
    "cut off": WorkerFault(lambda c, w: block(w.machine, machines.everything()), (1, 7), 4),
    "cut off, hears nothing": WorkerFault(lambda c, w: block(w.machine, machines.incoming()), (2, 6), 2),
    "cut off, unheard": WorkerFault(lambda c, w: block(w.machine, machines.outgoing()), (2, 6), 2),
    "cut off from Redis": WorkerFault(cut_from_redis, (1, 7), 4),
    "webui cut off from its agent": WorkerFault(
        lambda c, w: block(w.machine, machines.own_port(WEBUI_PORT)), (1, 5), 2
    ),
    "agent stopped": WorkerFault(lambda c, w: stop(c, w.agent), (1, 3), 2),
    "worker's clock +1 h": WorkerFault(lambda c, w: jump(w.machine, HOUR), (2, 6), 1),
    "worker's clock -1 h": WorkerFault(lambda c, w: jump(w.machine, -HOUR), (2, 6), 1),
}

HOST_FAULTS: dict[str, HostFault] = {
    "Redis master killed, back at once": HostFault(lambda c, h: kill_9(c, f"redis-{h}"), (3, 5), 2),
    "Redis master killed": HostFault(lambda c, h: kill_for_good(c, f"redis-{h}"), (6, 9), 3),
    "Redis master frozen": HostFault(lambda c, h: freeze(c, f"redis-{h}"), (3, 6), 1),
    "Redis master and Sentinel killed": HostFault(lose_host, (6, 9), 1),
    "Redis master partitioned, clients on both sides": HostFault(part, (7, 10), 3, cuts_workers=True),
    "queue host's clock +1 h": HostFault(lambda c, h: jump(c.hosts[h], HOUR), (4, 8), 2),
    "queue host's clock -1 h": HostFault(lambda c, h: jump(c.hosts[h], -HOUR), (4, 8), 1),
    "Redis replica killed": HostFault(lambda c, h: kill_for_good(c, f"redis-{h}"), (3, 6), 1, "replica"),
    "Sentinel lost": HostFault(lambda c, h: kill_for_good(c, f"sentinel-{h}"), (4, 8), 2, "any"),
}

API_FAULTS: dict[str, HostFault] = {
    "api killed": HostFault(lambda c, h: kill_9(c, f"api-{h}"), (2, 4), 2, "any"),
    "api frozen": HostFault(lambda c, h: freeze(c, f"api-{h}"), (1, 4), 1, "any"),
}


def worker_deck(chance: random.Random) -> list[str]:
    return shuffled({name: fault.times for name, fault in WORKER_FAULTS.items()}, chance)


def host_deck(faults: dict[str, HostFault], chance: random.Random) -> list[str]:
    return shuffled({name: fault.times for name, fault in faults.items()}, chance)


def shuffled(times: dict[str, int], chance: random.Random) -> list[str]:
    deck = [name for name, count in times.items() for _ in range(count)]
    chance.shuffle(deck)
    return deck
