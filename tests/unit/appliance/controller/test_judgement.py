from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from appliance.controller.judgement import Known, Standings, Worker, due_quarantines, judge, usual_fingerprint
from appliance.controller.policy import Node, Rules, State, Target, Verdict, decide
from appliance.queue.orders import Order, OrderKind

RULES = Rules()
A, B, C = "gpu-01/0", "gpu-02/0", "gpu-03/0"
OLD, NEW = "a" * 64, "b" * 64


def node(name: str, verdict: Verdict = Verdict.UP, fingerprint: str = OLD, pool: str = "webui") -> Node:
    return Node(Target(pool, name, "h", 7860), verdict, "10.0.0.1", reason="as it answers", fingerprint=fingerprint)


def order(kind: OrderKind, share: float | None = None) -> Order:
    return Order(kind, "ada", reason="on purpose", share=share)


def fleet(**verdicts: Verdict) -> list[Node]:
    names = {"a": A, "b": B, "c": C}
    return [node(names[key], verdicts.get(key, Verdict.UP)) for key in names]


def states(nodes: list[Node], known: Known, before: Standings | None = None) -> dict[str, State]:
    return {name: one.state for (_, name), one in judge(nodes, known, 10.0, RULES, before).items()}


def shares(nodes: list[Node], known: Known) -> dict[str, float]:
    standings = judge(nodes, known, 10.0, RULES)
    peers = decide(nodes, 10.0, RULES, standings)
    assert peers is not None
    return {peer.name: peer.weight for peer in peers["webui"]}


def test_without_anything_known_nodes_stand_as_they_answer() -> None:
    nodes = [*fleet(b=Verdict.DOWN, c=Verdict.WARMING), node("api-1", Verdict.UP, "", "api")]
    assert states(nodes, Known()) == {A: State.UP, B: State.DOWN, C: State.WARMING, "api-1": State.UP}


def test_orders() -> None:
    orders = {A: order(OrderKind.DRAIN), B: order(OrderKind.QUARANTINE)}
    standings = judge(fleet(), Known(orders=orders), 10.0, RULES)
    assert {name: one.state for (_, name), one in standings.items()} == {
        A: State.DRAINING,
        B: State.QUARANTINED,
        C: State.UP,
    }
    assert standings["webui", A].reason == "drain ordered by ada: on purpose"
    assert shares(fleet(), Known(orders=orders)) == {A: 0.0, C: 1.0}, "what runs on a drained one goes on"


def test_a_dead_node_is_dead_whatever_was_ordered() -> None:
    for kind in OrderKind:
        assert states(fleet(a=Verdict.DOWN), Known(orders={A: order(kind)}))[A] is State.DOWN


def test_the_last_usable_node_is_never_taken_out() -> None:
    for known in (
        Known(orders={A: order(OrderKind.DRAIN)}),
        Known(orders={A: order(OrderKind.QUARANTINE)}),
        Known(failing={A: "fails"}),
    ):
        standings = judge(fleet(b=Verdict.DOWN, c=Verdict.WARMING), known, 10.0, RULES)
        assert standings["webui", A].state is State.UP
        assert "last usable node" in standings["webui", A].reason
        assert standings["webui", A].share == 1.0


def test_of_several_that_should_go_the_least_harmful_stays() -> None:
    orders = {A: order(OrderKind.QUARANTINE), B: order(OrderKind.DRAIN), C: order(OrderKind.QUARANTINE)}
    assert states(fleet(), Known(orders=orders))[B] is State.UP


def test_another_fingerprint_than_most_waits() -> None:
    nodes = [node(A), node(B, fingerprint=NEW), node(C)]
    standings = judge(nodes, Known(), 10.0, RULES)
    assert standings["webui", B].state is State.WARMING
    assert standings["webui", B].reason == f"fingerprint differs: {NEW[:12]} where most have {OLD[:12]}"
    assert states(nodes, Known(orders={B: order(OrderKind.CANARY)}))[B] is State.UP


def test_two_that_are_away_do_not_make_the_third_ones_fingerprint_the_usual() -> None:
    nodes = [node(A, fingerprint=NEW), node(B, Verdict.DOWN), node(C, Verdict.DOWN)]
    assert usual_fingerprint(nodes, Known()) == OLD
    assert states(nodes, Known())[A] is State.UP, "but it is the last one"


def test_of_equally_many_fingerprints_the_one_in_use_counts() -> None:
    nodes = [node(A, fingerprint=NEW), node(B)]
    assert usual_fingerprint(nodes, Known(usual=OLD)) == OLD
    assert usual_fingerprint(nodes, Known(usual=NEW)) == NEW


def test_a_canary_has_its_share_and_no_vote() -> None:
    orders = {A: order(OrderKind.CANARY, 0.1), B: order(OrderKind.CANARY, 0.1)}
    nodes = [node(A, fingerprint=NEW), node(B, fingerprint=NEW), node(C)]
    found = shares(nodes, Known(orders=orders))
    assert usual_fingerprint(nodes, Known(orders=orders)) == OLD
    assert abs((found[A] + found[B]) / sum(found.values()) - 0.1) < 1e-6
    assert shares([node(A, fingerprint=NEW)], Known(orders=orders)) == {A: 1.0}, "alone it has to take all"


def test_a_canary_without_a_share_takes_as_many_as_anybody() -> None:
    assert set(shares(fleet(), Known(orders={A: order(OrderKind.CANARY)})).values()) == {1.0}


def test_a_node_that_fails_its_visitors_takes_no_new_ones_and_then_a_few() -> None:
    assert states(fleet(), Known(failing={B: "its requests fail"}))[B] is State.DRAINING
    tried = Known(on_trial=frozenset({B}))
    assert shares(fleet(), tried)[B] == RULES.trial_share
    standings = judge(fleet(), tried, 10.0, RULES)
    assert {name for (_, name), one in standings.items() if one.trial} == {B}
    peers = decide(fleet(), 10.0, RULES, standings)
    assert peers
    assert {peer.name for peer in peers["webui"] if peer.trial} == {B}


def test_a_silent_agent_is_told_and_decides_nothing() -> None:
    standings = judge(fleet(), Known(workers={A: Worker(silent_seconds=7.4)}), 10.0, RULES)
    one = standings["webui", A]
    assert (one.state, one.share) == (State.UP, 1.0)
    assert one.reason.endswith("its agent has been silent for 5 s: it takes no jobs of the queue, its pages work")


def test_since_goes_on_while_the_state_is_the_same() -> None:
    first = judge(fleet(), Known(), 10.0, RULES)
    drained = judge(fleet(), Known(orders={A: order(OrderKind.DRAIN)}), 20.0, RULES, first)
    later = judge(fleet(), Known(orders={A: order(OrderKind.DRAIN)}), 30.0, RULES, drained)
    assert (drained["webui", A].since, later["webui", A].since) == (20.0, 20.0)
    assert later["webui", B].since == first["webui", B].since


def bad(*moments: float, done_at: float = 0.0) -> Worker:
    return Worker(failed_at=moments, failure="CUDA_ERROR", done_at=done_at)


def due(workers: Mapping[str, Worker], now: float = 100.0, orders: Mapping[str, Order] | None = None) -> dict[str, str]:
    known = Known(workers=workers, orders=orders or {})
    return due_quarantines(judge(fleet(), known, 10.0, RULES).values(), known, RULES, now)


def test_a_worker_that_fails_while_others_succeed_is_quarantined() -> None:
    fine = Worker(done_at=95.0)
    assert due({A: bad(70, 80, 90), B: fine}) == {A: "its last 3 attempts failed with CUDA_ERROR while others succeed"}
    assert due({A: bad(80, 90), B: fine}) == {}, "twice may be chance"
    assert due({A: bad(70, 80, 90), B: Worker(done_at=60.0)}) == {}, "nobody has succeeded since: it is the jobs"
    assert due({A: bad(70, 80, 90), B: fine}, now=155.0) == {}, "after a while it may try again"
    assert due({A: bad(70, 80, 90), B: fine}, orders={A: order(OrderKind.CANARY)}) == {}, "an operator watches it"


def test_not_all_of_them() -> None:
    workers = {A: bad(70, 80, 90, done_at=85.0), B: bad(70, 80, 90, done_at=85.0), C: bad(70, 80, 90, done_at=85.0)}
    assert len(due(workers)) == 2


@given(
    st.lists(st.sampled_from(list(Verdict)), min_size=3, max_size=3),
    st.dictionaries(st.sampled_from([A, B, C]), st.sampled_from(list(OrderKind))),
    st.lists(st.sampled_from([OLD, NEW, ""]), min_size=3, max_size=3),
    st.sets(st.sampled_from([A, B, C])),
)
def test_whatever_is_known_someone_who_can_serve_does(
    verdicts: list[Verdict], orders: dict[str, OrderKind], prints: list[str], failing: set[str]
) -> None:
    names = (A, B, C)
    nodes = [node(name, verdict, print_) for name, verdict, print_ in zip(names, verdicts, prints, strict=True)]
    known = Known(
        orders={name: order(kind, 0.1 if kind is OrderKind.CANARY else None) for name, kind in orders.items()},
        failing=dict.fromkeys(failing, "fails"),
    )
    standings = judge(nodes, known, 10.0, RULES)
    if Verdict.UP in verdicts:
        serving = [one for one in standings.values() if one.state is State.UP and one.share > 0]
        assert serving
    assert all(one.share == 0 for one in standings.values() if one.state is not State.UP)
