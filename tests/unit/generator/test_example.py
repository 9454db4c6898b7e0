"""The example is documentation, template and schema in one; this holds the three together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from generator.checks import check
from generator.load import Loaded, load
from generator.marks import Path as KeyPath
from generator.model import Cluster, Gpu, Role

CONFIG = Path(__file__).parents[3] / "config"
EXAMPLE = CONFIG / "cluster.example.yaml"
LEFT_OUT = re.compile(r"^( *)#(?=[a-z0-9_]+:)", re.MULTILINE)


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from parts_of(argument)


def fields_of(part: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path without list indexes and the names of hosts and receivers, field) of all the model."""
    for name, info in part.model_fields.items():
        yield (*path, name), info
        for inner in parts_of(info.annotation):
            yield from fields_of(inner, (*path, name))


def plain(path: KeyPath) -> tuple[str, ...]:
    steps = [step for step in path if isinstance(step, str)]
    if "receivers" in steps[1:2]:
        return tuple(steps[:2] + steps[3:])
    return tuple(steps[:1] + steps[2:] if steps[:1] == ["hosts"] else steps)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The example with every `#key:` line taken in."""
    path = tmp_path_factory.mktemp("example") / "cluster.yaml"
    path.write_text(LEFT_OUT.sub(r"\1", EXAMPLE.read_text()))
    return load(path)


@pytest.mark.parametrize("name", ["cluster.example.yaml", "cluster.demo.yaml"])
def test_the_shipped_files_are_without_fault(name: str) -> None:
    loaded = load(CONFIG / name)
    assert check(loaded) == []


def test_every_key_of_the_model_is_in_the_example(complete: Loaded) -> None:
    shown = {plain(path) for path in complete.marks}
    assert [path for path, _ in fields_of(Cluster) if path not in shown] == []


def test_what_is_commented_out_shows_the_default(complete: Loaded) -> None:
    """Where the default is nothing at all, an example of a value is shown instead."""
    written = {plain(path) for path in load(EXAMPLE).marks}
    left_out = [path for path in complete.marks if plain(path) not in written and isinstance(path[-1], str)]
    assert len(left_out) > 8
    defaults = {
        path: info.get_default()
        for path, info in fields_of(Cluster)
        if not info.is_required() and info.default_factory is None
    }
    for path in left_out:
        default = defaults.get(plain(path))
        if default is not None and complete.marks[path].raw:  # which a mapping or a list has not
            assert complete.marks[path].raw == str(getattr(default, "value", default)), path


def test_every_key_has_a_comment_on_its_line() -> None:
    sections = set(Cluster.model_fields) | {"tls", "nfs", "cephfs"}
    bare = []
    for number, line in enumerate(EXAMPLE.read_text().splitlines(), 1):
        key = re.match(r"^ *#?(?:- )?\{?([a-z0-9_-]+):", line)
        if key and key[1] not in sections and not re.search(r"\S +# \S", line):
            bare.append(f"{number}: {line}")
    assert bare == []


def test_the_example_stays_readable() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 175
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() and line.isascii() for line in lines)


def test_the_example_is_the_cluster_of_the_readme() -> None:
    cluster = load(EXAMPLE).cluster
    assert [str(host.address) for host in cluster.hosts.values()] == ["192.168.1.10", "192.168.1.11", "192.168.1.12"]
    assert str(cluster.gateway.vip) == "192.168.1.100"
    assert {len(host.gpus) for host in cluster.hosts.values()} == {2}
    assert {role for host in cluster.hosts.values() for role in host.roles} == set(Role)
    assert set(Gpu.model_fields) == {"uuid", "memory_gib"}


def test_the_demo_is_one_host_with_three_workers_on_this_machine_only() -> None:
    cluster = load(CONFIG / "cluster.demo.yaml").cluster
    (host,) = cluster.hosts.values()
    assert (host.cpu_workers, str(host.address), str(cluster.gateway.bind)) == (3, "127.0.0.1", "127.0.0.1")
