"""`python -m generator models …`: one function per command, as in `cli`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from generator.cli_options import DEFAULT_FILE, FileOption, Json, progress_for
from generator.console import console, say
from generator.errors import Unhealthy, UserError
from generator.load import Loaded, load
from generator.model import ModelKind
from generator.models_lock import load_lock, mismatches, used_places, wrong_address
from generator.ops import models as models_ops
from generator.ops.model_add import Addition
from generator.ops.model_add import add as add_model
from generator.ops.model_folder import find_folder
from generator.ops.model_store import Finding
from generator.ops.source import Limits

models_app = typer.Typer(
    no_args_is_help=True,
    help="Bring the model files of [bold]models.lock.yaml[/] to the workers, and hold the folder against it.",
)

Names = Annotated[list[str] | None, typer.Argument(help="Models, as NAME or KIND/NAME; all if none is named.")]
Lock = Annotated[Path, typer.Option("--lock", help="What the models must be.")]
Dir = Annotated[
    Path | None, typer.Option("--dir", help="The models folder; default: where cluster.yaml's storage has it.")
]
Stall = Annotated[float, typer.Option("--stall-seconds", min=0.1, help="A source silent this long is asked again.")]
DEFAULT_LOCK = Path("models.lock.yaml")


@models_app.command()
def pull(
    names: Names = None,
    lock: Lock = DEFAULT_LOCK,
    folder: Dir = None,
    file: FileOption = DEFAULT_FILE,
    mirror: Annotated[
        list[str] | None, typer.Option("--mirror", metavar="URL", help="Asked first, as URL/KIND/NAME.safetensors.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=2, help="Downloads at a time.")] = models_ops.MOST_AT_ONCE,
    stall_seconds: Stall = Limits.stall_seconds,
    as_json: Json = False,
) -> None:
    """Fetch what is missing or differs. A download that broke off, or was killed, goes on where it stopped."""
    loaded = load_lock(lock)
    for url in mirror or ():
        if wrong := wrong_address(url):
            raise UserError(f"--mirror: {wrong}")
    store = find_folder(folder, file, write=True)
    results = models_ops.pull(
        store,
        loaded,
        progress_for(as_json),
        names=names or (),
        mirrors=mirror or (),
        parallel=parallel,
        limits=Limits(stall_seconds=stall_seconds),
    )
    if as_json:
        print(json.dumps({"folder": str(store.folder), "models": [models_ops.as_dict(one) for one in results]}))
    else:
        states = [one.state for one in results]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        say(f"{store.folder}: {counts or 'the lock names no models'}")
    models_ops.raise_failures(results)


@models_app.command()
def verify(
    lock: Lock = DEFAULT_LOCK,
    folder: Dir = None,
    file: FileOption = DEFAULT_FILE,
    allow_extra: Annotated[bool, typer.Option("--allow-extra", help="Other files may lie there, too.")] = False,
    as_json: Json = False,
) -> None:
    """Read every model and compare it with the lock, and the lock with cluster.yaml; exit code 2 if they differ."""
    loaded = load_lock(lock)
    store = find_folder(folder, file, write=False)
    cluster = _cluster(file)
    used = used_places(cluster) if cluster else ()
    findings = models_ops.verify(store, loaded, progress_for(as_json), allow_extra=allow_extra, used=used)
    differing = [str(problem) for problem in mismatches(cluster, loaded)] if cluster else []
    if as_json:
        _print_findings(findings, well=not differing and all(one.well for one in findings), cluster=differing)
    else:
        console.print(models_ops.table(findings, loaded))
        for line in differing:
            say(line)
    if differing or not all(one.well for one in findings):
        raise typer.Exit(Unhealthy.exit_code)


@models_app.command(name="list")
def list_models(
    lock: Lock = DEFAULT_LOCK, folder: Dir = None, file: FileOption = DEFAULT_FILE, as_json: Json = False
) -> None:
    """Every model with its size and whether it is there. Quick: contents are not read, `verify` does."""
    loaded = load_lock(lock)
    findings = models_ops.survey(find_folder(folder, file, write=False), loaded)
    if as_json:
        _print_findings(findings)
    else:
        console.print(models_ops.table(findings, loaded))


@models_app.command()
def add(
    origin: Annotated[str, typer.Argument(metavar="FILE|URL", help="A .safetensors file, or where to fetch it.")],
    kind: Annotated[ModelKind, typer.Option("--kind", help="What it is.")],
    name: Annotated[str | None, typer.Option("--name", help="Its name; default: the file's.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Where others can fetch a FILE.")] = None,
    license_note: Annotated[str | None, typer.Option("--license", help="A note for people.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of the model of this name.")] = False,
    lock: Lock = DEFAULT_LOCK,
    folder: Dir = None,
    file: FileOption = DEFAULT_FILE,
    as_json: Json = False,
) -> None:
    """Put a model into the folder and its size and sha256 into the lock, whose comments stay."""
    addition = Addition(origin, kind, name, source, license_note, replace)
    model = add_model(find_folder(folder, file, write=True), lock, addition, progress_for(as_json))
    if as_json:
        print(model.model_dump_json())
    else:
        say(f"{lock}: {model.place}, {models_ops.show_bytes(model.size)}, sha256 {model.sha256}")


@models_app.command()
def prune(
    lock: Lock = DEFAULT_LOCK,
    folder: Dir = None,
    file: FileOption = DEFAULT_FILE,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only shown.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what neither the lock nor cluster.yaml names: other models, and what pulls have left."""
    load_lock(lock)
    cluster = _cluster(file)
    if yes and cluster is None:
        raise UserError(f"{file} is not here, and what it uses must stay; name it with --file")
    used = used_places(cluster) if cluster else ()
    found = models_ops.prune(find_folder(folder, file, write=True), lambda: load_lock(lock), remove=yes, used=used)
    if as_json:
        print(json.dumps({"removed": yes, "files": [models_ops.as_dict(one) for one in found]}))
        return
    for one in found:
        say(f"{'removed' if yes else 'extra'} {one.place} ({models_ops.show_bytes(one.size)})")
    if found and not yes:
        say("nothing was removed: add --yes")


def _cluster(file: Path) -> Loaded | None:
    """None where there is none. One that was named is meant."""
    if file.exists() or file != DEFAULT_FILE:
        return load(file)
    return None


def _print_findings(findings: Sequence[Finding], **more: object) -> None:
    print(json.dumps({**more, "models": [models_ops.as_dict(one) for one in findings]}))
