"""This host's gateway → metrics 16 and 17, and its controller's view of the nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from appliance.exporter.families import add_spread, counter, gauge, histogram
from appliance.exporter.gateway import GatewayCounts, NodesView

STATES = ("UP", "WARMING", "DRAINING", "DOWN", "QUARANTINED", "UNKNOWN")


def gateway_families(counts: GatewayCounts) -> Iterator[Metric]:
    yield counter(
        "nginx_http_requests_total", "Requests that this host's gateway has had", [({}, float(counts.requests))]
    )
    labelled = [({"pool": peer.pool, "upstream": peer.name}, peer) for peer in counts.peers]
    spread = histogram("nginx_upstream_response_seconds", "How long a peer took to answer this host's gateway")
    for labels, peer in labelled:
        add_spread(spread, labels, peer.cumulative, peer.seconds)
    yield spread
    yield counter(
        "nginx_upstream_responses_total",
        "What peers answered this host's gateway, by class of status",
        (
            ({**labels, "status": status}, number)
            for labels, peer in labelled
            for status, number in peer.answers_by_status.items()
        ),
    )


def node_families(view: NodesView) -> Iterator[Metric]:
    yield gauge(
        "animatediff_node_state",
        "1 for the state in which this host's controller sees a node, 0 for the others",
        (
            ({"node": node.name, "pool": node.pool, "state": state}, float(node.state == state))
            for node in view.nodes
            for state in STATES
        ),
    )
    yield counter(
        "animatediff_node_state_changes_total",
        "How often this host's controller saw a node come into a state",
        (
            ({"node": name, "pool": pool, "state": state}, number)
            for (pool, name, state), number in view.changes.items()
        ),
    )
