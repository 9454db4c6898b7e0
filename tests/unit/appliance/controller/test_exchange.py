from __future__ import annotations

import json

import pytest

from appliance.controller.exchange import Answer, ExchangeError, _parse
from appliance.controller.gateway import encode, tallies
from appliance.controller.outliers import Tally
from appliance.controller.policy import Observation, Peer
from appliance.controller.probe import read_answer
from appliance.queue.orders import Order, OrderKind

SEEN = Observation(1.0, "10.0.0.1")


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
    seen = read_answer(pool, answer, SEEN)
    assert (seen.failure is None) is fine
    assert (seen.at, seen.address, seen.refused, seen.answered) == (1.0, "10.0.0.1", False, True)


@pytest.mark.parametrize("status", [204, 302, 401, 404, 500])
def test_who_is_no_api_judges_no_keys(status: int) -> None:
    seen = read_answer("api", Answer(status, b""), SEEN)
    assert (seen.failure, seen.answered) == (f"/readyz answered {status}", False)


def test_what_a_page_tells_besides() -> None:
    answer = Answer(503, b'{"status": "draining", "fingerprint": "abc", "load": 3}')
    seen = read_answer("webui", answer, SEEN)
    assert (seen.said, seen.fingerprint, seen.busy) == ("draining", "abc", 3)
    assert seen.failure == "/internal/ping answered status 'draining'"
    older = read_answer("webui", Answer(200, b'{"status": "ok", "busy": "job", "fingerprint": null}'), SEEN)
    assert (older.failure, older.fingerprint, older.busy) == (None, "", 1)


@pytest.mark.parametrize("load", ["-1", "1e400", "1e9", "10000000000000", '"x"', "[]", "true", "null"])
def test_a_strange_load_is_bounded(load: str) -> None:
    seen = read_answer("webui", Answer(200, f'{{"status": "ok", "load": {load}}}'.encode()), SEEN)
    assert seen.failure is None
    assert 0 <= seen.busy <= 1_000_000


def test_long_texts_are_cut() -> None:
    long = "x" * 10_000
    body = f'{{"status": "{long}", "fingerprint": "{long}"}}'.encode()
    seen = read_answer("webui", Answer(503, body), SEEN)
    assert max(len(seen.said), len(seen.fingerprint), len(seen.failure or "")) < 200


def test_tallies_of_a_pool() -> None:
    counts = {
        "webui gpu-01/0": {"passed": 4, "failed": 1, "status": {"2xx": 4}},
        "api gpu-01": {"passed": 9, "failed": 0},
        "webui odd": {"passed": "many"},
    }
    assert tallies(counts, "webui") == {"gpu-01/0": Tally(4, 1)}


def test_the_state_document() -> None:
    peers = {"api": (Peer("a", "10.0.0.1", 8000, 1.0),), "webui": (Peer("w", "10.0.0.2", 7860, 0.5, 2, trial=True),)}
    orders = {"w": Order(OrderKind.DRAIN, "ada", 1.5)}
    assert json.loads(encode("17", 3, peers, orders)) == {
        "epoch": "17",
        "version": 3,
        "pools": {
            "api": [{"ip": "10.0.0.1", "name": "a", "port": 8000, "weight": 1.0}],
            "webui": [{"busy": 2, "ip": "10.0.0.2", "name": "w", "port": 7860, "trial": True, "weight": 0.5}],
        },
        "orders": {"w": orders["w"].to_json()},
    }
    assert encode("17", 3, dict(reversed(peers.items())), orders) == encode("17", 3, peers, orders)
