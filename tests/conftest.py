"""Options, and the rule about Docker: without an engine such tests fail under CI and skip with a reason elsewhere."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

from generator.docker import Engine
from generator.errors import GeneratorError
from generator.ops.engine import ensure_engine
from generator.ops.images import build_images
from generator.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
TAG = os.environ.get("APPLIANCE_TEST_TAG", "test")
"""Another one for each checkout that is tested at the same time on one engine."""
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its reaper image is on a registry; fixtures clean up


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew from what is rendered now")
    parser.addoption("--long", action="store_true", help="run the long variants too")
    parser.addoption("--chaos-seed", help="repeat the choices of the chaos test's run with this seed")


def pytest_configure() -> None:
    """Where a shell runs us in the background Ctrl-C is ignored, and so it would be by every program of a test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What stands still for a full collection over torch and all tests looks like a dead process to others."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="runs with --long"))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A running Docker engine; an installed one that does not run is started."""
    try:
        return ensure_engine(install=False, progress=Progress())
    except GeneratorError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a Docker engine: {error}")
        pytest.skip(f"needs a Docker engine: {error}")


@pytest.fixture(scope="session")
def images(engine: Engine) -> str:
    """The tag under which every image of ours has been built."""
    build_images(engine, ROOT, tag=TAG, progress=Progress())
    return TAG
