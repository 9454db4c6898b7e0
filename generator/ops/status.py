"""What runs, host by host, and what the cluster says of itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from rich.markup import escape
from rich.table import Column, Table

from generator import processes
from generator.errors import ToolError, Unhealthy
from generator.ops.client import Client
from generator.ops.cluster import ONE_SHOT, Place, is_well
from generator.planned import GatewayPlan, HostPlan
from generator.render import COMPOSE_FILE

PS_SECONDS = 20.0
T = TypeVar("T")


@dataclass(frozen=True)
class ServiceStatus:
    host: str
    service: str
    state: str
    health: str
    exit_code: int
    since: str
    one_shot: bool = False

    @property
    def well(self) -> bool:
        return is_well(self.state, self.health, self.exit_code, one_shot=self.one_shot)


@dataclass(frozen=True)
class Status:
    services: tuple[ServiceStatus, ...]
    unreachable: dict[str, str]
    """Host → why its engine could not be asked."""
    cluster: dict[str, Any] | None
    """Answer of `GET /api/v1/cluster`; None where no gateway answered."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """How the gateways see the nodes, as `GET /api/v1/nodes` has it."""

    @property
    def well(self) -> bool:
        return bool(self.services) and not self.unreachable and all(service.well for service in self.services)

    def as_dict(self) -> dict[str, Any]:
        return {"well": self.well, **asdict(self)}


def status(places: Sequence[Place], key: str | None, authority: Path | None = None) -> Status:
    """Ask every host's engine, and with `key` the first gateway that answers (`authority`: the cluster's CA)."""
    services: list[ServiceStatus] = []
    unreachable: dict[str, str] = {}
    for place in places:
        try:
            listing = processes.run(place.compose("ps", "--all", "--format", "json"), timeout=PS_SECONDS)
        except ToolError as error:
            unreachable[place.host.name] = str(error)
        else:
            there = parse_ps(place.host.name, listing)
            services += [*there, *missing(place, there)]
    cluster, nodes = _ask(places, key, authority) if key else (None, [])
    return Status(tuple(services), unreachable, cluster, nodes)


def missing(place: Place, there: Sequence[ServiceStatus]) -> list[ServiceStatus]:
    """What was rendered for a host and has no container: never started, removed, or new since the last `up`."""
    rendered = yaml.safe_load((place.folder / COMPOSE_FILE).read_bytes()) or {}
    services = rendered.get("services", {})
    names = services.keys() - {one.service for one in there}
    told = {name: "run `up`" + (", which says why" if "profiles" in services[name] else "") for name in names}
    return [ServiceStatus(place.host.name, name, "missing", "", 0, told[name]) for name in sorted(names)]


def parse_ps(host: str, listing: str) -> list[ServiceStatus]:
    """From `docker compose ps --format json`: one object a line, or (older versions) one array."""
    rows: Iterable[dict[str, Any]]
    rows = (
        json.loads(listing) if listing.startswith("[") else (json.loads(line) for line in listing.splitlines() if line)
    )
    found = [
        ServiceStatus(
            host,
            row["Service"],
            row["State"],
            row.get("Health", ""),
            row["ExitCode"],
            row.get("Status", ""),
            one_shot=f"{ONE_SHOT}=true" in row.get("Labels", "").split(","),
        )
        for row in rows
    ]
    return sorted(found, key=lambda one: one.service)


def _ask(
    places: Sequence[Place], key: str, authority: Path | None
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    try:
        return ask_gateways(places, key, authority, lambda client: (client.cluster(), client.nodes()))
    except Unhealthy:
        return None, []


def ask_gateways(
    places: Sequence[Place],
    key: str,
    authority: Path | None,
    question: Callable[[Client], T],
    *,
    timeout_seconds: float = 5.0,
) -> T:
    """The first gateway's answer; `Unhealthy` with what each one said where none has one."""
    said = []
    for place in places:
        if place.host.gateway is not None:
            try:
                with gateway_client(place.host, place.host.gateway, key, authority, timeout_seconds) as client:
                    return question(client)
            except (httpx.TransportError, Unhealthy) as error:
                said.append(f"{place.host.name}: {error or type(error).__name__}")
    raise Unhealthy("\n".join(["no gateway has an answer", *said]))


def gateway_client(
    host: HostPlan, gateway: GatewayPlan, key: str, authority: Path | None, timeout_seconds: float = 5.0
) -> Client:
    """A client of one host's own gateway. The cluster's authority vouches for the addresses; any other for the name."""
    url = gateway_url(host, gateway)
    if gateway.own_certificate or not gateway.tls:
        return Client(url, key, authority=authority, timeout_seconds=timeout_seconds)
    name = "" if gateway.server_name == "_" else gateway.server_name
    return Client(url, key, server_name=name, timeout_seconds=timeout_seconds)


def gateway_url(host: HostPlan, gateway: GatewayPlan) -> str:
    """Address of one host's own gateway, whatever the cluster's public name is."""
    where = host.address if gateway.bind == "0.0.0.0" else gateway.bind  # noqa: S104
    return f"https://{where}:{gateway.https_port}" if gateway.tls else f"http://{where}:{gateway.http_port}"


def table(result: Status) -> Table:
    columns = [Column(name, overflow="fold") for name in ("host", "service", "state", "health", "since")]
    rows = Table(*columns, box=None, pad_edge=False)
    for one in result.services:
        colour = "green" if one.well else "red"
        rows.add_row(one.host, one.service, f"[{colour}]{one.state}[/]", one.health, one.since)
    for host, why in result.unreachable.items():
        rows.add_row(host, "?", "[red]unreachable[/]", "", escape(why.splitlines()[-1]))
    return rows


def workers_table(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]] = ()) -> Table:
    """The workers as the queue knows them. `loaded`: what a worker has really loaded, code and model files in one
    checksum; one that differs from most paints other pictures, and the gateway keeps requests from it. `traffic`: how
    the gateways see it."""
    workers = cluster.get("workers") or []
    usual = usual_fingerprint(workers)
    seen = {one["name"]: one for one in nodes if one["pool"] == "webui"}
    columns = ("worker", "state", "traffic", "engine", "loaded")
    rows = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for one in workers:
        state = escape(str(one["state"])) if one.get("alive") else "silent"
        loaded = str(one.get("fingerprint") or "")
        told = escape(loaded[:12]) if loaded in ("", usual) else f"[red]{escape(loaded[:12])} differs[/]"
        traffic = escape(traffic_of(seen.get(one["name"], {})))
        rows.add_row(escape(str(one["name"])), state, traffic, escape(str(one.get("engine") or "")), told)
    return rows


def traffic_of(node: Mapping[str, Any]) -> str:
    """`UP`, or, where the gateways do not agree, `gpu-01: UP, gpu-02: DOWN`."""
    states = {gateway: str(view["state"]) for gateway, view in sorted(node.get("seen_by", {}).items())}
    if len(set(states.values())) == 1:
        return next(iter(states.values()))
    return ", ".join(f"{gateway}: {state}" for gateway, state in states.items())


def usual_fingerprint(workers: Sequence[Mapping[str, Any]]) -> str:
    """That of most workers that are alive (of equally many: the first in the alphabet); empty where none has one."""
    counts = Counter(str(one["fingerprint"]) for one in workers if one.get("alive") and one.get("fingerprint"))
    return min(counts, key=lambda fingerprint: (-counts[fingerprint], fingerprint), default="")
