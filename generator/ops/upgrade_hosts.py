"""What an upgrade does to hosts and sees of them. Each step may be done twice: whoever goes on after an interruption
does the last one again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from generator import processes, tree
from generator.errors import ToolError, UserError
from generator.journal import Journal, journal_from
from generator.ops.cluster import PULL_SECONDS, Place, replace_services, restarts
from generator.ops.nodes import Cluster
from generator.ops.upgrade_orders import held_in
from generator.planned import Plan, WorkerPlan
from generator.progress import Progress
from generator.render import Sources, render_host, render_mixed
from generator.rollout import BOUNDS, Counts, Figures

JOURNAL = ".upgrade.json"
ALIVE_SECONDS = 5.0
AT_WORK = frozenset({"idle", "running", "draining"})
INSPECT_SECONDS = 30.0


@dataclass(frozen=True)
class Site:
    """The cluster that is upgraded, before and after."""

    file: Path
    old: Plan
    new: Plan
    out: Path
    places: Mapping[str, Place]
    running: Cluster
    sources: Sources

    def trees(self, journal: Journal) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        """The rendered folders as far as the journal says."""
        for host, files in render_mixed(self.old, self.new, journal.workers_ahead, self.sources):
            whole = host in journal.hosts_ahead
            yield host, render_host(self.new.cluster, self.new.by_name[host], self.sources) if whole else files

    def write(self, journal: Journal) -> None:
        tree.write(self.out, self.trees(journal))

    @property
    def workers(self) -> list[str]:
        return [worker.worker for host in self.new.hosts for worker in host.workers]

    def worker(self, name: str) -> tuple[Place, WorkerPlan]:
        for host in self.new.hosts:
            for worker in host.workers:
                if worker.worker == name:
                    return self.places[host.name], worker
        raise UserError(f"{name}, which the upgrade has begun with, is no longer in {self.file}")

    def services(self, name: str) -> list[str]:
        """Of a worker: its webui, unless that is somebody else's, and its agent."""
        place, worker = self.worker(name)
        rendered = services_there(place)
        return [service for service in (worker.webui, worker.agent) if service in rendered]


def services_there(place: Place) -> Collection[str]:
    listed = processes.run(place.compose("config", "--services"), timeout=INSPECT_SECONDS)
    return set(listed.split())


def read_journal(out: Path) -> Journal | None:
    try:
        return journal_from(json.loads((out / JOURNAL).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{out / JOURNAL}: damaged ({error}); delete it and run `generator up`") from error


def write_journal(out: Path, journal: Journal | None) -> None:
    """Durable before anything is done; None: the upgrade is over."""
    if journal is None:
        (out / JOURNAL).unlink(missing_ok=True)
    else:
        write_text(out / JOURNAL, json.dumps(journal.as_dict()))


def read_text(file: Path) -> str:
    """To the letter: line ends are the file's own."""
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def write_text(file: Path, text: str) -> None:
    """Whole or not at all, to the letter, with the mode that the file had."""
    temporary = file.with_name(f"{file.name}.part")
    with temporary.open("w", encoding="utf-8", newline="") as opened:
        if file.exists():
            os.fchmod(opened.fileno(), file.stat().st_mode & 0o777)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def fetch_images(site: Site, progress: Progress) -> None:
    """To every host, before anything changes; `UserError` names every image that a host lacks."""
    lacking: list[str] = []
    for host, place in site.places.items():
        with progress.task(f"images {host}") as task:
            images = images_of(render_host(site.new.cluster, site.new.by_name[host], site.sources))
            for image in images:
                task.update(image)
                if not _is_there(place, image) and not _pulled(site, place, image):
                    lacking.append(f"{host}: {image}")
            task.finish(f"{len(images)} there")
    if lacking:
        remedy = "build them there with `python -m generator images build --tag TAG`, or push them to images.registry"
        raise UserError("these images are missing: " + ", ".join(lacking) + f"; {remedy}")


def images_of(files: Mapping[str, bytes]) -> list[str]:
    """All that a host cannot do without; what has a profile is a vendor's."""
    services = yaml.safe_load(files["compose.yaml"])["services"]
    return sorted({service["image"] for service in services.values() if "profiles" not in service})


def _is_there(place: Place, image: str) -> bool:
    try:
        processes.run(place.docker("image", "inspect", "--format", "{{.Id}}", image), timeout=INSPECT_SECONDS)
    except ToolError as error:
        if "no such image" in error.stderr_tail.lower():
            return False
        raise
    return True


def _pulled(site: Site, place: Place, image: str) -> bool:
    if not site.new.cluster.images_from_registry:
        return False
    try:
        processes.run(place.docker("pull", "--quiet", image), timeout=PULL_SECONDS)
    except ToolError:
        return False
    return True


def replace_worker(site: Site, name: str, progress: Progress, *, seconds: int) -> None:
    """One worker as its host's folder has it now."""
    place, _ = site.worker(name)
    with progress.task(f"replace {name}") as task:
        replace_services(place, site.services(name), task.update, seconds=seconds)
        task.finish("healthy")


def counts_of(nodes: Sequence[Mapping[str, Any]], workers: Collection[str]) -> Counts:
    """What these workers have done so far, by all gateways together."""
    total = Counts()
    for node in nodes:
        if node["pool"] == "webui" and node["name"] in workers:
            done, failed = node["done"] or 0, node["failed"] or 0
            total = total + Counts(jobs=done + failed, failed_jobs=failed, pace_sum=node["pace_sum"] or 0.0)
            for view in node["seen_by"].values():
                total = total + _requests(view["requests"])
    return total


def _requests(numbers: Mapping[str, Any]) -> Counts:
    passed, failed = int(numbers.get("passed", 0)), int(numbers.get("failed", 0))
    within = tuple(int(one) for one in numbers.get("within", ()))
    same = tuple(numbers.get("bounds", ())) == BOUNDS and len(within) == len(BOUNDS)
    return Counts(passed + failed, failed, within if same else (0,) * len(BOUNDS))


def sick_of(nodes: Sequence[Mapping[str, Any]], workers: Sequence[str]) -> tuple[str, ...]:
    """Those that do not work, or get no visitors, each with why. Of those that are to do neither nothing is said."""
    held = held_in(nodes)
    found = {node["name"]: node for node in nodes if node["pool"] == "webui"}
    return tuple(f"{name}: {why}" for name in workers if name not in held and (why := _fault(found.get(name))))


def _fault(node: Mapping[str, Any] | None) -> str:
    if node is None or node["state"] is None:
        return "its agent is not there"
    if node["heartbeat_age_seconds"] > ALIVE_SECONDS:
        return f"its agent has been silent for {node['heartbeat_age_seconds']:.0f} s"
    if node["state"] not in AT_WORK:
        return f"its agent is {node['state']}"
    views = node["seen_by"]
    down = ((gateway, view) for gateway, view in views.items() if view["state"] != "UP")
    bad = [f"{view['state']} for {gateway}: {view['reason']}" for gateway, view in down]
    return "; ".join(bad) if views else "no gateway sees it"


def restarts_of(site: Site, workers: Sequence[str]) -> int:
    total = 0
    for name in workers:
        place, _ = site.worker(name)
        total += restarts(place, site.services(name))
    return total


def figures_of(
    site: Site, nodes: Sequence[Mapping[str, Any]], workers: Sequence[str], since: Counts, restarts_before: int
) -> Figures:
    done = counts_of(nodes, workers) - since
    return done.figures(sick_of(nodes, workers), max(0, restarts_of(site, workers) - restarts_before))
