"""`upgrade`: one function, as in `cli`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from generator import tree
from generator.checks import check
from generator.cli_options import DEFAULT_FILE, DEFAULT_OUT, DEFAULT_SSH, FileOption, Json, Out, Ssh, store_of
from generator.cli_options import progress_for as _progress
from generator.console import say
from generator.errors import Unhealthy, UserError
from generator.journal import Journal, Order
from generator.load import load, load_text
from generator.ops import cluster, nodes, shared_secrets
from generator.ops.client import Client
from generator.ops.upgrade import Outcome, Upgrade
from generator.ops.upgrade_hosts import Site, read_journal, read_text
from generator.ops.upgrade_orders import orders_in
from generator.ops.upgrade_plan import plan_text
from generator.plan import plan
from generator.release_text import with_release_in
from generator.render import render
from generator.rollout import Gate, Release, release_of, with_release
from generator.sources import read_sources

Image = Annotated[str | None, typer.Option("--image", metavar="TAG", help="The new tag of all images.")]
Model = Annotated[str | None, typer.Option("--model", metavar="FILE", help="The new checkpoint.")]
Motion = Annotated[str | None, typer.Option("--motion-module", metavar="FILE", help="The new motion module.")]
Dwell = Annotated[float, typer.Option("--dwell", metavar="SECONDS", help="How long each stage is watched at least.")]
Longest = Annotated[float, typer.Option("--longest", metavar="SECONDS", help="And at most, for want of requests.")]
Minimum = Annotated[int, typer.Option("--minimum", help="Requests and jobs that a stage has to see.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")]
Back = Annotated[bool, typer.Option("--back", help="End an interrupted upgrade where it began.")]


def upgrade(
    image: Image = None,
    model: Model = None,
    motion_module: Motion = None,
    dwell: Dwell = Gate.dwell_seconds,
    longest: Longest = Gate.longest_seconds,
    minimum: Minimum = Gate.minimum,
    dry_run: DryRun = False,
    back: Back = False,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Bring the running cluster to other images or models, one worker at a time, watched, and back by itself.

    First one worker with a tenth of the new sessions, then a quarter of all, half, the rest: each stage has to be as
    good as the others (errors, p95, failed jobs, health) before the next. An upgrade that was interrupted goes on when
    it is called again without a release, or ends where it began with --back.
    """
    progress = _progress(as_json)
    wanted = {"tag": image, "checkpoint": model, "motion_module": motion_module}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if dry_run:
        site, journal = _prepare(file, out, ssh, changes)
        say(plan_text(site, journal, _standing(site)))
        return
    gate = replace(Gate(), dwell_seconds=dwell, longest_seconds=max(dwell, longest), minimum=minimum)
    with tree.alone(out, "upgrade"):  # from before the journal is read
        site, journal = _prepare(file, out, ssh, changes)
        shared_secrets.refuse_one_by_one(list(site.places.values()))
        outcome = Upgrade(site, journal.going_back("asked for") if back else journal, gate, progress).run()
    _tell(outcome, as_json)


def _prepare(file: Path, out: Path, ssh: str, changes: dict[str, str]) -> tuple[Site, Journal]:
    loaded, begun = load(file), read_journal(out)
    problems = check(loaded)
    if problems:
        raise UserError(problems)
    now = release_of(loaded.cluster)
    journal = _journal(begun, now, changes)
    new = journal.new
    edited = load_text(with_release_in(read_text(file), now, new, str(file)), file)
    problems = check(edited)
    if problems:
        raise UserError(problems)
    store, sources = store_of(file), read_sources()
    old, the_new = (plan(with_release(loaded.cluster, release)) for release in (journal.old, new))
    if begun is None and (drift := tree.diff(out, render(old, sources))):
        raise UserError(f"{out} is not what {file} says ({len(drift)} files differ); run `render` and `up` first")
    places = {place.host.name: place for place in cluster.places(old, out, ssh=ssh)}
    key = store.read()["api_key"].decode()
    running = nodes.Cluster(list(places.values()), key, store.authority)
    return Site(file, old, the_new, out, places, running, sources), journal


def _standing(site: Site) -> dict[str, Order]:
    """A plan can be made without the cluster, too."""
    try:
        return orders_in(site.running.ask(Client.nodes))
    except Unhealthy as error:
        say(f"note: nobody tells which workers are out of work: {error}")
        return {}


def _journal(begun: Journal | None, now: Release, changes: dict[str, str]) -> Journal:
    """The upgrade that is asked for, or the one that was interrupted."""
    if begun is None:
        if not changes:
            raise UserError("say what to upgrade to: --image TAG, --model FILE or --motion-module FILE")
        if replace(now, **changes) == now:
            raise UserError(f"the cluster has {now} already")
        return Journal(now, replace(now, **changes))
    if changes and replace(begun.old, **changes) != begun.new:
        hint = "call `upgrade` without a release to go on with it, or with --back to end it where it began"
        raise UserError(f"an upgrade from {begun.old} to {begun.new} was interrupted; {hint}")
    return begun


def _tell(outcome: Outcome, as_json: bool) -> None:
    journal = outcome.journal
    if as_json:
        about = {"from": str(journal.old), "to": str(journal.new), "seconds": round(outcome.seconds, 1)}
        print(json.dumps({**about, "failure": outcome.failure, "done": not outcome.failure}))
    if outcome.failure:
        raise Unhealthy(f"the cluster runs {journal.old} as before: {outcome.failure}")
    if not as_json:
        say(f"the cluster runs {journal.new}, after {outcome.seconds:.0f} s")
