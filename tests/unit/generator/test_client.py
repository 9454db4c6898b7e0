"""The client against a real HTTP server that misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from generator.errors import Unhealthy
from generator.ops.client import Client


class Gateway(BaseHTTPRequestHandler):
    """Answers what `answers` holds, in turn, and remembers what it was asked."""

    answers: list[tuple[int, bytes]]
    asked: list[tuple[str, str, dict[str, str]]]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, dict(self.headers)))
        status, body = self.answers.pop(0)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815  (the names that http.server calls)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[tuple[type[Gateway], Client]]:
    handler = type("Handler", (Gateway,), {"answers": [], "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}", "key") as client:
            yield handler, client
        server.shutdown()
        thread.join()


def test_a_submission_is_repeated_with_the_same_key(gateway: tuple[type[Gateway], Client]) -> None:
    """A lost answer and a full queue are tried again; the key makes that safe."""
    handler, client = gateway
    handler.answers[:] = [(0, b""), (503, b"{}"), (202, b'{"id": "one"}')]
    assert client.submit({}, idempotency_key="k") == "one"
    assert [headers["Idempotency-Key"] for _, _, headers in handler.asked] == ["k", "k", "k"]
    assert {headers["Authorization"] for _, _, headers in handler.asked} == {"Bearer key"}


def test_a_refusal_is_not_repeated_and_told_in_its_own_words(gateway: tuple[type[Gateway], Client]) -> None:
    handler, client = gateway
    handler.answers[:] = [(422, json.dumps({"title": "Unprocessable", "detail": "frames: at most 128"}).encode())]
    with pytest.raises(Unhealthy, match=r"POST /api/v1/jobs: HTTP 422: frames: at most 128"):
        client.submit({}, idempotency_key="k")
    assert len(handler.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
def test_an_answer_that_is_no_object_is_told(gateway: tuple[type[Gateway], Client], body: bytes) -> None:
    handler, client = gateway
    handler.answers[:] = [(200, body)]
    with pytest.raises(Unhealthy, match="HTTP 200"):
        client.job("x")


def test_a_download_is_whole_or_not_there(gateway: tuple[type[Gateway], Client], tmp_path: Path) -> None:
    handler, client = gateway
    handler.answers[:] = [(200, b"video"), (404, b'{"title": "Not Found"}')]
    digest = client.download("x", tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"video"
    assert len(digest) == 64
    with pytest.raises(Unhealthy, match="HTTP 404: Not Found"):
        client.download("x", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_waiting_has_a_deadline_and_shows_the_state() -> None:
    with Client("http://127.0.0.1:9", "key") as client, pytest.raises(Unhealthy, match="webui-0: starting"):
        client.wait_ready(0.3, describe=lambda: "webui-0: starting")


def test_a_download_that_breaks_off_is_told(gateway: tuple[type[Gateway], Client], tmp_path: Path) -> None:
    handler, client = gateway
    handler.answers[:] = [(0, b"")]
    with pytest.raises(Unhealthy, match="did not arrive"):
        client.download("one", tmp_path / "one.mp4")
    assert not (tmp_path / "one.mp4").exists()
