from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.controller.policy import Node, Observation, Rules, Target, Verdict, decide, observe

RULES = Rules()
TARGET = Target("webui", "gpu-01/0", "webui-0", 7860)


def run(node: Node, outcomes: str, start: float = 0.0, step: float = 0.25) -> Node:
    """`.` a success, `x` no answer, `n` a "not ready", `r` a refused connection, one every `step` seconds."""
    for position, outcome in enumerate(outcomes):
        at = start + position * step
        failure = None if outcome == "." else "no answer"
        seen = Observation(at, "10.0.0.1", failure, refused=outcome == "r", answered=outcome in ".n")
        node = observe(node, seen, RULES)
    return node


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ("", Verdict.UNKNOWN),
        (".", Verdict.UNKNOWN),
        ("..", Verdict.UP),
        ("x", Verdict.UNKNOWN),
        ("xx", Verdict.DOWN),
        ("r", Verdict.DOWN),
        ("..x", Verdict.UP),
        ("..x.x.x", Verdict.UP),
        ("..xx", Verdict.DOWN),
        ("..r", Verdict.DOWN),
        ("xx.", Verdict.DOWN),
        ("xx..", Verdict.UP),
        ("xx.x.", Verdict.DOWN),
    ],
)
def test_verdicts(outcomes: str, verdict: Verdict) -> None:
    assert run(Node(TARGET), outcomes).verdict is verdict


@pytest.mark.parametrize(
    ("seen", "busy"),
    [
        (Observation(1.0, "10.0.0.1", answered=True, busy=0), 0),
        (Observation(1.0, "10.0.0.1", answered=True, busy=1), 1),
        (Observation(1.0, "10.0.0.1", "no answer in 0.5 s"), 3),
        (Observation(1.0, None, "name webui-0 does not resolve"), 3),
        (Observation(1.0, "10.0.0.1", "/internal/ping answered no status", answered=True), 3),
        (Observation(1.0, "10.0.0.1", "connection refused", refused=True), 0),
    ],
)
def test_silence_is_no_word_of_having_nothing_to_do(seen: Observation, busy: int) -> None:
    node = observe(Node(TARGET), Observation(0.5, "10.0.0.1", answered=True, busy=3), RULES)
    assert observe(node, seen, RULES).busy == busy
    assert observe(observe(node, seen, RULES), replace(seen, at=1.25), RULES).busy == busy


def test_a_flapping_node_is_held_down_twice_as_long_each_time() -> None:
    node, at, holds = run(Node(TARGET), ".."), 1.0, []
    for _ in range(10):
        node = run(node, "r", at)
        holds.append(max(0.0, node.held_until - at))
        at = max(at, node.held_until)
        node = run(node, "..", at, step=0.1)
        at += 0.2
        assert node.verdict is Verdict.UP
    assert holds[:3] == [0, 0, 0]
    assert holds[3:] == pytest.approx([2, 4, 8, 16, 32, 60, 60])


def test_a_held_node_does_not_rise_before_its_time() -> None:
    node = Node(TARGET)
    for at in (1.0, 2.0, 3.0, 4.0):
        node = run(run(node, "..", at, step=0.1), "r", at + 0.5)
    assert node.held_until == pytest.approx(6.5)
    assert run(node, "......", 4.6).verdict is Verdict.DOWN
    assert run(node, "......", 5.5).verdict is Verdict.UP


def test_old_falls_are_forgotten() -> None:
    node = Node(TARGET)
    for at in (1.0, 2.0, 3.0, 304.0):
        node = run(run(node, "..", at, step=0.1), "r", at + 0.5)
    assert node.held_until == 0


def fleet(*outcomes: str) -> list[Node]:
    nodes = [Node(Target("webui", f"n{index}", f"h{index}", 7860)) for index in range(len(outcomes))]
    return [run(node, outcome) for node, outcome in zip(nodes, outcomes, strict=True)]


def names(nodes: list[Node], now: float) -> list[str] | None:
    peers = decide(nodes, now, RULES)
    return None if peers is None else [peer.name for peer in peers["webui"]]


def test_nothing_is_decided_before_every_node_is_judged() -> None:
    assert names(fleet("..", "."), 1.0) is None
    assert names(fleet("..", "xx"), 1.0) == ["n0"]


def test_both_pools_are_always_named() -> None:
    assert decide([], 0.0, RULES) == {"api": (), "webui": ()}


def test_a_failed_node_leaves_the_others_alone() -> None:
    assert names(fleet("....", "..xx", "...."), 0.75) == ["n0", "n2"]


def test_when_all_fail_together_the_state_is_kept_for_a_second() -> None:
    nodes = fleet("..xx", "..xx", "...xx")  # the last one falls 0.25 s later, at 1.0
    assert names(nodes, 1.0) == ["n0", "n1", "n2"]
    assert names(nodes, 1.99) == ["n0", "n1", "n2"]
    assert names(nodes, 2.0) == []


def test_a_node_that_failed_long_before_is_not_revived_by_the_doubt() -> None:
    nodes = fleet("..xx", "..........xx")  # falls at 0.75 and at 2.75
    assert names(nodes, 2.8) == ["n1"]


def flapped(name: str, at: float) -> Node:
    """Fallen too often at `at`, and held down for 2 s."""
    node = Node(replace(TARGET, name=name))
    for earlier in (3.0, 2.0, 1.0, 0.0):
        node = run(run(node, "..", at - earlier - 0.5, step=0.1), "r", at - earlier)
    return node


def test_held_down_nodes_that_answer_are_better_than_none() -> None:
    """A busy machine answered late again and again: all were held down, and all of them answered."""
    first, second = run(flapped("a", 10.0), "..", 10.2), run(flapped("b", 10.0), ".x", 10.2)
    assert (first.verdict, second.verdict) == (Verdict.DOWN, Verdict.DOWN)
    late = 10.0 + RULES.doubt_seconds + 0.5
    assert names([first, second], late) == ["a"]
    other = run(Node(replace(TARGET, name="c")), "..")
    assert names([first, second, other], late) == ["c"], "who is up needs no such help"
    assert names([second], late) == [], "one good answer is none yet"


def apis(*outcomes: str) -> dict[str, float]:
    nodes = [run(Node(Target("api", f"a{index}", "h", 8000)), outcome) for index, outcome in enumerate(outcomes)]
    peers = decide(nodes, 100.0, RULES)
    assert peers is not None
    return {peer.name: peer.weight for peer in peers["api"]}


def test_an_api_that_answers_without_being_ready_takes_nothing_new_and_is_not_gone() -> None:
    assert apis("..", "..nn", "..xx") == {"a0": 1, "a1": 0}
    assert apis("..nn", "nn", "..nnx", "..nnxn") == {"a0": 0, "a1": 0, "a2": 0, "a3": 0}, "none is ready without Redis"
    assert apis("..", "..nnxx", "..nnr", "nnxxx", "xxxx") == {"a0": 1}
    assert apis("..nn..") == {"a0": 1}
    assert names(fleet("..nn", ".."), 1.0) == ["n1"], "a page that is not well is of no use"


def test_nodes_that_never_worked_are_not_doubted() -> None:
    assert names(fleet("xx", "rr"), 0.3) == []


def test_a_peer_carries_the_address_of_the_newest_answer() -> None:
    node = run(Node(TARGET), "..")
    node = observe(node, Observation(2.0, "10.0.0.9", answered=True), RULES)
    peers = decide([node], 2.0, RULES)
    assert peers is not None
    assert [peer.ip for peer in peers["webui"]] == ["10.0.0.9"]
