"""Upgrades of a running cluster under load: all the way, and back by itself where the new release is broken."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import typer.testing
import yaml

from generator import tree
from generator.cli import app
from generator.docker import Engine
from generator.load import load
from generator.ops.client import Client
from generator.ops.demo import free_port
from generator.plan import plan
from generator.render import render
from generator.secrets import STORE, Store, lay_out
from generator.sources import ROOT, read_sources
from tests.integration.stack import Stack, compose

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
PROJECT = "adha-upgrade"
STEP_SECONDS = 0.05
JOBS_EVERY, PAGES_EVERY = 0.5, 0.05
CURSED = "cursed"
AWAY_SECONDS = 30.0
OLD, NEW = "upgrade-old", "upgrade-new"
DOCKERFILE = """FROM animatediff-ha/webui-synthetic:{tag}
USER 0:0
RUN cd /opt/webui && sed -i 's/^__version__ = .*/__version__ = "2"/' webui/__init__.py \\
    && python3 -m compileall -q -f --invalidation-mode unchecked-hash webui/__init__.py
USER 10001:10001
{more}
"""


def faults(**faults: object) -> str:
    return f"ENV APPLIANCE_SYNTHETIC_FAULTS='{json.dumps(faults)}'"


BROKEN = {
    "crash-loop": 'ENTRYPOINT ["/bin/false"]',
    "half-dead": faults(fail_prompt_contains="boat", reason="UNKNOWN"),
    "slow": faults(slow_step_seconds=4 * STEP_SECONDS),
    "errors": faults(fail_prompt_contains=CURSED, reason="UNKNOWN"),
}
SAID = {
    "crash-loop": "does not become healthy",
    "half-dead": "of the jobs failed",
    "slow": "times as long as the others'",
    "errors": "of the jobs failed",
}


def docker(*words: str, stdin: str = "") -> None:
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def make_release(tag: str, source: str, more: str = "", *, changed: bool = True) -> None:
    """All images under this tag; the webui's as another version, and with `more` in its Dockerfile."""
    for name in ("services", "gateway", "redis", "base"):
        docker("tag", f"animatediff-ha/{name}:{source}", f"animatediff-ha/{name}:{tag}")
    if not changed:
        docker("tag", f"animatediff-ha/webui-synthetic:{source}", f"animatediff-ha/webui-synthetic:{tag}")
        return
    text = DOCKERFILE.format(tag=source, more=more)
    docker("build", "--quiet", "--tag", f"animatediff-ha/webui-synthetic:{tag}", "-", stdin=text)


@dataclass
class Cluster:
    file: Path
    out: Path
    stack: Stack

    def upgrade(self, *words: str) -> typer.testing.Result:
        options = [
            "--file",
            str(self.file),
            "--out",
            str(self.out),
            "--dwell",
            "8",
            "--minimum",
            "10",
            "--longest",
            "60",
        ]
        return typer.testing.CliRunner().invoke(app, ["upgrade", *words, *options])

    def tags(self) -> Counter[str]:
        """Of the images that run."""
        found = self.stack.engine.containers(PROJECT)
        return Counter(one.image.rpartition(":")[2] for one in found if one.state == "running")

    def drift(self) -> list[tree.Change]:
        return tree.diff(self.out, render(plan(load(self.file).cluster), read_sources()))

    def orders(self) -> list[str]:
        with self.stack.client() as client:
            return [one["name"] for one in client.nodes() if one["order"]]


@pytest.fixture(scope="module")
def cluster(engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    make_release(OLD, images, changed=False)
    folder = tmp_path_factory.mktemp("upgrade")
    data = yaml.safe_load((ROOT / "config/cluster.demo.yaml").read_text())
    port = free_port(18_280)
    data["name"] = PROJECT
    data["images"] |= {"webui": "synthetic", "tag": OLD}
    data["gateway"]["http_port"] = port
    data.setdefault("worker", {})["step_seconds"] = STEP_SECONDS
    file, out = folder / "cluster.yaml", folder / "rendered"
    file.write_text("# kept\n" + yaml.safe_dump(data))
    the_plan = plan(load(file).cluster)
    tree.write(out, render(the_plan, read_sources()))
    store = Store(folder / STORE)
    store.create_missing(("localhost",), tls=False)
    lay_out(the_plan, out, store.read())
    host = out / the_plan.hosts[0].name
    with compose(host):
        key = store.read()["api_key"].decode()
        stack = Stack(PROJECT, the_plan, f"http://127.0.0.1:{port}", key, engine, f"{PROJECT}_cluster")
        with stack.client() as client:
            client.wait_ready(60, describe=lambda: str(engine.containers(PROJECT)))
        yield Cluster(file, out, stack)


@dataclass
class Load:
    """Pages of visitors and jobs, all the time; what went wrong with them."""

    stack: Stack
    failed: list[tuple[float, str]] = field(default_factory=list)
    """When, and what."""
    pages: int = 0
    jobs: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for work in (self._visit, self._visit, self._submit):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)
        time.sleep(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _visit(self) -> None:
        with httpx.Client(base_url=self.stack.url, headers={"X-Api-Key": self.stack.key}, timeout=15) as client:
            while not self._stop.wait(PAGES_EVERY):
                client.cookies.clear() if self.pages % 3 else None
                try:
                    answer = client.get("/webui/local/node")
                except httpx.HTTPError as error:
                    self._fail(f"page: {error!r}")
                    continue
                self.pages += 1
                if answer.status_code != 200:
                    self._fail(f"page: {answer.status_code} {answer.text[:200]}")

    def _submit(self) -> None:
        number = 0
        with Client(self.stack.url, self.stack.key, timeout_seconds=15) as client:
            while not self._stop.wait(JOBS_EVERY):
                number += 1
                prompt = f"a {CURSED} boat" if number % 10 == 0 else "a boat"
                request = {"prompt": prompt, "width": 64, "height": 64, "frames": 8, "steps": 8}
                try:
                    self.jobs.append(client.submit(request, idempotency_key=str(uuid.uuid4())))
                except Exception as error:
                    self._fail(f"submit: {error!r}")

    def _fail(self, what: str) -> None:
        self.failed.append((time.monotonic(), what))

    def unfinished(self) -> dict[str, str]:
        """Jobs that are not done, after they had their time."""
        end = time.monotonic() + 90
        with self.stack.client() as client:
            while True:
                states = {job: client.job(job)["state"] for job in self.jobs}
                left = {job: state for job, state in states.items() if state != "done"}
                if not left or time.monotonic() > end:
                    return left
                time.sleep(1)


def test_the_plan_is_printed_and_nothing_changes(cluster: Cluster) -> None:
    before = cluster.tags()
    result = cluster.upgrade("--image", NEW, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"to   {NEW} with" in result.output
    assert "canary: demo/0, 10% of the new sessions" in result.output
    assert "the only gateway" in result.output
    assert (cluster.tags(), cluster.drift()) == (before, [])
    assert "no such tag" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say what to upgrade to"),
        (("--image", OLD), "has"),
        (("--image", "no-such-tag"), "these images are missing"),
        (("--image", "a b"), "not an image tag"),
    ],
)
def test_what_cannot_be_upgraded_to(cluster: Cluster, words: tuple[str, ...], said: str) -> None:
    before = cluster.tags()
    result = cluster.upgrade(*words)
    assert result.exit_code != 0
    assert said in str(result.output) + str(result.exception)
    assert (cluster.tags(), cluster.drift(), cluster.orders()) == (before, [], [])
    assert not (cluster.out / ".upgrade.json").exists()


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("crash-loop", "errors") else pytest.mark.long) for kind in BROKEN]
)
def test_a_broken_release_goes_back_by_itself(cluster: Cluster, images: str, kind: str) -> None:
    make_release(f"upgrade-{kind}", images, BROKEN[kind])
    text, before = cluster.file.read_text(), cluster.tags()
    begin = time.monotonic()
    with Load(cluster.stack) as load_:
        result = cluster.upgrade("--image", f"upgrade-{kind}")
    assert result.exit_code == 2 or "as before" in str(result.exception), result.output
    assert SAID[kind] in str(result.exception)
    print(f"\n{kind}: as before after {time.monotonic() - begin:.0f} s, {load_.pages} pages, {len(load_.jobs)} jobs")
    print(f"  {str(result.exception).splitlines()[0]}")
    assert (cluster.file.read_text(), cluster.tags(), cluster.drift(), cluster.orders()) == (text, before, [], [])
    assert load_.failed == []
    assert load_.unfinished() == {}


def test_another_release_loses_no_job_and_is_away_once(cluster: Cluster, images: str) -> None:
    """One host has one gateway, one api and one Redis: while the last step replaces them nobody answers."""
    make_release(NEW, images)
    begin = time.monotonic()
    with Load(cluster.stack) as load_:
        result = cluster.upgrade("--image", NEW)
    assert result.exit_code == 0, (result.output, result.exception)
    moments = [moment for moment, _ in load_.failed]
    away = max(moments) - min(moments) if moments else 0.0
    print(f"\nall on {NEW} after {time.monotonic() - begin:.0f} s, {load_.pages} pages, {len(load_.jobs)} jobs; ")
    print(f"  the only gateway did not answer for {away:.1f} s, {len(moments)} requests")
    assert set(cluster.tags()) == {NEW}
    assert cluster.file.read_text().startswith("# kept\n")
    assert load(cluster.file).cluster.images.tag == NEW
    assert (cluster.drift(), cluster.orders()) == ([], [])
    assert away < AWAY_SECONDS, load_.failed
    assert [what for _, what in load_.failed if what.startswith("submit")] == [], "sent again until it was taken"
    assert load_.unfinished() == {}
