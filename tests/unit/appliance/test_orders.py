from __future__ import annotations

import pytest

from appliance.queue.orders import Order, OrderKind


@pytest.mark.parametrize("order", [
    Order(OrderKind.DRAIN, "ada"),
    Order(OrderKind.QUARANTINE, "ada", 1.5, "it failed", until=2.5),
    Order(OrderKind.CANARY, "ada", 1.5, share=0.25),
])  # fmt: skip
def test_an_order_is_told_on_as_it_was(order: Order) -> None:
    assert Order.parse(order.to_json()) == order


@pytest.mark.parametrize("text", [
    "", "[]", "null", '{"order": "dance"}', '{"order": "canary", "share": 2}', '{"order": "canary", "share": NaN}',
    '{"order": "drain", "at": NaN}', '{"order": "drain", "at": Infinity}', '{"order": "drain", "until": 1e999}',
    '{"order": "drain", "at": [1]}', "[" * 100_000,
])  # fmt: skip
def test_what_cannot_be_told_on_is_no_order(text: str) -> None:
    """A controller passes them on to the gateway with each state: one odd entry would be its end, again and again."""
    assert Order.parse(text) is None
