"""Single nodes: taken out of work and back, and why one is as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Column, Table

from generator.errors import Unhealthy, UserError
from generator.ops.client import Client
from generator.ops.cluster import Place
from generator.ops.status import ask_gateways
from generator.planned import Plan
from generator.progress import Progress

POLL_SECONDS = 0.5
SHOWN_EVENTS = 20
OUT_OF_WORK = frozenset({"drained", "quarantined"})
"""What only an agent says that has heard its order, and has no job any more."""
SILENT_SECONDS = 5.0
"""An agent that has told nothing for so long hears no order, either."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A running cluster as an operator reaches it."""

    places: Sequence[Place]
    key: str
    authority: Path | None

    def ask(self, question: Callable[[Client], T]) -> T:
        return ask_gateways(self.places, self.key, self.authority, question)


def workers_called(plan: Plan, name: str) -> list[str]:
    """The worker of this name, or all of the host of this name."""
    workers = {host.name: [worker.worker for worker in host.workers] for host in plan.hosts if host.workers}
    if name in workers:
        return workers[name]
    if any(name in some for some in workers.values()):
        return [name]
    known = ", ".join(worker for some in workers.values() for worker in some)
    raise UserError(f'"{name}" is neither a worker ({known}) nor a host that has any')


def give(cluster: Cluster, workers: Sequence[str], order: Mapping[str, Any]) -> None:
    """To all of them or to none: where it is refused for one, those before it are put back to work."""
    given: list[str] = []
    try:
        for worker in workers:
            cluster.ask(partial(Client.order, worker=worker, order=order))
            given.append(worker)
    except UserError:
        take_back(cluster, given)
        raise


def take_back(cluster: Cluster, workers: Sequence[str]) -> None:
    for worker in workers:
        cluster.ask(partial(Client.drop_order, worker=worker))


def wait_until_idle(cluster: Cluster, workers: Sequence[str], seconds: float, progress: Progress) -> None:
    """Until none of them has a job any more, or can get one; `Unhealthy` where one still has after `seconds`. To be
    called when they have been ordered out of work."""
    begin = time.monotonic()
    with progress.task(f"waiting for {', '.join(workers)}") as task:
        while True:
            found = {one["name"]: one for one in cluster.ask(Client.nodes) if one["pool"] == "webui"}
            waited = time.monotonic() - begin
            busy = [name for name in workers if is_at_work(found.get(name), waited)]
            if not busy:
                task.finish("idle")
                return
            if waited > seconds:
                raise Unhealthy(f"{', '.join(busy)}: still at work after {seconds:.0f} s")
            task.update(f"{', '.join(busy)} at work")
            time.sleep(POLL_SECONDS)


def is_at_work(node: Mapping[str, Any] | None, ordered_seconds: float) -> bool:
    """Whether a worker that was ordered out of work so long ago may still have some.

    One that is idle may have a job on its way that it asked for before it heard the order, and what it has told before
    the order says nothing of the time since.
    """
    if node is None or node["state"] in (None, "stopped"):
        return False
    if node["state"] in ("running", "draining"):
        return True
    if node["heartbeat_age_seconds"] > SILENT_SECONDS:
        return False
    has_heard = node["state"] in OUT_OF_WORK and node["heartbeat_age_seconds"] < ordered_seconds
    return not has_heard or _has_visitors_runs(node)


def _has_visitors_runs(node: Mapping[str, Any]) -> bool:
    """Of its own pages, which its agent knows nothing of. Only where no new ones come: one that is kept up as the last
    one would never be without; and one that is gone has none."""
    return any(view["state"] == "DRAINING" and view["busy"] for view in node["seen_by"].values())


def why(cluster: Cluster, workers: Sequence[str]) -> list[Table | str]:
    """For each worker what is ordered, how each gateway sees it and since when, and the last events about it."""
    nodes, about = cluster.ask(lambda client: (client.nodes(), client.cluster()))
    found = {one["name"]: one for one in nodes if one["pool"] == "webui"}
    shown: list[Table | str] = []
    for name in workers:
        node = found.get(name)
        shown.append(f"[bold]{escape(name)}[/]: {_in_words(node)}")
        if node is not None:
            shown.append(_views(node))
        events = [one for one in about.get("events") or [] if one["worker"] == name]
        if events:
            shown.append(_events(events[-SHOWN_EVENTS:]))
    return shown


def _in_words(node: Mapping[str, Any] | None) -> str:
    if node is None or node["state"] is None:
        return "its agent has never been seen"
    order = node["order"]
    ordered = f"; {order['order']} ordered by {order['by']}" + (f": {order['reason']}" if order["reason"] else "")
    words = f"its agent is {node['state']}, last heard of {node['heartbeat_age_seconds']:.0f} s ago"
    return escape(words + (ordered if order else ""))


def _views(node: Mapping[str, Any]) -> Table:
    rows = Table(*(Column(name, overflow="fold") for name in ("gateway", "state", "since", "because")), box=None)
    for gateway, view in sorted(node["seen_by"].items()):
        rows.add_row(gateway, view["state"], f"{view['since_seconds']:.0f} s", escape(view["reason"]))
    if not node["seen_by"]:
        rows.add_row("none", "", "", "no gateway's controller has told anything in the last ten seconds")
    return rows


def _events(events: Sequence[Mapping[str, Any]]) -> Table:
    rows = Table(*(Column(name, overflow="fold") for name in ("at", "event", "because")), box=None)
    for one in events:
        moment = time.strftime("%H:%M:%S", time.localtime(one["at"]))
        rows.add_row(moment, escape(one["type"]), escape(one["reason"] or ""))
    return rows
