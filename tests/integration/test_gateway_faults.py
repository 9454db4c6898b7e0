"""What visitors of our gateway notice when one of three nodes, all of them, or the controller fails: promise P5.

The bench (`tests/bench/gateway.py`) has the same faults, for longer, with the article's nginx and HAProxy beside ours.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.integration.fault_stage.contenders import Ours, ours
from tests.integration.fault_stage.faults import BY_NAME, Fault
from tests.integration.fault_stage.figures import Figures, figures
from tests.integration.fault_stage.stage import Stage, three_nodes
from tests.integration.fault_stage.visitors import Visitors

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
WINDOW_SECONDS = 0.8
"""The promise."""
FAULT_SECONDS, AFTER_SECONDS = 5.0, 3.0
OUT_AND_TRIED_SECONDS, OUT_TWICE_SECONDS = 14.0, 12.0
"""A node that fails its visitors is out for 5 s, then on trial, then out for 10 s."""
WHOLE_SECONDS = 90.0


@pytest.fixture(scope="module")
def stage(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Ours]]:
    with ExitStack() as closing:
        nodes = closing.enter_context(three_nodes(images))
        yield nodes, closing.enter_context(ours(nodes, images, tmp_path_factory.mktemp("gateway")))


async def whole(stage: Stage, gateway: Ours) -> None:
    """All nodes at work, and a controller that holds nothing against any of them."""
    if gateway.has_controller:
        gateway.stop_controller()
    gateway.start_controller()
    end = time.monotonic() + WHOLE_SECONDS
    while not await asyncio.to_thread(gateway.is_whole, stage):
        assert time.monotonic() < end, gateway.logs()
        await asyncio.sleep(0.5)


async def under(
    stage: Stage,
    gateway: Ours,
    sick: set[str],
    begin: Callable[[], Awaitable[None]],
    end: Callable[[], Awaitable[None]],
    seconds: float = FAULT_SECONDS,
    after_seconds: float = AFTER_SECONDS,
) -> Figures:
    """What visitors saw while something was wrong, and for a while after it was right again."""
    await whole(stage, gateway)
    visitors = Visitors(gateway.address, gateway.key)
    visitors.start()
    await asyncio.sleep(2)
    began = time.monotonic()
    await begin()
    await asyncio.sleep(seconds)
    ended = time.monotonic()
    await end()
    await asyncio.sleep(after_seconds)
    diary = await visitors.stop()
    posts = Counter(post for node in stage.nodes for post in node.posts())
    return figures(diary, sick, began, ended, posts)


async def of_fault(stage: Stage, gateway: Ours, fault: Fault, *seconds: float) -> Figures:
    node = stage.nodes[1]
    sick = {one.name for one in stage.nodes} if fault.hits == 3 else {node.name}

    async def begin() -> None:
        await asyncio.to_thread(fault.begin, stage, node)

    async def end() -> None:
        await asyncio.to_thread(fault.end, stage, node)

    found = await under(stage, gateway, sick, begin, end, *seconds)
    print(f"\n{fault.name}: {found.in_words()}")
    return found


@pytest.mark.parametrize("name", [name for name, fault in BY_NAME.items() if fault.hits == 1 and name != "flapping"])
async def test_a_sick_node_is_noticed_by_few_and_only_by_its_own(stage: tuple[Stage, Ours], name: str) -> None:
    seen = await of_fault(*stage, BY_NAME[name])
    assert seen.window <= WINDOW_SECONDS
    assert (seen.elsewhere, seen.broken, seen.twice) == (0, 0, 0)
    assert seen.back is not None


async def test_nobody_notices_that_a_node_fails_its_trial(stage: tuple[Stage, Ours]) -> None:
    seen = await of_fault(*stage, BY_NAME["pings but fails"], OUT_AND_TRIED_SECONDS, OUT_TWICE_SECONDS)
    assert "on trial" in stage[1].logs()
    assert seen.window <= WINDOW_SECONDS
    assert (seen.elsewhere, seen.broken, seen.twice) == (0, 0, 0)
    assert seen.back is not None


async def test_a_flapping_node_is_held_down(stage: tuple[Stage, Ours]) -> None:
    """A node that dies every three seconds: each death may cost what one death may cost."""
    seen = await of_fault(*stage, BY_NAME["flapping"])
    assert (seen.elsewhere, seen.broken, seen.twice) == (0, 0, 0)
    assert seen.failed <= 3 * 4


async def test_without_any_node_visitors_are_told_why_and_all_is_well_after(stage: tuple[Stage, Ours]) -> None:
    seen = await of_fault(*stage, BY_NAME["all killed"])
    assert seen.twice == 0
    assert set(seen.faults) <= {"503", "502", "504", "no answer"}, (
        "a 5xx with a reason, or they were still waiting for a node"
    )
    assert seen.back is not None
    assert seen.back < 5


async def test_who_waits_for_a_host_that_is_gone_is_told(stage: tuple[Stage, Ours]) -> None:
    """A generation, which may take an hour, on a host that has lost its cable or its power: no word comes from it."""
    nodes, gateway = stage
    await whole(nodes, gateway)
    host, port = gateway.address
    mark = uuid.uuid4().hex
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=gateway.key, timeout=120) as client:
        headers = {"X-Post-Id": mark}
        asking = asyncio.create_task(client.post("/sdapi/v1/txt2img?wait=600", json={}, headers=headers))
        end = time.monotonic() + 10
        while not (at_work := [node for node in nodes.nodes if mark in node.posts()]):
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        (node,) = at_work
        await asyncio.sleep(1)  # it has acknowledged the request, and all is quiet
        began = time.monotonic()
        try:
            node.drop("INPUT")
            node.drop("OUTPUT")
            answer = await asking
        finally:
            node.pass_again()
    print(f"\ntold after {time.monotonic() - began:.1f} s")
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
    assert sum(node.posts().count(mark) for node in nodes.nodes) == 1, "it may have been done: nobody does it again"


async def test_nobody_notices_that_the_controller_is_gone(stage: tuple[Stage, Ours]) -> None:
    nodes, gateway = stage

    async def begin() -> None:
        gateway.kill_controller()

    async def end() -> None:
        pass

    seen = await under(nodes, gateway, set(), begin, end)
    print(f"\ncontroller killed: {seen.in_words()}")
    assert (seen.failed, seen.broken, seen.twice) == (0, 0, 0)


async def test_nobody_notices_crooked_and_stale_state(stage: tuple[Stage, Ours]) -> None:
    nodes, gateway = stage
    state = gateway.state()
    stale = {**state, "version": max(0, state["version"] - 1), "pools": {"api": [], "webui": []}}
    older = {**state, "epoch": str(int(state["epoch"]) - 1), "pools": {"api": [], "webui": []}}
    wrong = {**state, "version": state["version"] + 1000, "pools": {"api": [], "webui": [{"name": "x"}]}}
    answers: list[int] = []

    async def begin() -> None:
        for body in (
            "",
            "{",
            "[]",
            '{"pools": 3}',
            json.dumps(stale),
            json.dumps(older),
            json.dumps(wrong),
            "x" * 10**6,
        ):
            answers.append(await asyncio.to_thread(gateway.push, body))

    async def end() -> None:
        pass

    seen = await under(nodes, gateway, set(), begin, end)
    assert set(answers) <= {400, 409, 413}, answers
    assert (seen.failed, seen.broken, seen.twice) == (0, 0, 0)
