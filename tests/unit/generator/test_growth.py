from __future__ import annotations

from pathlib import Path

import pytest

from generator import tree
from generator.errors import UserError
from generator.growth import refuse_to_lose_the_queue
from generator.model import Cluster, Role
from generator.plan import plan
from generator.render import render
from generator.sources import read_sources
from tests.unit.generator.clusters import three_hosts

ALL = ("gpu-01", "gpu-02", "gpu-03")


def queue_on(*names: str) -> Cluster:
    cluster = three_hosts()
    hosts = {
        name: host.model_copy(
            update={
                "roles": (*(r for r in host.roles if r is not Role.QUEUE), *((Role.QUEUE,) if name in names else ()))
            }
        )
        for name, host in cluster.hosts.items()
    }
    return cluster.model_copy(update={"hosts": hosts})


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (("gpu-02",), ALL, "list gpu-02 before gpu-01"),
        (("gpu-02",), ("gpu-01",), "backup"),
        (("gpu-01",), ALL, None),
        (("gpu-02",), ("gpu-02",), None),
        (("gpu-01", "gpu-02"), ALL, None),
        ((), ALL, None),
    ],
)
def test_a_queue_grows_from_the_host_that_has_it(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...], refused: str | None
) -> None:
    if before:
        tree.write(tmp_path, render(plan(queue_on(*before)), read_sources()))
    new = plan(queue_on(*after))
    if refused is None:
        assert refuse_to_lose_the_queue(new, tmp_path) is None
        return
    if refused == "backup":
        assert "former cluster.yaml, `backup`" in (refuse_to_lose_the_queue(new, tmp_path) or "")
        return
    with pytest.raises(UserError, match=refused):
        refuse_to_lose_the_queue(new, tmp_path)
