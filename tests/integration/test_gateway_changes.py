"""A hundred changes of the state and a reload, with requests and WebSockets going on: nobody notices (promise P8)."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed

from tests.contract.test_gateway_config import docker, gateway_plan
from tests.integration.gateway_stage import KEY, MEBIBYTE, NODES, PLAIN, Setup, Upstream, wait_for
from tests.integration.test_gateway_sockets import Stage, memory_of, reload

CHANGES = 100
SOCKETS = 30
REQUESTS_PER_SECOND = 50
WEIGHTS = (0, 0.1, 0.5, 1, 1)

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def stage(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    the_plan = gateway_plan(tls={"mode": "none"}, submissions_per_second=10_000)
    setup = Setup(tmp_path_factory.mktemp("gateway"), {name: Upstream(name) for name in NODES}, the_plan, images)
    try:
        for upstream in setup.upstreams.values():
            upstream.start()
        setup.start_gateway()
        for upstream in setup.upstreams.values():
            wait_for(upstream.name, upstream.listens, setup.logs)
        yield Stage(setup, setup.upstreams)  # type: ignore[arg-type]  # their ports are all that is asked for
    finally:
        docker("rm", "-f", setup.container)
        for upstream in setup.upstreams.values():
            upstream.stop()


@dataclass
class Seen:
    answers: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    sent_again: int = 0
    messages: int = 0
    broken: list[str] = field(default_factory=list)


def push(stage: Stage, choice: random.Random) -> None:
    """Other weights, at least one of them in full, another order, now and then a node more."""
    weights = {name: choice.choice(WEIGHTS) for name in NODES} | {choice.choice(NODES): 1}
    webui = [stage.peer(name, weight=weight, busy=choice.randrange(9)) for name, weight in weights.items()]
    if choice.random() < 0.3:
        webui.append({**stage.peer(NODES[0]), "name": "gpu-09/0"})
    choice.shuffle(webui)
    api = [{key: peer[key] for key in ("name", "ip", "port")} for peer in map(stage.peer, NODES)]
    stage.push(*webui, api=choice.sample(api, 2))


async def ask(seen: Seen, client: httpx.AsyncClient, number: int, once_more: bool) -> None:
    """One request. `once_more`: as browsers do on a connection that turns out to be closed."""
    method, path = (("GET", "/webui/page"), ("GET", "/api/v1/x"), ("POST", "/api/v1/jobs"))[number % 3]
    try:
        answer = await client.request(method, path, headers=KEY, json={} if method == "POST" else None)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        if once_more:
            seen.sent_again += 1
            return await ask(seen, client, number, False)
        seen.failed.append(repr(error))
    except httpx.HTTPError as error:
        seen.failed.append(repr(error))
    else:
        seen.answers[f"{method} {answer.status_code}"] += 1
        if answer.status_code != 200:
            seen.failed.append(answer.text)


async def converse(seen: Seen, url: str, stop: asyncio.Event) -> None:
    try:
        async with websockets.asyncio.client.connect(url, additional_headers=KEY) as talk:
            for number in itertools.count():
                await talk.send(str(number))
                assert f'"{number}"' in str(await asyncio.wait_for(talk.recv(), 5))
                seen.messages += 1
                if stop.is_set():
                    return
                await asyncio.sleep(0.1)
    except (ConnectionClosed, OSError, asyncio.TimeoutError) as error:
        seen.broken.append(repr(error))


async def paced(per_second: float, stop: asyncio.Event) -> AsyncIterator[int]:
    begin = time.monotonic()
    for number in itertools.count():
        if stop.is_set():
            return
        yield number
        await asyncio.sleep(max(0.0, begin + (number + 1) / per_second - time.monotonic()))


async def under_load(stage: Stage, work: Callable[[], Awaitable[Any]]) -> Seen:
    """What clients saw while `work` was done: half of them with a connection for each request, half with kept ones."""
    seen, stop = Seen(), asyncio.Event()
    base = stage.setup.base
    fresh = httpx.AsyncClient(base_url=base, verify=PLAIN, limits=httpx.Limits(max_keepalive_connections=0), timeout=10)
    kept = httpx.AsyncClient(base_url=base, verify=PLAIN, timeout=10)
    url = base.replace("http", "ws") + "/webui/queue/join"
    async with fresh, kept:
        tasks = [asyncio.create_task(converse(seen, url, stop)) for _ in range(SOCKETS)]

        async def keep_asking() -> None:
            async for number in paced(REQUESTS_PER_SECOND, stop):
                is_kept = number % 2 == 0
                tasks.append(asyncio.create_task(ask(seen, kept if is_kept else fresh, number // 2, is_kept)))

        asking = asyncio.create_task(keep_asking())
        await asyncio.sleep(1)
        try:
            await work()
            await asyncio.sleep(1)
        finally:
            stop.set()
            await asking
            await asyncio.gather(*tasks)
    return seen


async def test_changes_and_a_reload_break_nothing(stage: Stage) -> None:
    choice = random.Random(5)
    push(stage, choice)
    memory: list[int] = []

    async def change() -> None:
        memory.append(memory_of(stage))
        for number in range(CHANGES):
            await asyncio.to_thread(push, stage, choice)
            if number == CHANGES // 2:
                await asyncio.to_thread(reload, stage)
            await asyncio.sleep(0.04)
        memory.append(memory_of(stage))

    seen = await under_load(stage, change)
    print(
        f"\n{CHANGES} changes and a reload: {dict(seen.answers)}, {len(seen.failed)} failed, {seen.sent_again} sent "
        f"again on another connection; {seen.messages} messages, {len(seen.broken)} of {SOCKETS} WebSockets broken; "
        f"memory {memory[0] / MEBIBYTE:.0f} → {memory[1] / MEBIBYTE:.0f} MiB"
    )
    assert seen.failed == []
    assert seen.broken == []
    assert seen.messages > 10 * SOCKETS
    assert sum(seen.answers.values()) > 100
    assert memory[1] - memory[0] < 48 * MEBIBYTE, "four old workers, which wait for their WebSockets"


@pytest.mark.long
async def test_a_stop_ends_within_its_time_and_tells_websockets(stage: Stage) -> None:
    """Those that are still open after 20 s are told to come again elsewhere; whatever is left after 30 s is cut."""
    push(stage, random.Random(5))
    async with websockets.asyncio.client.connect(
        stage.setup.base.replace("http", "ws") + "/webui/queue/join", additional_headers=KEY
    ) as talk:
        begin = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(docker, "stop", "-t", "60", stage.setup.container))
        await asyncio.sleep(3)
        await talk.send("still there?")
        assert "still there?" in str(await talk.recv())
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(talk.recv(), 40)
        told = time.monotonic() - begin
        await stopping
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1012
    print(f"\ntold after {told:.1f} s, stopped after {time.monotonic() - begin:.1f} s")
    code = docker("inspect", "--format", "{{.State.ExitCode}}", stage.setup.container).stdout.strip()
    assert code == "0"
    assert time.monotonic() - begin < 35
