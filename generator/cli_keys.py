"""`python -m generator keys …`: one function per command, as in `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from generator.cli_options import (
    DEFAULT_FILE,
    DEFAULT_OUT,
    DEFAULT_SSH,
    FileOption,
    Json,
    Out,
    Ssh,
    plan_of,
    progress_for,
    store_of,
)
from generator.console import console, say
from generator.errors import Unhealthy
from generator.keys import KeyRole
from generator.ops import cluster
from generator.planned import Plan
from generator.progress import Progress
from generator.secrets import API_KEYS, Store

keys_app = typer.Typer(
    no_args_is_help=True,
    help="Who may use the cluster: one API key for each person or program. A key counts within two seconds, and a "
    "revoked one no longer does; nothing is restarted.",
)
Name = Annotated[str, typer.Argument(help="Whose key it is: stands at their jobs, and in queue.user_weights.")]


@keys_app.command()
def add(
    name: Name,
    role: Annotated[
        KeyRole, typer.Option(help="user: own jobs only; operator: everybody's, and the nodes.")
    ] = KeyRole.USER,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    the_plan, progress = plan_of(file), progress_for(as_json)
    key = store_of(file).add_api_key(name, role)
    # Printed before anything else can fail: nobody could ever show it again.
    print(json.dumps({"name": name, "role": role.value, "key": key}) if as_json else key, flush=True)
    _spread(the_plan, store_of(file), out, ssh, progress)


@keys_app.command()
def revoke(
    name: Name, file: FileOption = DEFAULT_FILE, out: Out = DEFAULT_OUT, ssh: Ssh = DEFAULT_SSH, as_json: Json = False
) -> None:
    """Take a key back: the next request with it is refused. Jobs that were submitted with it stay."""
    the_plan, progress = plan_of(file), progress_for(as_json)
    store_of(file).revoke_api_key(name)
    _spread(the_plan, store_of(file), out, ssh, progress)
    print(json.dumps({"name": name, "revoked": True})) if as_json else say(f"the key of {name} is revoked")


@keys_app.command(name="list")
def list_keys(file: FileOption = DEFAULT_FILE, as_json: Json = False) -> None:
    """Whose keys there are. The generator's own, `operator`, is not among them."""
    keys = sorted(store_of(file).api_keys(), key=lambda key: key.name)
    if as_json:
        print(json.dumps([{"name": key.name, "role": key.role.value, "made": key.made} for key in keys]))
        return
    table = Table("name", "role", "made", "sha256 begins", box=None)
    for key in keys:
        table.add_row(key.name, key.role.value, key.made, key.digest[:12])
    console.print(table if keys else "no keys yet: `python -m generator keys add NAME`")


def _spread(the_plan: Plan, store: Store, out: Path, ssh: str, progress: Progress) -> None:
    """To every host that asks for keys; where nothing is rendered yet, `secrets` and `up` will do it."""
    if not all((out / host.name / "secrets" / API_KEYS).exists() for host in the_plan.hosts if host.api):
        progress.say("no host has its secrets yet; `python -m generator secrets` and `up` bring the keys there")
        return
    store.lay_out(the_plan, out)
    asked = [place for place in cluster.places(the_plan, out, ssh=ssh) if place.host.api]
    failed = cluster.renew(asked, progress)
    if failed:
        listed = "\n".join(failed)
        raise Unhealthy(f"not every host has the new list; `python -m generator up` there brings it\n{listed}")
