"""Hundreds of jobs, dozens of faults, and a checker that reads the history. See tests/integration/chaos.

pytest tests/integration/test_chaos.py --chaos-seed 1f3a9c02 -s      the choices of an earlier run again
pytest tests/integration/test_chaos.py --chaos-seed random -s        choices that nobody has seen yet
pytest tests/integration/test_chaos.py --long -s                     an hour of such
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from generator.docker import Engine
from tests.integration.chaos import checker, scenes
from tests.integration.chaos.checker import Violation, check
from tests.integration.chaos.cluster import Options, running_cluster
from tests.integration.chaos.history import Fault, History, Submit
from tests.integration.chaos.report import summary
from tests.integration.chaos.storm import Storm, Weather

pytestmark = pytest.mark.docker

SEED = "a8457228"
Scene = Callable[[Storm], Awaitable[None]]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """The same choices each time, unless others are asked for; the machine's own timing is not ours to repeat."""
    given = request.config.getoption("--chaos-seed")
    if given == "random" or (given is None and request.config.getoption("--long")):
        return os.urandom(4).hex()
    return str(given or SEED)


@contextmanager
def storm(engine: Engine, tag: str, folder: Path, weather: Weather, options: Options) -> Iterator[Storm]:
    with running_cluster(engine, tag, folder, options) as cluster:
        history = History(folder / "history.jsonl")
        blown = Storm(cluster, history, weather)
        try:
            yield blown
        finally:
            history.close()
            print("\n" + summary(weather.seed, history, blown.watcher.jobs), flush=True)


async def weather_it(engine: Engine, tag: str, folder: Path, weather: Weather) -> None:
    print(f"\nchaos seed {weather.seed}", flush=True)
    with storm(engine, tag, folder, weather, Options()) as blown:
        await blown.run()
    history = blown.history
    violations = "\n".join(map(str, check(history.records)))
    assert not violations, f"seed {weather.seed}, {folder}/history.jsonl:\n{violations}"
    assert len({submit.key for submit in history.of(Submit)}) >= weather.jobs
    assert sum(1 for _ in history.of(Fault)) >= 60 * weather.rounds


@pytest.mark.timeout(900)
async def test_nothing_is_lost_doubled_or_revived(engine: Engine, images: str, tmp_path: Path, seed: str) -> None:
    await weather_it(engine, images, tmp_path, Weather(seed))


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
async def test_nothing_is_lost_doubled_or_revived_in_an_hour(
    engine: Engine, images: str, tmp_path: Path, seed: str
) -> None:
    await weather_it(engine, images, tmp_path, Weather(seed, jobs=5000, rounds=18))


async def play(engine: Engine, tag: str, folder: Path, scene: Scene, options: Options) -> list[Violation]:
    with storm(engine, tag, folder, Weather(scene.__name__), options) as set_up:
        async with set_up.watched():
            await scene(set_up)
    violations = check(set_up.history.records)
    print("\n".join(map(str, violations)) or "no violation")
    return violations


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scene", [scenes.a_zombie_commits, scenes.the_old_master_acknowledges])
async def test_the_sound_build_gets_through_each_scene(
    engine: Engine, images: str, tmp_path: Path, scene: Scene
) -> None:
    assert await play(engine, images, tmp_path, scene, scenes.sound()) == []


@pytest.mark.timeout(300)
async def test_a_build_without_fencing_is_found_out(engine: Engine, images: str, tmp_path: Path) -> None:
    violations = await play(engine, images, tmp_path, scenes.a_zombie_commits, scenes.fencing_off(tmp_path))
    assert {one.kind for one in violations} >= {checker.FENCED_COMMIT, checker.TWO_COMMITS}


@pytest.mark.timeout(300)
async def test_a_build_without_wait_is_found_out(engine: Engine, images: str, tmp_path: Path) -> None:
    violations = await play(engine, images, tmp_path, scenes.the_old_master_acknowledges, scenes.wait_off())
    assert {one.kind for one in violations} == {checker.LOST}
