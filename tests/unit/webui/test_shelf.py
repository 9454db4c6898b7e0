from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from webui.engine.shelf import GIB, Shelf, budget_bytes


@dataclass
class Thing:
    size: int


def test_what_is_there_is_not_loaded_again() -> None:
    shelf = Shelf(100, 4)
    first, had = shelf.take("a", 10, lambda: Thing(10))
    assert not had
    assert shelf.take("a", 10, lambda: pytest.fail("loaded twice")) == (first, True)


def test_the_least_recently_used_goes_first() -> None:
    shelf = Shelf(100, 2)
    for key in ("a", "b", "a", "c"):
        shelf.take(key, 1, lambda: Thing(1))
    assert [shelf.take(key, 1, lambda: Thing(1))[1] for key in ("a", "c")] == [True, True]
    assert not shelf.take("b", 1, lambda: Thing(1))[1]


def test_room_is_made_before_the_new_one_is_loaded() -> None:
    shelf = Shelf(100, 4)
    shelf.take("a", 60, lambda: Thing(60))
    held: list[bool] = []
    shelf.take("b", 60, lambda: (held.append("a" in shelf._items), Thing(60))[1])
    assert held == [False]


@pytest.mark.parametrize(("budget", "count"), [(0, 4), (100, 0), (59, 4)])
def test_without_room_nothing_is_kept_and_all_works(budget: int, count: int) -> None:
    shelf = Shelf(budget, count)
    thing, _ = shelf.take("a", 60, lambda: Thing(60))
    assert thing.size == 60
    assert not shelf.take("a", 60, lambda: Thing(60))[1]


def test_a_failed_load_leaves_nothing() -> None:
    shelf = Shelf(100, 4)
    with pytest.raises(OSError, match="gone"):
        shelf.take("a", 1, lambda: (_ for _ in ()).throw(OSError("gone")))
    assert not shelf.take("a", 1, lambda: Thing(1))[1]


@pytest.mark.parametrize(("limit", "gib", "budget"), [("max", 8, 8 * GIB), ("4294967296", 8, 2 * GIB), (None, 1, GIB)])
def test_the_budget_is_no_more_than_half_of_the_container(
    tmp_path: Path, limit: str | None, gib: float, budget: int
) -> None:
    path = tmp_path / "memory.max"
    if limit is not None:
        path.write_text(limit + "\n")
    assert budget_bytes(gib, path) == budget
