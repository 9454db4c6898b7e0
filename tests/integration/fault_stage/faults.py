"""What happens to one of three nodes, or to all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.fault_stage.stage import Node, Stage


@dataclass(frozen=True)
class Fault:
    """`begin` and `end` get the stage and the node it is about. `hits`: how many nodes it is about."""

    name: str
    begin: Callable[[Stage, Node], None]
    end: Callable[[Stage, Node], None]
    hits: int = 1


class Flapping:
    """Dies and comes back again and again."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, _: Stage, node: Node) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._flap, args=(node,), daemon=True)
        self._thread.start()

    def _flap(self, node: Node) -> None:
        while not self._stop.is_set():
            node.kill()
            self._stop.wait(1)
            node.start()
            self._stop.wait(2)

    def end(self, _: Stage, __: Node) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(20)


def _all(do: Callable[[Node], None]) -> Callable[[Stage, Node], None]:
    def to_all(stage: Stage, _: Node) -> None:
        for node in stage.nodes:
            do(node)

    return to_all


def _cut(node: Node) -> None:
    node.drop("INPUT")
    node.drop("OUTPUT")


FLAPPING = Flapping()
FAULTS = (
    Fault("kill -9", lambda _, node: node.kill(), lambda _, node: node.start()),
    Fault("frozen", lambda _, node: node.freeze(), lambda _, node: node.thaw()),
    Fault(
        "half-dead",
        lambda _, node: node.set_mode(ping="loading", status="500"),
        lambda _, node: node.set_mode(),
    ),
    Fault("pings but fails", lambda _, node: node.set_mode(status="500"), lambda _, node: node.set_mode()),
    Fault("cut off", lambda _, node: _cut(node), lambda _, node: node.pass_again()),
    Fault("deaf", lambda _, node: node.drop("INPUT"), lambda _, node: node.pass_again()),
    Fault("mute", lambda _, node: node.drop("OUTPUT"), lambda _, node: node.pass_again()),
    Fault("slow", lambda _, node: node.set_mode(delay="1"), lambda _, node: node.set_mode()),
    Fault("flapping", FLAPPING.begin, FLAPPING.end),
    Fault("all killed", _all(Node.kill), _all(Node.start), hits=3),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
