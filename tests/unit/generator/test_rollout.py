from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import yaml

from generator.errors import UserError
from generator.journal import Journal, journal_from
from generator.plan import plan
from generator.render import RenderError, render, render_mixed
from generator.rollout import (
    BOUNDS,
    Counts,
    Figures,
    Gate,
    Release,
    judge,
    release_of,
    stages,
    with_release,
)
from generator.sources import read_sources
from tests.unit.generator.clusters import one_host, three_hosts

OLD, NEW = Release("1.0", "a.safetensors", "m.safetensors"), Release("1.1", "b.safetensors", "m.safetensors")
WORKERS = tuple(f"gpu-0{host}/{index}" for host in (1, 2, 3) for index in (0, 1))
USUAL = Figures(requests=1000, errors=2, slow_seconds=0.2, jobs=100, failed_jobs=1)
GOOD = Figures(requests=100, errors=0, slow_seconds=0.21, jobs=10)
GATE = Gate()


def test_a_tenth_of_the_sessions_then_a_quarter_half_and_all() -> None:
    found = stages(WORKERS)
    assert [(one.name, one.workers, one.share) for one in found] == [
        ("canary", WORKERS[:1], 0.1),
        ("25%", WORKERS[1:2], None),
        ("50%", WORKERS[2:3], None),
        ("100%", WORKERS[3:], None),
    ]


@pytest.mark.parametrize("count", range(1, 40))
def test_every_worker_is_upgraded_once_and_in_order(count: int) -> None:
    workers = [f"host/{number}" for number in range(count)]
    found = stages(workers)
    assert [worker for stage in found for worker in stage.workers] == workers
    assert all(stage.workers for stage in found)
    assert (found[0].share is None) == (count == 1), "one alone has all sessions, whatever it is called"


def test_nothing_to_upgrade() -> None:
    with pytest.raises(UserError, match="no worker"):
        stages(())


@pytest.mark.parametrize(
    ("new", "seconds", "sick_since", "passed", "said"),
    [
        (GOOD, 60, None, True, "110 requests"),
        (GOOD, 59, None, None, "in 59 s"),
        (replace(GOOD, restarts=1), 1, None, False, "restarted 1 times"),
        (replace(GOOD, sick=("gpu-01/0: error",)), 1, 9.9, None, ""),
        (replace(GOOD, sick=("gpu-01/0: error",)), 1, 10, False, "gpu-01/0: error"),
        (replace(GOOD, sick=("gpu-01/0: error",)), 90, 1, None, ""),
        (replace(GOOD, errors=2), 60, None, True, ""),
        (replace(GOOD, errors=3), 1, None, False, "3.0% of the requests failed (3), of the others 0.2%"),
        (replace(GOOD, requests=1000, errors=3), 60, None, True, ""),
        (replace(GOOD, failed_jobs=3), 1, None, False, "30.0% of the jobs failed (3), of the others 1.0%"),
        (replace(GOOD, slow_seconds=0.45), 60, None, True, ""),
        (replace(GOOD, slow_seconds=0.46), 59, None, None, ""),
        (replace(GOOD, slow_seconds=0.46), 60, None, False, "within 0.46 s, of the others within 0.20 s"),
        (Figures(), 60, None, None, "0 of 20"),
        (Figures(), 600, None, True, "only 0 requests"),
    ],
)
def test_a_stage_goes_on_waits_or_ends_the_upgrade(
    new: Figures, seconds: float, sick_since: float | None, passed: bool | None, said: str
) -> None:
    verdict = judge(new, USUAL, seconds, sick_since, GATE)
    assert verdict.passed is passed, verdict
    assert said in verdict.reason


def test_what_was_done_in_between() -> None:
    earlier = Counts(100, 5, (0,) * 2 + (100,) * 10, 10, 1)
    later = Counts(200, 6, (0,) * 2 + (194,) + (195,) * 2 + (200,) * 7, 12, 1)
    between = (later - earlier).figures()
    assert (between.requests, between.errors, between.jobs, between.failed_jobs) == (100, 1, 2, 0)
    assert between.slow_seconds == 0.5, "94 within 0.25 s, 95 within 0.5 s"
    assert (earlier - later).figures() == Figures(), "the gateway was started anew"
    assert Counts(1, within=(0,) * len(BOUNDS)).figures().slow_seconds == math.inf


def test_as_bad_as_the_others_is_no_reason_to_go_back() -> None:
    """The storage is away, say: every worker fails, and another release would not help."""
    ill = Figures(requests=100, errors=40, jobs=20, failed_jobs=10)
    assert judge(ill, ill, 60, None, GATE).passed is True


def test_a_release_changes_what_it_names_and_nothing_else() -> None:
    before = three_hosts()
    wanted = Release("9.9", before.models.checkpoint, before.models.motion_module)
    after = with_release(before, wanted)
    assert release_of(after) == wanted
    assert with_release(after, release_of(before)) == before


def test_a_mixed_cluster_has_the_services_of_both() -> None:
    cluster, sources = three_hosts(), read_sources()
    old = plan(cluster)
    new = plan(with_release(cluster, replace(release_of(cluster), tag="9.9")))
    changed = old.hosts[0].workers[0]
    mixed = dict(render_mixed(old, new, {changed.worker}, sources))
    before, after = dict(render(old, sources)), dict(render(new, sources))
    assert {host: files for host, files in mixed.items() if host != old.hosts[0].name} == {
        host: files for host, files in before.items() if host != old.hosts[0].name
    }
    host = old.hosts[0].name
    services = yaml.safe_load(mixed[host]["compose.yaml"])["services"]
    for name, service in services.items():
        source = after if name in (changed.webui, changed.agent) else before
        assert service == yaml.safe_load(source[host]["compose.yaml"])["services"][name], name
    assert dict(render_mixed(old, new, (), sources)) == before


def test_what_differs_in_more_than_images_is_no_upgrade() -> None:
    with pytest.raises((RenderError, KeyError)):
        dict(render_mixed(plan(one_host()), plan(three_hosts()), (), read_sources()))


def test_the_journal_says_how_far_it_came() -> None:
    journal = Journal(OLD, NEW).with_worker("a/0").with_worker("a/0").with_passed(stages(["a/0", "b/0"])[0])
    journal = journal.with_host("a").with_host("b").with_worker("b/0")
    back = journal.going_back("slow").going_back("also ugly").with_restored("b").with_restored("a/0")
    assert (back.upgraded, back.hosts, back.passed) == (("a/0", "b/0"), ("a", "b"), ("canary",)), "nothing is forgotten"
    assert (back.workers_ahead, back.hosts_ahead, back.failure) == (("b/0",), ("a",), "slow")
    assert journal_from(json.loads(json.dumps(back.as_dict()))) == back


def test_a_journal_of_an_older_version_is_read() -> None:
    document = Journal(OLD, NEW).with_worker("a/0").as_dict()
    del document["restored"], document["old_text"], document["sequence"], document["orders"]
    assert journal_from(document) == Journal(OLD, NEW).with_worker("a/0")


@pytest.mark.parametrize(
    "document", [{}, {"old": 1}, {"old": {}, "new": {}}, {**Journal(OLD, NEW).as_dict(), "old": {"x": 1}}]
)
def test_a_damaged_journal_is_told(document: dict[str, object]) -> None:
    with pytest.raises(UserError, match="damaged"):
        journal_from(document)
