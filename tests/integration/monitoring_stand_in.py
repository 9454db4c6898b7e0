"""In a container: in the place of a host's exporter (9400) and of a gateway (8080) that writes down what it is told.

`PUT /metrics` says what the exporter answers from then on, `GET /recorded` what the gateway has got, as JSON.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = Path("/run/secrets/cluster_token").read_text()
metrics = b""
recorded: list[dict[str, Any]] = []


class Quiet(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes = b"", kind: str = "text/plain; version=0.0.4") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def log_message(self, format: str, *args: object) -> None: ...


class Exporter(Quiet):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.answer(200 if known else 401, metrics if known else b"")


class Gateway(Quiet):
    def do_GET(self) -> None:
        body = json.dumps(recorded).encode() if self.path == "/recorded" else b"{}"
        self.answer(200, body, "application/json")

    def do_PUT(self) -> None:
        global metrics
        metrics = self.read()
        self.answer(204)

    def do_POST(self) -> None:
        body = json.loads(self.read())
        recorded.append({"path": self.path, "authorization": self.headers["Authorization"], "body": body})
        self.answer(200, b'{"errcode": 0}', "application/json")  # as a group's robot does


if __name__ == "__main__":
    exporter = ThreadingHTTPServer(("0.0.0.0", 9400), Exporter)
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("0.0.0.0", 8080), Gateway).serve_forever()
