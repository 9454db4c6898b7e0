from __future__ import annotations

import pytest

from appliance.controller.exchange import Answer, ExchangeError, _parse
from appliance.controller.policy import Peer
from appliance.controller.probe import _fault
from appliance.controller.reconcile import encode


def test_an_answer_is_split() -> None:
    assert _parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\nbody") == Answer(503, b"body")
    assert _parse(b"HTTP/1.0 200\r\n\r\n") == Answer(200, b"")


@pytest.mark.parametrize("received", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_http_is_refused(received: bytes) -> None:
    with pytest.raises(ExchangeError):
        _parse(received)


@pytest.mark.parametrize(
    ("pool", "answer", "fine"),
    [
        ("webui", Answer(200, b'{"status": "ok"}'), True),
        ("webui", Answer(200, b'{"status": "loading"}'), False),
        ("webui", Answer(200, b"{}"), False),
        ("webui", Answer(200, b"<html>"), False),
        ("webui", Answer(200, b"3"), False),
        ("webui", Answer(503, b'{"status": "ok"}'), False),
        ("api", Answer(200, b""), True),
        ("api", Answer(503, b""), False),
    ],
)
def test_what_counts_as_healthy(pool: str, answer: Answer, fine: bool) -> None:
    assert (_fault(pool, answer) is None) is fine


def test_the_state_document() -> None:
    peers = {"api": (Peer("a", "10.0.0.1", 8000, 1.0),), "webui": (Peer("w", "10.0.0.2", 7860, 0.5),)}
    assert encode("17", 3, peers) == (
        b'{"epoch": "17", "pools": {"api": [{"ip": "10.0.0.1", "name": "a", "port": 8000}], '
        b'"webui": [{"ip": "10.0.0.2", "name": "w", "port": 7860, "weight": 0.5}]}, "version": 3}'
    )
