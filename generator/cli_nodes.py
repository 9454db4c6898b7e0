"""`drain`, `undrain`, `quarantine`: one function per command, as in `cli`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from generator.cli_options import DEFAULT_FILE, DEFAULT_OUT, DEFAULT_SSH, FileOption, Json, Out, Ssh, plan_of, store_of
from generator.cli_options import progress_for as _progress
from generator.console import console, say
from generator.ops import cluster, nodes
from generator.ops.client import Client

Node = Annotated[str, typer.Argument(help="A worker, like gpu-02/0, or a host: all of its workers.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever asks `status --why`.")]
For = Annotated[float | None, typer.Option("--for", metavar="SECONDS", help="It ends by itself after so long.")]
Force = Annotated[bool, typer.Option("--force", help="Although no other node would be left to work.")]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Return when nothing runs there any more.")]


def drain(
    node: Node,
    reason: Reason = "",
    seconds: For = None,
    force: Force = False,
    wait: Wait = 0.0,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Take a node out of work softly: it ends the job it has, and takes no other; new visitors go elsewhere."""
    order = _order("drain", reason, seconds, force)
    running, workers = _reach(node, file, out, ssh)
    nodes.give(running, workers, order)
    if wait > 0:
        nodes.wait_until_idle(running, workers, wait, _progress(as_json))
    _tell(workers, "drained" if wait > 0 else "draining", as_json)


def quarantine(
    node: Node,
    reason: Reason = "",
    seconds: For = None,
    force: Force = False,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Take a node out of work at once: its job goes on elsewhere, its visitors' connections are closed."""
    running, workers = _reach(node, file, out, ssh)
    nodes.give(running, workers, _order("quarantine", reason, seconds, force))
    _tell(workers, "quarantined", as_json)


def undrain(
    node: Node,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Put a node back to work, whoever has taken it out. Its failures so far are forgotten."""
    running, workers = _reach(node, file, out, ssh)
    nodes.take_back(running, workers)
    _tell(workers, "back to work", as_json)


def tell_why(node: str, file: Path, out: Path, ssh: str, as_json: bool) -> None:
    """What `status --why NODE` says."""
    running, workers = _reach(node, file, out, ssh)
    if as_json:
        print(json.dumps([one for one in running.ask(Client.nodes) if one["name"] in workers]))
        return
    for part in nodes.why(running, workers):
        console.print(part)


def _reach(node: str, file: Path, out: Path, ssh: str) -> tuple[nodes.Cluster, list[str]]:
    the_plan, store = plan_of(file), store_of(file)
    workers = nodes.workers_called(the_plan, node)
    key = store.read()["api_key"].decode()
    return nodes.Cluster(cluster.places(the_plan, out, ssh=ssh), key, store.authority), workers


def _order(kind: str, reason: str, seconds: float | None, force: bool) -> dict[str, Any]:
    return {"order": kind, "reason": reason, "seconds": seconds, "force": force}


def _tell(workers: Sequence[str], what: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"workers": list(workers), "state": what}))
    else:
        say(f"{', '.join(workers)}: {what}")
