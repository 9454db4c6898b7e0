from __future__ import annotations

import json
import math
from typing import Any

import pytest

from appliance.exporter.aliases import WINDOW_SECONDS, Aliases
from appliance.exporter.families import write
from appliance.exporter.gateway import GatewayCounts, GatewayError, NodesView, NodeView, parse_counts, parse_view
from appliance.exporter.gateway_samples import STATES, gateway_families, node_families

BOUNDS = [0.1, 1, 10]


def document(**changes: Any) -> bytes:
    peer = {"status": {"2xx": 5, "5xx": 1}, "seconds_sum": 12.5, "within": [2, 4, 5], "bounds": BOUNDS, **changes}
    return json.dumps({"requests": 9, "peers": {"webui gpu-01/0": peer}}).encode()


def test_what_nginx_counts() -> None:
    counts = parse_counts(document())
    (peer,) = counts.peers
    assert (counts.requests, peer.pool, peer.name, peer.answers) == (9, "webui", "gpu-01/0", 6)
    assert peer.cumulative == ((0.1, 2), (1, 4), (10, 5), (math.inf, 6))
    text = write(gateway_families(counts), {"node_name": "a"}).decode()
    labels = 'node_name="a",pool="webui"'
    assert f'nginx_upstream_response_seconds_bucket{{le="10.0",{labels},upstream="gpu-01/0"}} 5.0' in text
    assert f'nginx_upstream_response_seconds_count{{{labels},upstream="gpu-01/0"}} 6.0' in text
    assert f'nginx_upstream_responses_total{{{labels},status="5xx",upstream="gpu-01/0"}} 1.0' in text
    assert 'nginx_http_requests_total{node_name="a"} 9.0' in text


def test_a_gateway_that_nobody_has_asked_yet() -> None:
    assert parse_counts(b'{"requests": 0, "peers": {}}') == GatewayCounts(0, ())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b'"x"', b'{"requests": -1, "peers": {}}', b'{"requests": 1, "peers": []}',
        b'{"requests": 1e400, "peers": {}}', b'{"requests": NaN, "peers": {}}',
        document(within=[1, 2]), document(within=[3, 2, 1]), document(bounds=[1, 0.1, 10]), document(status=[]),
        document(status={"2xx": "many"}), document(seconds_sum=None), document(within="abc"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_said_so(body: bytes) -> None:
    with pytest.raises(GatewayError):
        parse_counts(body)


def test_the_view_of_the_nodes() -> None:
    view = parse_view(
        {
            "nodes": {"webui gpu-01/0": {"state": "DOWN"}, "api gpu-02": {"state": "?"}, "odd": {}, "webui x": None},
            "changes": {"webui gpu-01/0 DOWN": 3, "webui gpu-01/0 ?": 1, "x": 1, "webui a UP": "many"},
        },
        STATES,
    )
    assert view == NodesView(
        (
            NodeView("webui", "gpu-01/0", "DOWN"),
            NodeView("api", "gpu-02", "UNKNOWN"),
            NodeView("webui", "x", "UNKNOWN"),
        ),
        {("webui", "gpu-01/0", "DOWN"): 3},
    )
    text = write(node_families(view), {"node_name": "a"}).decode()
    for state in STATES:
        value = float(state == "DOWN")
        assert f'animatediff_node_state{{node="gpu-01/0",node_name="a",pool="webui",state="{state}"}} {value}' in text


@pytest.mark.parametrize("view", [{}, {"nodes": [], "changes": 1}, {"nodes": None}])
def test_a_view_that_is_none(view: dict[str, Any]) -> None:
    assert parse_view(view, STATES) == NodesView((), {})


# --- the article's names ---------------------------------------------------------------------------------------------


def mean_of(aliases: Aliases, seconds: float, answers: int, now: float) -> float | None:
    counts = parse_counts(document(seconds_sum=seconds, status={"2xx": answers}, within=[0, 0, answers]))
    found = list(aliases.families(list(gateway_families(counts)), now))
    (mean,) = (family for family in found if family.name == "nginx_upstream_response_milliseconds")
    return mean.samples[0].value if mean.samples else None


def test_the_mean_of_five_minutes() -> None:
    aliases = Aliases()
    assert mean_of(aliases, 1000, 10, 0) is None, "it began before anybody looked"
    assert mean_of(aliases, 1003, 20, 15) == pytest.approx(300)
    assert mean_of(aliases, 1003, 20, WINDOW_SECONDS) == pytest.approx(300)
    assert mean_of(aliases, 1003, 20, 15 + WINDOW_SECONDS) is None, "nobody has answered for five minutes"
    assert mean_of(aliases, 1005, 21, 30 + WINDOW_SECONDS) == pytest.approx(2000)


def test_a_gateway_that_was_started_again_begins_anew() -> None:
    aliases = Aliases()
    mean_of(aliases, 1000, 10, 0)
    assert mean_of(aliases, 1, 5, 15) is None
    assert mean_of(aliases, 2, 15, 30) == pytest.approx(100)


def test_its_memory_is_bounded() -> None:
    aliases = Aliases()
    for second in range(2000):
        mean_of(aliases, second, second, second)
    assert len(aliases._latencies) <= WINDOW_SECONDS / 5 + 2
