"""Upgrades of a cluster that is only made believe: what its hosts would run is read from what was rendered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import yaml

from generator.errors import Unhealthy, UserError
from generator.journal import Journal
from generator.ops import nodes, upgrade, upgrade_hosts
from generator.ops.client import Client
from generator.ops.cluster import Place
from generator.ops.nodes import Cluster
from generator.ops.upgrade import Outcome, Upgrade
from generator.ops.upgrade_hosts import Site, read_journal
from generator.plan import plan
from generator.progress import Mode, Progress
from generator.rollout import Gate, release_of, with_release
from generator.sources import read_sources
from tests.unit.generator.clusters import three_hosts

T = TypeVar("T")
BEFORE = three_hosts()
OLD = release_of(BEFORE)
NEW = replace(OLD, tag="9.9")
TEXT = f"# mine\nimages:\n  tag: {OLD.tag}  # ours\n"
WORKERS = [f"gpu-0{host}/{index}" for host in (1, 2, 3) for index in (0, 1)]
HOSTS = ["gpu-01", "gpu-02", "gpu-03"]
EVERYWHERE = Journal(OLD, NEW, upgraded=tuple(WORKERS), passed=("canary", "25%", "50%", "100%"), hosts=tuple(HOSTS))
FAILED = EVERYWHERE.going_back("slow")


class World:
    """What runs, by host and service, and what is ordered. `on_replace` may interrupt."""

    def __init__(self, folder: Path) -> None:
        self.out, self.file = folder / "rendered", folder / "cluster.yaml"
        self.out.mkdir()
        self.file.write_text(TEXT)
        old, new = plan(BEFORE), plan(with_release(BEFORE, NEW))
        places = {host.name: Place("p", host, self.out / host.name, (), 5) for host in old.hosts}
        running = Cluster(list(places.values()), "key", None)
        self.site = Site(self.file, old, new, self.out, places, running, read_sources())
        self.runs: dict[tuple[str, str], str] = {}
        self.orders: dict[str, dict[str, Any]] = {}
        self.on_replace: Callable[[str], None] = lambda name: None
        self.said: list[str] = []

    def begin_with(self, journal: Journal) -> None:
        """As if an upgrade had come so far."""
        self.site.write(journal)
        for host in HOSTS:
            self.replace(self.site.places[host], ())

    def replace(self, place: Place, services: Sequence[str], *_: object, **__: object) -> None:
        self.on_replace(f"{place.host.name}: {','.join(services) or 'the rest'}")
        rendered = rendered_services(place)
        for name in services or rendered:
            self.runs[place.host.name, name] = rendered[name]["image"]

    def nodes(self) -> list[dict[str, Any]]:
        return [self._node(name) for name in WORKERS]

    def _node(self, name: str) -> dict[str, Any]:
        order = self.orders.get(name)
        state = {"drain": "drained", "quarantine": "quarantined"}.get(order["order"] if order else "", "idle")
        seen = {"gpu-01": {"state": "UP", "reason": "", "busy": 0, "requests": {}}}
        about = {"pool": "webui", "name": name, "state": state, "heartbeat_age_seconds": 0.0, "order": order}
        return about | {"seen_by": seen, "done": 0, "failed": 0, "pace_sum": 0.0}

    def give(self, worker: str, order: Mapping[str, Any]) -> dict[str, Any]:
        self.orders[worker] = {"by": "upgrade", "at": 1000.0, "share": None, "until": None, **order}
        return self.orders[worker]

    def run(self, journal: Journal) -> Outcome:
        gate = Gate(dwell_seconds=0, longest_seconds=0, minimum=0)
        return Upgrade(self.site, journal, gate, Telling(self.said)).run()

    def go_on(self) -> Outcome:
        journal = read_journal(self.out)
        assert journal is not None
        return self.run(journal)

    def tags(self) -> set[str]:
        """Of our images that run."""
        return {image.rpartition(":")[2] for image in self.runs.values() if image.startswith("animatediff-ha/")}

    def rendered_tags(self) -> set[str]:
        found = {
            service["image"] for place in self.site.places.values() for service in rendered_services(place).values()
        }
        return {image.rpartition(":")[2] for image in found if image.startswith("animatediff-ha/")}


class Telling(Progress):
    def __init__(self, said: list[str]) -> None:
        super().__init__(Mode.QUIET)
        self._said = said

    def say(self, message: str) -> None:
        self._said.append(message)

    warn = say


def rendered_services(place: Place) -> dict[str, Any]:
    return _services_in((place.folder / "compose.yaml").read_bytes())


@cache
def _services_in(compose: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(compose)["services"])


def services_there(place: Place) -> Collection[str]:
    return set(rendered_services(place))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    for module in (upgrade, upgrade_hosts):
        monkeypatch.setattr(module, "services_there", services_there)
        monkeypatch.setattr(module, "replace_services", made.replace)
        monkeypatch.setattr(module, "restarts_of", lambda *_: 0)
    monkeypatch.setattr(upgrade, "fetch_images", lambda *_: None)
    monkeypatch.setattr(upgrade, "last_lines", lambda *_: "")
    monkeypatch.setattr(upgrade, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(Cluster, "ask", lambda _, question: question(cast(Client, None)))
    monkeypatch.setattr(Client, "nodes", lambda _: made.nodes())
    monkeypatch.setattr(Client, "order", lambda _, worker, order: made.give(worker, order))
    monkeypatch.setattr(Client, "drop_order", lambda _, worker: made.orders.pop(worker, None))
    monkeypatch.setattr(Client, "dead_jobs", lambda _, since: [])
    return made


class Interrupted(BaseException):
    pass


def interrupting(after: int, name: str = "") -> Callable[[str], None]:
    """Raises when so many things have been replaced, of those called `name` only; once."""
    left = [after]

    def on_replace(what: str) -> None:
        if name in what:
            left[0] -= 1
            if left[0] == -1:
                raise Interrupted

    return on_replace


def test_all_the_way(world: World) -> None:
    world.begin_with(Journal(OLD, NEW))
    assert world.tags() == {OLD.tag}
    outcome = world.run(Journal(OLD, NEW))
    assert (outcome.failure, world.tags(), world.rendered_tags()) == ("", {"9.9"}, {"9.9"})
    assert (world.orders, read_journal(world.out)) == ({}, None)


def test_back_from_everywhere(world: World) -> None:
    world.begin_with(EVERYWHERE)
    assert world.tags() == {"9.9"}
    assert world.run(FAILED).failure == "slow"
    assert (world.tags(), world.rendered_tags(), world.orders) == ({OLD.tag}, {OLD.tag}, {})
    assert read_journal(world.out) is None


@pytest.mark.parametrize("after", [0, 7, 20])
def test_a_way_back_that_is_interrupted_goes_on_with_what_is_left(world: World, after: int) -> None:
    world.begin_with(EVERYWHERE)
    world.on_replace = interrupting(after)
    with pytest.raises(Interrupted):
        world.run(FAILED)
    world.on_replace = lambda what: None
    assert world.go_on().failure == "slow"
    assert (world.tags(), world.rendered_tags(), world.orders) == ({OLD.tag}, {OLD.tag}, {})


def test_what_is_back_is_not_replaced_again(world: World) -> None:
    world.begin_with(EVERYWHERE)
    world.on_replace = interrupting(0, "gpu-01: webui-0,agent-0")
    with pytest.raises(Interrupted):
        world.run(FAILED)
    again: list[str] = []
    world.on_replace = again.append
    world.go_on()
    assert again == ["gpu-01: webui-0,agent-0"]


def test_what_could_not_be_put_back_is_tried_again(world: World) -> None:
    """The others are put back meanwhile, and all that is rendered is the old release's."""
    world.begin_with(EVERYWHERE)

    def fail(what: str) -> None:
        if what == "gpu-02: webui-0,agent-0":
            raise Unhealthy("its GPU has gone")

    world.on_replace = fail
    with pytest.raises(Unhealthy, match=r"`python -m generator upgrade` tries the rest again\n.*its GPU has gone"):
        world.run(FAILED)
    assert world.rendered_tags() == {OLD.tag}
    left = read_journal(world.out)
    assert left is not None
    assert (left.workers_ahead, left.hosts_ahead) == (("gpu-02/0",), ())
    world.on_replace = lambda what: None
    world.go_on()
    assert (world.tags(), world.orders, read_journal(world.out)) == ({OLD.tag}, {}, None)


def test_that_it_goes_back_is_noted_before_anything(world: World) -> None:
    """`--back`, interrupted at once: it must not go forward from what is half back."""
    world.begin_with(EVERYWHERE)
    upgrade_hosts.write_journal(world.out, EVERYWHERE)
    world.on_replace = interrupting(0)
    with pytest.raises(Interrupted):
        world.run(EVERYWHERE.going_back("asked for"))
    left = read_journal(world.out)
    assert left is not None
    assert left.failure == "asked for"


def written(world: World, monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands in cluster.yaml after an upgrade that was interrupted right behind it."""
    world.begin_with(EVERYWHERE)
    noted = upgrade_hosts.write_journal

    def note(out: Path, journal: Journal | None) -> None:
        if journal is None:
            raise Interrupted
        noted(out, journal)

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "write_journal", note)
        with pytest.raises(Interrupted):
            world.run(EVERYWHERE)
    return text_in(world)


def text_in(world: World) -> str:
    return upgrade_hosts.read_text(world.file)


def go_back(world: World) -> None:
    journal = read_journal(world.out)
    assert journal is not None
    world.run(journal.going_back("asked for"))


@pytest.mark.parametrize("text", [TEXT, f"images: {{tag: '{OLD.tag}'}}\r\n# mine\r\n"])
def test_the_operators_file_gets_back_its_very_text(world: World, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    upgrade_hosts.write_text(world.file, text)
    assert '"9.9"' in written(world, monkeypatch)
    go_back(world)
    assert (text_in(world), world.said[1:]) == (text, [])


def test_what_the_operator_has_edited_meanwhile_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.file.write_text(written(world, monkeypatch) + "# another line\n")
    go_back(world)
    assert text_in(world) == TEXT.replace(OLD.tag, f'"{OLD.tag}"') + "# another line\n"
    assert any("has been edited during the upgrade" in said for said in world.said)


def test_a_third_release_in_the_file_stays_and_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = written(world, monkeypatch).replace("9.9", "9.10")
    world.file.write_text(other)
    go_back(world)
    assert text_in(world) == other
    assert f'images.tag is "9.10" and stays so, but the cluster runs "{OLD.tag}"' in world.said[-1]


def test_what_the_upgrade_has_not_written_it_does_not_take_back(world: World) -> None:
    own = TEXT.replace(OLD.tag, "9.9")
    world.file.write_text(own)
    world.begin_with(EVERYWHERE)
    world.run(FAILED)
    assert text_in(world) == own
    assert 'images.tag is "9.9" and stays so' in world.said[-1]


def test_an_edit_during_the_upgrade_outlives_its_end(world: World) -> None:
    """Only what the upgrade is about is changed in what stands there at the end."""
    world.begin_with(EVERYWHERE)
    world.file.write_text(TEXT + "# another line\n")
    world.run(EVERYWHERE)
    assert text_in(world) == TEXT.replace(OLD.tag, '"9.9"') + "# another line\n"


def test_a_file_that_is_broken_at_the_end_is_told_and_the_upgrade_can_go_on(world: World) -> None:
    world.begin_with(EVERYWHERE)
    world.file.write_text("images: {tag: \n")
    with pytest.raises(UserError, match="is no YAML"):
        world.run(EVERYWHERE)
    world.file.write_text(TEXT)
    upgrade_hosts.write_journal(world.out, EVERYWHERE)
    world.go_on()
    assert '"9.9"' in text_in(world)
