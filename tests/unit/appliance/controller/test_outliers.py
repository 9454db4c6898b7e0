from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from appliance.controller.outliers import Record, Records, Tally, look
from appliance.controller.policy import Rules

RULES = Rules()
A, B, C = "gpu-01/0", "gpu-02/0", "gpu-03/0"


class Gateway:
    """Tallies that grow, looked at every quarter of a second."""

    def __init__(self, *names: str) -> None:
        self.tallies = {name: Tally() for name in names}
        self.records: Records = {}
        self.now = 0.0
        self.see()

    def see(self, counts: Mapping[str, tuple[int, int]] | None = None) -> None:
        """More requests that (succeeded, failed), by node."""
        for name, (passed, failed) in (counts or {}).items():
            old = self.tallies[name]
            self.tallies[name] = Tally(old.passed + passed, old.failed + failed)
        self.now += 0.25
        self.records = look(self.records, self.tallies, self.now, RULES)

    def out(self) -> set[str]:
        return {name for name, record in self.records.items() if record.is_out(self.now)}

    def on_trial(self) -> set[str]:
        return {name for name, record in self.records.items() if record.is_on_trial(self.now)}


def test_a_node_that_only_fails_is_out_after_five() -> None:
    gateway = Gateway(A, B, C)
    gateway.see({A: (0, 4), B: (4, 0), C: (4, 0)})
    assert gateway.out() == set()
    gateway.see({A: (0, 1)})
    assert gateway.out() == {A}


def test_a_success_in_between_clears_it() -> None:
    gateway = Gateway(A, B)
    for _ in range(10):
        gateway.see({A: (0, 4)})
        gateway.see({A: (1, 3)})
    assert gateway.out() == set()


def test_where_all_fail_it_is_the_requests() -> None:
    gateway = Gateway(A, B, C)
    for _ in range(10):
        gateway.see({A: (0, 3), B: (0, 3), C: (0, 3)})
    assert gateway.out() == set()


def test_a_single_node_stays() -> None:
    gateway = Gateway(A)
    for _ in range(10):
        gateway.see({A: (0, 5)})
    assert gateway.out() == set()


def test_what_began_before_does_not_bring_it_back() -> None:
    gateway = Gateway(A, B)
    gateway.see({A: (0, 5), B: (5, 0)})
    gateway.see({A: (1, 7)})
    assert gateway.out() == {A}
    gateway.now += RULES.first_out_seconds
    gateway.see({A: (0, 1)})
    assert gateway.out() == set(), "nor do failures of then count against it now"


def test_it_comes_back_on_trial_and_a_success_ends_that() -> None:
    gateway = Gateway(A, B)
    gateway.see({A: (0, 5), B: (5, 0)})
    gateway.now += RULES.first_out_seconds
    gateway.see()
    assert (gateway.out(), gateway.on_trial()) == (set(), {A})
    gateway.see({A: (1, 0)})
    assert (gateway.out(), gateway.on_trial()) == (set(), set())
    assert gateway.records[A].times == 0


def test_who_fails_the_trial_is_out_for_twice_as_long_each_time() -> None:
    gateway = Gateway(A, B)
    gateway.see({A: (0, 5), B: (5, 0)})
    lengths = []
    for _ in range(6):
        lengths.append(gateway.records[A].out_until - gateway.now)
        gateway.now = gateway.records[A].out_until
        gateway.see({A: (0, 1)})
        assert gateway.out() == set(), "once may be chance"
        gateway.see({A: (0, 1)})
        assert gateway.out() == {A}
    assert lengths == [5, 10, 20, 40, 60, 60]


def test_a_poisonous_request_cannot_take_out_more_than_half() -> None:
    """It fails wherever it goes, and goes on to the next node when one is out."""
    gateway = Gateway(A, B, C)
    for name in (A, B, C, B, C):
        gateway.see({name: (0, 5)})
    assert gateway.out() == {A}


def test_a_gateway_that_began_anew_knows_nothing_of_before() -> None:
    gateway = Gateway(A, B)
    gateway.see({A: (100, 4), B: (5, 0)})
    gateway.tallies[A] = Tally(0, 3)
    gateway.see()
    gateway.see({A: (0, 4)})
    assert gateway.out() == set()
    gateway.see({A: (0, 1)})
    assert gateway.out() == {A}


def test_what_was_not_told_this_time_stays() -> None:
    records = {A: Record(Tally(), streak=3)}
    assert look(records, {}, 1.0, RULES) == records


@given(
    st.lists(st.dictionaries(st.sampled_from([A, B, C]), st.tuples(st.integers(0, 9), st.integers(0, 9))), max_size=60)
)
def test_never_more_than_one_of_three(looks: list[dict[str, tuple[int, int]]]) -> None:
    gateway = Gateway(A, B, C)
    for counts in looks:
        gateway.see(counts)
        assert len(gateway.out()) <= 1
