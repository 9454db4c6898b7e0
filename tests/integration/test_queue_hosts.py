"""What an operator may do to the queue's hosts without losing an acknowledged job: other secrets, other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from generator.docker import Engine
from generator.errors import Unhealthy, UserError
from generator.ops import replication
from generator.ops.cluster import start_resting_queues
from generator.ops.replication import wait_in_step
from generator.ops.shared_secrets import refuse_one_by_one
from generator.progress import Mode, Progress
from tests.integration.queue_hosts import QueueHosts, eventually
from tests.unit.generator.clusters import three_hosts

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
QUIET = Progress(Mode.QUIET)
ALL = ("gpu-01", "gpu-02", "gpu-03")


@pytest.fixture
def hosts(engine: Engine, images: str, tmp_path: Path) -> Iterator[QueueHosts]:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)  # the containers read the files as uid 10001
    cluster = three_hosts()
    more = cluster.model_copy(update={"hosts": {**cluster.hosts, "gpu-04": cluster.hosts["gpu-03"]}})
    made = QueueHosts(engine, more, tmp_path / "out", images)
    try:
        yield made
    finally:
        made.close()


def start(hosts: QueueHosts, *names: str) -> None:
    for name in names:
        hosts.up(name)
    for name in names:
        wait_in_step(hosts.place(name), lambda _: None)
    for name in names:  # all Sentinels know each other and both replicas
        eventually(lambda name=name: hosts.ask(name, "SENTINEL", "CKQUORUM", "queue", port=26379), 20)  # type: ignore[misc]
        eventually(lambda name=name: len(hosts.ask(name, "SENTINEL", "REPLICAS", "queue", port=26379)) == 2, 20)  # type: ignore[misc]


def test_a_new_password_between_the_redis_is_for_all_at_once(
    hosts: QueueHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.render(ALL)
    start_resting_queues(hosts.places, QUIET)
    start(hosts, *ALL)
    refuse_one_by_one(hosts.places)
    hosts.store.rotate("redis_replica_password")
    hosts.lay_out()
    with pytest.raises(UserError, match="gpu-01, gpu-02, gpu-03"):
        refuse_one_by_one(hosts.places)

    # Whoever does it all the same: the first is not in step, and that is where it ends.
    monkeypatch.setattr(replication, "IN_STEP_SECONDS", 5.0)
    with hosts.written() as acknowledged:
        eventually(lambda: len(acknowledged) > 20, 20)
        hosts.up("gpu-02", anew=True)
        with pytest.raises(Unhealthy, match="gpu-02 is not in step"):
            wait_in_step(hosts.place("gpu-02"), lambda _: None)
    monkeypatch.undo()
    for name in ALL:
        hosts.down(name)
    start_resting_queues(hosts.places, QUIET)
    start(hosts, *ALL)
    refuse_one_by_one(hosts.places)
    assert hosts.lost(acknowledged) == []


def test_a_cluster_that_was_stopped_comes_back_whoever_was_its_master(hosts: QueueHosts) -> None:
    """The first host follows one that is not up yet."""
    hosts.render(ALL)
    start_resting_queues(hosts.places, QUIET)
    start(hosts, *ALL)
    hosts.kill("gpu-01")
    eventually(lambda: hosts.master_seen_from("gpu-03") != "gpu-01", 20)
    master = hosts.master_seen_from("gpu-03")
    hosts.up("gpu-01")
    eventually(lambda: hosts.info("gpu-01").get("master_link_status") == "up", 20)
    with hosts.written() as acknowledged:
        eventually(lambda: len(acknowledged) > 20, 20)
    for name in ALL:
        hosts.down(name)
    start_resting_queues(hosts.places, QUIET)
    for name in ALL:
        wait_in_step(hosts.place(name), lambda _: None)
    eventually(lambda: {hosts.master_seen_from(name) for name in ALL} == {master}, 20)
    eventually(lambda: hosts.lost(acknowledged) == [], 20)


def test_a_queue_that_grows_is_never_the_replica_of_an_empty_one(hosts: QueueHosts) -> None:
    """It was on the second host alone, and the first in the file is where a new cluster's master begins."""
    hosts.render(["gpu-02"])
    hosts.up("gpu-02")
    eventually(lambda: hosts.ask("gpu-02", "SET", "{q}:k", "a job " * 100), 20)
    hosts.render(ALL)
    for name in ALL:
        hosts.up(name)
    eventually(lambda: "put this host first" in hosts.logs("gpu-02"), 20, lambda: hosts.logs("gpu-02")[-300:])
    hosts.render(["gpu-02"])
    hosts.up("gpu-02")
    eventually(lambda: hosts.ask("gpu-02", "GET", "{q}:k") == "a job " * 100, 20)


def test_a_queue_that_grows_takes_all_along(hosts: QueueHosts) -> None:
    hosts.render(["gpu-01"])
    hosts.up("gpu-01")
    eventually(lambda: hosts.ask("gpu-01", "PING"), 20)
    for number in range(200):
        hosts.ask("gpu-01", "SET", f"{{q}}:k{number}", "x" * 100_000)
    hosts.render(ALL)
    start_resting_queues(hosts.places, QUIET)
    for name in ALL:
        hosts.up(name)
        wait_in_step(hosts.place(name), lambda _: None)
    eventually(lambda: hosts.lost([f"{{q}}:k{number}" for number in range(200)]) == [], 20)
    assert hosts.master_seen_from("gpu-03") == "gpu-01"


def test_a_new_host_in_front_watches_the_master_that_there_is(hosts: QueueHosts) -> None:
    hosts.render(("gpu-02", "gpu-03", "gpu-04"))
    start(hosts, "gpu-02", "gpu-03", "gpu-04")
    assert hosts.master_seen_from("gpu-03") == "gpu-02"
    hosts.kill("gpu-04")
    hosts.render(ALL)
    start_seconds = 30
    for name in ALL:
        hosts.up(name)
        eventually(lambda name=name: hosts.ask(name, "PING") in ("PONG", True), start_seconds)  # type: ignore[misc]
        wait_in_step(hosts.place(name), lambda _: None)
    eventually(lambda: len({hosts.master_seen_from(name) for name in ALL}) == 1, 20)
    master = hosts.master_seen_from("gpu-01")
    left = [name for name in ALL if name != master]
    eventually(lambda: hosts.info(left[0])["master_link_status"] == "up", 20)
    hosts.kill(master)
    eventually(lambda: {hosts.master_seen_from(name) for name in left} < set(left), 20)
