"""`python -m generator errors` and `trace`: why jobs fail, and one job's whole life. One function per command."""

from __future__ import annotations

import json
from typing import Annotated

import typer

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
from generator.ops import cluster
from generator.ops import errors as errors_ops
from generator.ops import trace as trace_ops
from generator.ops.elastic_logs import Access
from generator.ops.evidence import gather
from generator.ops.log_source import log_sources, stores
from generator.secrets import Store


def errors(
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    days: Annotated[int, typer.Option(min=1, max=31, help="How far to look back.")] = 7,
    as_json: Json = False,
) -> None:
    """Which failures there were, how often and on which GPUs, what they have in common, and what to do."""
    places, progress, store = cluster.places(plan_of(file), out), progress_for(as_json), store_of(file)
    with progress.task("comparing failures") as task:
        answer = errors_ops.ask(places, store.read()["api_key"].decode(), store.authority, days)
        task.finish(f"{answer['looked_at']['jobs']} jobs")
    evidence = gather(answer, stores(places, _access(store)), progress)
    if as_json:
        print(json.dumps(evidence.put_into(answer)))
        return
    if answer["kinds"]:
        console.print(errors_ops.table(answer))
    missing = [f"missing: {text}" for text in evidence.missing]
    for line in [*errors_ops.findings(answer, evidence), "", *errors_ops.summary(answer), *missing]:
        say(line)


def trace(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    file: FileOption = DEFAULT_FILE,
    out: Out = DEFAULT_OUT,
    ssh: Ssh = DEFAULT_SSH,
    as_json: Json = False,
) -> None:
    """One job's whole life in order of time: from the queue, and from the logs of every service on every host."""
    trace_ops.time_of(job)
    places, progress, store = cluster.places(plan_of(file), out, ssh=ssh), progress_for(as_json), store_of(file)
    key = store.read()["api_key"].decode()
    result = trace_ops.trace(job, places, log_sources(places, _access(store)), key, store.authority, progress)
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    console.print(trace_ops.table(result) if result.entries else f"nobody knows anything of {job}")
    for text in result.missing:
        say(f"missing: {text}")


def _access(store: Store) -> Access | None:
    """To what is kept. Without an authority of the cluster's own nothing is."""
    return Access(store.read()["logs_password"].decode(), store.authority) if store.authority else None
