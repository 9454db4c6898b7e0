"""Words that several commands share, and what they are turned into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from generator.checks import check
from generator.errors import UserError
from generator.load import load
from generator.ops import cluster
from generator.plan import plan
from generator.planned import Plan
from generator.progress import Mode, Progress
from generator.secrets import STORE, Store

File = Annotated[Path, typer.Argument(help="The cluster's description.")]
FileOption = Annotated[Path, typer.Option("--file", help="The cluster's description.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that receives one folder per host.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]
OnlyHost = Annotated[str | None, typer.Option("--host", help="Only this host.")]
Ssh = Annotated[str, typer.Option("--ssh", help="How other hosts are reached; their address is added.")]
DEFAULT_FILE = Path("cluster.yaml")
DEFAULT_OUT = Path("rendered")
DEFAULT_SSH = cluster.SSH


def plan_of(file: Path) -> Plan:
    """Raises `UserError` with every problem of the file at once."""
    loaded = load(file)
    problems = check(loaded)
    if problems:
        raise UserError(problems)
    return plan(loaded.cluster)


def store_of(file: Path) -> Store:
    return Store(file.resolve().parent / STORE)


def progress_for(as_json: bool) -> Progress:
    return Progress(Mode.JSON if as_json else Mode.AUTO)
