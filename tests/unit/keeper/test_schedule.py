"""However often it is started anew, and whatever the clock does: the directory's limits are not burnt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keeper import schedule

NOW = 1_900_000_000.0
DAY = schedule.DAY_SECONDS


def test_without_a_failure_it_asks_at_once() -> None:
    assert schedule.after_failures(NOW, []) == NOW
    assert schedule.after_failures(NOW, [NOW - DAY]) == NOW


def test_a_failure_is_followed_by_ever_longer_waits() -> None:
    failures: list[float] = []
    now, waits = NOW, []
    for _ in range(6):
        failures.append(now)
        due = schedule.after_failures(now, failures)
        waits.append(due - now)
        now = due
    assert waits[:3] == [600, 3600, 6 * 3600]
    assert waits[3] == DAY - 600 - 3600 - 6 * 3600, "the fifth try waits for the first to be a day old"
    assert min(waits[1:]) >= 600


@given(st.lists(st.floats(min_value=0, max_value=7 * DAY), max_size=400))
def test_no_day_sees_more_than_four_failures(starts: list[float]) -> None:
    """The container is started at any moments; each time it asks as soon as it may, and fails."""
    failures: list[float] = []
    for now in sorted(starts):
        if schedule.after_failures(NOW + now, failures) <= NOW + now:
            failures.append(NOW + now)
    for moment in failures:
        within = [other for other in failures if moment <= other < moment + DAY]
        assert len(within) <= schedule.MOST_FAILURES


def test_failures_from_a_clock_that_was_ahead_do_not_count() -> None:
    assert schedule.after_failures(NOW, [NOW + 10 * DAY]) == NOW


@given(st.floats(min_value=0, max_value=1))
def test_a_success_is_looked_at_again_twice_a_day(chance: float) -> None:
    assert 11 * 3600 <= schedule.after_success(NOW, chance) - NOW <= 13 * 3600
