"""The command line: one function per command, which reads its words, calls one operation and prints the answer."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from generator import __version__, cli_nodes, cli_upgrade, tree
from generator.cli_causes import errors, trace
from generator.cli_keys import keys_app
from generator.cli_models import models_app
from generator.cli_options import DEFAULT_FILE, DEFAULT_OUT, DEFAULT_SSH, File, FileOption, Json, OnlyHost, Out, Ssh
from generator.cli_options import plan_of as _plan
from generator.cli_options import store_of as _store
from generator.console import console
from generator.console import say as _say
from generator.docker import Engine
from generator.errors import GeneratorError, Unhealthy, UserError
from generator.growth import refuse_to_lose_the_queue
from generator.ops import backup as backup_ops
from generator.ops import boot, cluster, shared_secrets
from generator.ops import demo as demo_ops
from generator.ops import doctor as doctor_ops
from generator.ops import images as images_ops
from generator.ops import init as init_ops
from generator.ops import status as status_ops
from generator.ops.engine import ensure_engine
from generator.planned import Plan
from generator.progress import Mode, Progress
from generator.render import render as render_plan
from generator.secrets import logs_names, monitoring_names, redis_names
from generator.sources import ROOT, read_sources

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn one [bold]cluster.yaml[/] into one folder per host, and run it.\n\n"
    "Start with [bold]init[/], edit the file, then [bold]check[/], [bold]secrets[/], [bold]render[/] and [bold]up[/]; "
    "or see everything at work on this machine with [bold]demo[/].\n\n"
    "Exit codes: 0 ok, 1 something for you to put right, 2 drift or unhealthy, 3 our bug.",
)
images_app = typer.Typer(no_args_is_help=True, help="Build and push the container images.")
secrets_app = typer.Typer(help="Make the cluster's secrets (once) and lay them out for the hosts.")
demo_app = typer.Typer(help="See it work: a cluster on this machine, a job, a killed worker, a video.")
app.add_typer(images_app, name="images")
app.add_typer(secrets_app, name="secrets")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.add_typer(demo_app, name="demo")
for command in (cli_nodes.drain, cli_nodes.undrain, cli_nodes.quarantine, cli_upgrade.upgrade):
    app.command()(command)

DEFAULT_DEMO = Path("demo")


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def init(
    file: File = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented cluster.yaml to start from."""
    init_ops.init(file, force=force)
    _say(f"{file} written: change the hosts, then run `python -m generator check {shlex.quote(str(file))}`")


@app.command()
def check(file: File = DEFAULT_FILE) -> None:
    """Report every problem in cluster.yaml at once, as file:line: path: value: what to do."""
    the_plan = _plan(file)
    for notice in the_plan.notices:
        _say(f"note: {notice}")
    workers = sum(len(host.workers) for host in the_plan.hosts)
    _say(f"{file}: {len(the_plan.hosts)} hosts, {workers} workers: no problem")


@app.command()
def render(file: File = DEFAULT_FILE, out: Out = DEFAULT_OUT) -> None:
    """Write one self-contained folder per host: compose.yaml and the configuration it mounts."""
    the_plan = _plan(file)
    progress = Progress()
    with tree.alone(out, "render") if out.is_dir() else nullcontext(), progress.task("render") as task:
        left_behind = refuse_to_lose_the_queue(the_plan, out)
        changes = tree.write(out, render_plan(the_plan, read_sources()))
        task.finish(f"{len(the_plan.hosts)} hosts in {out}, {len(changes)} files changed")
    for notice in (*the_plan.notices, *([left_behind] if left_behind else [])):
        progress.warn(notice)
    for change in changes:
        _say(f"{change.kind.value:>8} {out / change.path}")
    for host in tree.hosts_gone(changes):
        remedy = f"end it there with `{boot.farewell(the_plan.cluster.name, host)}`"
        progress.warn(f"host {host} is no longer in {file}, but what runs on it goes on, also after a reboot: {remedy}")


@app.command()
def diff(file: File = DEFAULT_FILE, out: Out = DEFAULT_OUT, as_json: Json = False) -> None:
    """Show what a render would change; exit code 2 if anything."""
    changes = tree.diff(out, render_plan(_plan(file), read_sources()))
    if as_json:
        print(json.dumps([{"kind": change.kind.value, "path": change.path} for change in changes]))
    else:
        for change in changes:
            for line in change.lines():
                _say(line)
    if changes:
        raise typer.Exit(Unhealthy.exit_code)


@secrets_app.callback(invoke_without_command=True)
def secrets(context: typer.Context, file: FileOption = DEFAULT_FILE, out: Out = DEFAULT_OUT) -> None:
    """Make what is missing, beside cluster.yaml, and lay it out in every rendered folder for the containers' user."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
    else:
        the_plan = _plan(file)
        made = _make_secrets(the_plan, file)
        _store(file).lay_out(the_plan, out)
        _say(f"made {', '.join(made)}" if made else "all secrets exist")


@secrets_app.command()
def rotate(name: str, file: FileOption = DEFAULT_FILE, out: Out = DEFAULT_OUT) -> None:
    """Replace one secret, lay it out again and say what has to be restarted."""
    the_plan = _plan(file)
    _store(file).rotate(name)
    _store(file).lay_out(the_plan, out)
    _say(f"{name} replaced; `python -m generator up` makes the services anew that read it")


@app.command()
def up(
    file: File = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    host: OnlyHost = None,
    ssh: Ssh = DEFAULT_SSH,
    recreate: Annotated[bool, typer.Option("--recreate", help="Recreate every container, changed or not.")] = False,
) -> None:
    """Start every host (this machine directly, others through ssh) and wait until all is healthy."""
    the_plan, progress = _plan(file), Progress()
    targets = cluster.places(the_plan, out, only=host, ssh=ssh)
    with tree.alone(out, "up"):
        if _store(file).folder.exists():
            for name in _make_secrets(the_plan, file):
                progress.say(f"{name} made anew")
            _store(file).lay_out(the_plan, out)
        shared_secrets.refuse_one_by_one(cluster.places(the_plan, out, ssh=ssh))
        cluster.up(targets, progress, recreate=recreate)
        boot.settle(targets, progress)


@app.command()
def down(
    file: File = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    host: OnlyHost = None,
    ssh: Ssh = DEFAULT_SSH,
    volumes: Annotated[bool, typer.Option("--volumes", help="Also delete the queue, the jobs and the models.")] = False,
) -> None:
    """Stop and remove the containers. Data stays unless --volumes is given."""
    targets, progress = cluster.places(_plan(file), out, only=host, ssh=ssh), Progress()
    with tree.alone(out, "down"):
        boot.remove(targets, progress)
        cluster.down(targets, progress, volumes=volumes)


@app.command()
def status(
    file: File = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    host: OnlyHost = None,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
    why: Annotated[str | None, typer.Option("--why", metavar="NODE", help="Why a node is in or out of work.")] = None,
) -> None:
    """Every service and what the cluster says of itself; exit code 2 if something is not well."""
    if why is not None:
        cli_nodes.tell_why(why, file, out, ssh, as_json)
        return
    store = _store(file)
    key = store.read()["api_key"].decode() if store.folder.exists() else None
    result = status_ops.status(cluster.places(_plan(file), out, only=host, ssh=ssh), key, store.authority)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        console.print(status_ops.table(result))
        if result.cluster:
            console.print(status_ops.workers_table(result.cluster, result.nodes))
            console.print_json(data=result.cluster)
    if not result.well:
        raise typer.Exit(Unhealthy.exit_code)


@app.command()
def logs(
    services: Annotated[list[str] | None, typer.Argument(help="Services; all if none is named.")] = None,
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    host: OnlyHost = None,
    ssh: Ssh = DEFAULT_SSH,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    lines: Annotated[int, typer.Option("--tail")] = 100,
) -> None:
    """The services' logs."""
    found = cluster.places(_plan(file), out, only=host, ssh=ssh)
    if follow and len(found) > 1:
        raise UserError(f"--follow follows one host: add --host, one of: {', '.join(p.host.name for p in found)}")
    for place in found:
        for line in cluster.logs(place, services or [], follow=follow, lines=lines):
            print(line, flush=True)


app.command()(errors)
app.command()(trace)


@app.command()
def backup(
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    output: Annotated[Path | None, typer.Option("--output", help="The backup's file.")] = None,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """Copy the running queue (jobs waiting, running, done and dead; no videos) into one file."""
    the_plan = _plan(file)
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    target = output or Path(f"{the_plan.cluster.name}-{moment}.tar")
    progress = Progress(Mode.JSON if as_json else Mode.AUTO)
    password = _store(file).read()["redis_replica_password"]
    manifest = backup_ops.backup(cluster.places(the_plan, out, ssh=ssh), password, target, progress)
    print(json.dumps({"file": str(target), **asdict(manifest)})) if as_json else _say(str(target))


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="What `backup` has written.")],
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    force: Annotated[bool, typer.Option("--force", help="Replace the queue of a running cluster.")] = False,
    as_json: Json = False,
) -> None:
    """Put a backup in place of the queue and start Redis with it; what came later is gone."""
    progress = Progress(Mode.JSON if as_json else Mode.AUTO)
    targets = cluster.places(_plan(file), out, ssh=ssh)
    with tree.alone(out, "restore"):
        counts = backup_ops.restore(targets, source, progress, force=force)
    if as_json:
        print(json.dumps({"file": str(source), "counts": counts}))
    else:
        _say(", ".join(f"{number} {name}" for name, number in counts.items()) + "; `python -m generator up` goes on")


@app.command()
def doctor(
    install: Annotated[bool, typer.Option("--install", help="Install and start a missing Docker engine.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has and lacks; with --install, put the engine right."""
    if install:
        ensure_engine(install=True, progress=Progress())
    checks = doctor_ops.run_checks()
    if as_json:
        print(json.dumps([asdict(one) for one in checks]))
    else:
        console.print(doctor_ops.table(checks))
    if any(one.verdict == "fail" for one in checks):
        raise typer.Exit(Unhealthy.exit_code)


@images_app.command()
def build(
    only: Annotated[list[str] | None, typer.Argument(help="Images; all that the demo needs if none is named.")] = None,
    tag: Annotated[str, typer.Option(help="Tag of the images.")] = __version__,
    push: Annotated[str | None, typer.Option(metavar="REGISTRY", help="Push to this registry after building.")] = None,
    torch: Annotated[str, typer.Option(help="Source of torch for webui-cpu: auto, wheel, index or debian.")] = "auto",
    torch_index: Annotated[str | None, typer.Option(help="Package index that serves torch.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Debian mirror; default: this machine's own.")] = None,
    jobs: Annotated[int, typer.Option(help="Builds at a time.")] = 2,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="All anew: with today's Debian fixes, from the mirror that is named.")
    ] = False,
) -> None:
    """Build the images; those whose inputs have not changed are left alone."""
    progress = Progress()
    engine = ensure_engine(install=False, progress=progress)
    images_ops.build_images(
        engine,
        ROOT,
        tag=tag,
        only=tuple(only or ()),
        push=push,
        torch=torch,
        torch_index=torch_index,
        mirror=mirror,
        jobs=jobs,
        refresh=refresh,
        progress=progress,
    )


@demo_app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Folder of the demo.")] = DEFAULT_DEMO,
    name: Annotated[str, typer.Option("--name", help="Compose project; another for a second demo.")] = demo_ops.NAME,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave it running afterwards.")] = True,
    install: Annotated[bool, typer.Option("--install/--no-install", help="Install a missing Docker engine.")] = True,
    as_json: Json = False,
) -> None:
    """Bring a cluster up on this machine, kill the worker that holds a job, and get the video all the same."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    progress = Progress(Mode.JSON if as_json else Mode.AUTO)
    engine = ensure_engine(install=install, progress=progress)
    the_demo = demo_ops.Demo(folder.resolve())
    try:
        result = demo_ops.run(the_demo, engine, progress, name)
    except BaseException:
        if not keep:
            with suppress(GeneratorError):  # what went wrong first is told
                demo_ops.stop(the_demo, engine, progress)
        raise
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        _say(demo_ops.summary(result, folder, keep=keep))
    if not keep:
        demo_ops.stop(the_demo, engine, progress)


@demo_app.command(name="down")
def demo_down(folder: Annotated[Path, typer.Option("--dir", help="Folder of the demo.")] = DEFAULT_DEMO) -> None:
    """Remove the demo: containers, networks, volumes, secrets and videos. The images stay."""
    demo_ops.remove(demo_ops.Demo(folder.resolve()), Engine(), Progress())


def _refuse_options_before(context: typer.Context) -> None:
    """`demo --dir X down` would go on with the default folder, and remove another demo than the one named."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [f"--{name.replace('_', '-')}" for name, source in sources.items() if source and source.name != "DEFAULT"]
    if given:
        command = f"{context.info_name} {context.invoked_subcommand}"
        raise UserError(f"{given[0].replace('--folder', '--dir')}: options go behind the command: `{command} …`")


def _make_secrets(the_plan: Plan, file: Path) -> list[str]:
    return _store(file).create_missing(
        _server_names(the_plan),
        tls=_own_tls(the_plan),
        redis=redis_names(the_plan),
        monitoring=monitoring_names(the_plan),
        logs=logs_names(the_plan),
    )


def _server_names(the_plan: Plan) -> tuple[str, ...]:
    """What a client may call the gateways: the server name first, then every gateway's address."""
    gateways = [host for host in the_plan.hosts if host.gateway]
    names = [host.gateway.server_name for host in gateways if host.gateway and host.gateway.server_name != "_"]
    return tuple(dict.fromkeys([*names, *the_plan.addresses, *(host.address for host in gateways), "localhost"]))


def _own_tls(the_plan: Plan) -> bool:
    return any(host.gateway.own_certificate for host in the_plan.hosts if host.gateway)
