"""Upgrades of a cluster that is only made believe: what its hosts would run is read from what was rendered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import yaml

from generator import cli_upgrade
from generator.errors import Unhealthy, UserError
from generator.journal import Journal
from generator.ops import nodes, upgrade, upgrade_hosts
from generator.ops.client import Client
from generator.ops.cluster import Place
from generator.ops.nodes import Cluster
from generator.ops.upgrade import Outcome, Upgrade
from generator.ops.upgrade_hosts import Site, read_journal
from generator.ops.upgrade_plan import plan_text
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
        self.given: list[tuple[str, str]] = []
        self.now = 1000.0
        """By the queue's clock."""

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
        standing = {"drained": "DRAINING", "quarantined": "QUARANTINED"}.get(state, "UP")
        seen = {"gpu-01": {"state": standing, "reason": "", "busy": 0, "requests": {}}}
        about = {"pool": "webui", "name": name, "state": state, "heartbeat_age_seconds": 0.0, "order": order}
        return about | {"seen_by": seen, "done": 0, "failed": 0, "pace_sum": 0.0}

    def give(self, worker: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """As the api does it."""
        force, seconds = bool(order.get("force")), order.get("seconds")
        working = [name for name in WORKERS if name != worker and self._node(name)["state"] == "idle"]
        if order["order"] != "canary" and not force and not working:
            raise UserError(f"{worker} is the last node that takes work")
        until = None if seconds is None else self.now + seconds
        about = {name: order.get(name) for name in ("order", "reason", "share")}
        self.orders[worker] = {"by": "admin", "at": self.now, "until": until, **about}
        self.given.append((worker, order["order"]))
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


_RENDERED: dict[tuple[tuple[str, ...], ...], list[tuple[str, Mapping[str, bytes]]]] = {}
"""All tests come by the same mixtures."""


def _rendered(site: Site, journal: Journal, render: Any) -> list[tuple[str, Mapping[str, bytes]]]:
    key = tuple(sorted(journal.workers_ahead)), tuple(sorted(journal.hosts_ahead))
    if key not in _RENDERED:
        _RENDERED[key] = list(render(site, journal))
    return _RENDERED[key]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made, honest = World(tmp_path), Site.trees
    for module in (upgrade, upgrade_hosts):
        monkeypatch.setattr(module, "services_there", services_there)
        monkeypatch.setattr(module, "replace_services", made.replace)
        monkeypatch.setattr(module, "restarts_of", lambda *_: 0)
    monkeypatch.setattr(Site, "trees", lambda site, journal: _rendered(site, journal, honest))
    monkeypatch.setattr(upgrade, "fetch_images", lambda *_: None)
    monkeypatch.setattr(upgrade, "last_lines", lambda *_: "")
    monkeypatch.setattr(upgrade, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.001)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a busy disk takes longer than all else
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


def ordered(kind: str, **more: Any) -> dict[str, Any]:
    order = {"order": kind, "by": "ada", "at": 1.0, "reason": "dust", "share": None, "until": None}
    return {**order, **more}


def wish(order: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What it is for the worker, whoever has written it down when."""
    return order and {name: order[name] for name in ("order", "reason", "share", "until")}


@pytest.mark.parametrize("journal", [Journal(OLD, NEW), FAILED])
@pytest.mark.parametrize("kind", ["drain", "quarantine"])
def test_what_is_kept_out_of_work_stays_out_and_changes_all_the_same(world: World, kind: str, journal: Journal) -> None:
    world.begin_with(journal)
    world.orders = before = {WORKERS[0]: ordered(kind), WORKERS[3]: ordered(kind, until=1500.0)}
    replaced: list[str] = []
    world.on_replace = replaced.append
    world.run(journal)
    assert world.tags() == {OLD.tag if journal.failure else "9.9"}
    assert "gpu-01: webui-0,agent-0" in replaced
    assert world.orders == before
    assert not {WORKERS[0], WORKERS[3]} & {worker for worker, _ in world.given}, "it never had any other"


def test_those_that_work_change_first_and_the_others_are_not_watched(world: World) -> None:
    """A worker without visitors shows nothing of a release, and would be told to be sick."""
    world.begin_with(Journal(OLD, NEW))
    world.orders = {name: ordered("quarantine") for name in (WORKERS[0], WORKERS[2], WORKERS[4])}
    replaced: list[str] = []
    world.on_replace = replaced.append
    assert world.run(Journal(OLD, NEW)).failure == ""
    wanted = [WORKERS[1], WORKERS[3], WORKERS[5], WORKERS[0], WORKERS[2], WORKERS[4]]
    services = [f"{name.partition('/')[0]}: webui-{name[-1]},agent-{name[-1]}" for name in wanted]
    assert replaced[:6] == services
    assert world.said == ["gpu-01/0, gpu-02/0, gpu-03/0: out of work by an operator's order, nothing to watch"]


def test_who_goes_on_has_the_same_stages(world: World) -> None:
    """Although an operator has put the first one back to work meanwhile."""
    world.begin_with(Journal(OLD, NEW))
    world.orders = {WORKERS[0]: ordered("quarantine")}
    world.on_replace = interrupting(0, "gpu-03: webui-0")
    with pytest.raises(Interrupted):
        world.run(Journal(OLD, NEW))
    del world.orders[WORKERS[0]]
    world.go_on()
    assert (world.tags(), world.orders) == ({"9.9"}, {})
    assert (WORKERS[0], "drain") in world.given, "it had its turn, and was not replaced with the rest of its host"


CANARY = ordered("canary", share=0.3)


@pytest.mark.parametrize("journal", [Journal(OLD, NEW), FAILED])
@pytest.mark.parametrize("after", [None, 0, 4])
def test_an_order_that_the_upgrade_replaces_is_given_back(world: World, journal: Journal, after: int | None) -> None:
    world.begin_with(journal)
    world.orders = {WORKERS[4]: CANARY}
    if after is not None:
        world.on_replace = interrupting(after, "webui-")
        with pytest.raises(Interrupted):
            world.run(journal)
        world.on_replace = lambda what: None
        world.go_on()
    else:
        world.run(journal)
    assert {name: wish(order) for name, order in world.orders.items()} == {WORKERS[4]: wish(CANARY)}


@pytest.mark.parametrize(("until", "left"), [(1500.0, 1500.0), (900.0, None), (1050.0, None)])
def test_an_order_that_ends_by_itself_ends_when_it_would_have(world: World, until: float, left: float | None) -> None:
    world.begin_with(Journal(OLD, NEW))
    world.orders = {WORKERS[4]: {**CANARY, "until": until}}

    def pass_time(what: str) -> None:
        world.now += 10

    world.on_replace = pass_time
    world.run(Journal(OLD, NEW))
    assert world.now > 1050
    assert world.orders.get(WORKERS[4], {}).get("until") == left


@pytest.mark.parametrize("journal", [Journal(OLD, NEW), FAILED])
def test_what_is_ordered_during_the_upgrade_stays(world: World, journal: Journal) -> None:
    """About one that has changed already, and about one that is still to change."""
    world.begin_with(journal)
    others = ordered("drain", reason="a fan")

    def order(what: str) -> None:
        if what.startswith("gpu-02: webui-1"):
            world.orders[WORKERS[0 if not journal.failure else 5]] = others
            world.orders[WORKERS[5 if not journal.failure else 0]] = others

    world.on_replace = order
    assert world.run(journal).failure == journal.failure, "no sign of a bad release"
    assert world.orders == {WORKERS[0]: others, WORKERS[5]: others}


def test_a_controllers_quarantine_is_no_operators(world: World) -> None:
    world.begin_with(Journal(OLD, NEW))
    world.orders = {WORKERS[0]: ordered("quarantine", by="the controller of gpu-01", until=1060.0)}
    world.run(Journal(OLD, NEW))
    assert world.given[:2] == [(WORKERS[0], "drain"), (WORKERS[0], "canary")]
    assert world.orders == {}


def test_the_last_one_at_work_is_upgraded_although_nobody_works_meanwhile(world: World) -> None:
    world.begin_with(Journal(OLD, NEW))
    world.orders = before = {name: ordered("drain") for name in WORKERS[1:]}
    world.run(Journal(OLD, NEW))
    assert (world.tags(), world.orders) == ({"9.9"}, before)


def test_jobs_of_long_before_the_upgrade_are_not_tried_again(world: World) -> None:
    """The first worker's order is from last week."""
    world.begin_with(Journal(OLD, NEW))
    world.orders = {name: ordered("drain", at=1.0) for name in WORKERS}
    assert world.run(Journal(OLD, NEW)).journal.since == 0


def test_the_plan_tells_who_stays_out_of_work(world: World) -> None:
    text = plan_text(world.site, Journal(OLD, NEW), {WORKERS[0]: ordered("quarantine")})
    assert "canary: gpu-01/1, 10% of the new sessions; then watched" in text
    assert "gpu-01/0: stays out of work, quarantine ordered by ada: dust" in text


def test_nothing_begins_while_secrets_are_to_be_changed_on_all_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise UserError("`down`, then `up`")

    monkeypatch.setattr(cli_upgrade, "_prepare", lambda *_: (SimpleNamespace(places={}), EVERYWHERE))
    monkeypatch.setattr(cli_upgrade.shared_secrets, "refuse_one_by_one", refuse)
    monkeypatch.setattr(cli_upgrade, "Upgrade", None)
    with pytest.raises(UserError, match="down"):
        cli_upgrade.upgrade("9.9", dwell=1, longest=1, minimum=1, file=tmp_path / "cluster.yaml", out=tmp_path)
