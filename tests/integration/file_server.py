"""A real HTTP server of files with ranges and If-Range, which misbehaves in the order that a test has planned."""

from __future__ import annotations

import hashlib
import json
import random
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def tensors(size: int = 300_000, seed: int = 0) -> bytes:
    """A whole safetensors file with `size` bytes of data that no compression makes smaller."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


@dataclass
class Asked:
    path: str
    range: str | None
    if_range: str | None
    sent: int = 0
    left: bool = False


class FileServer:
    """`plan[path]` holds what is to happen to the next requests, one entry each; then all is well.

    ("break", n)               n bytes of the body, then the connection is cut
    ("restart", n)             the same, but 200 and from the start
    ("stall", n) ("drip", n)   n bytes, then silence, or one byte now and then
    ("long", n) ("short", n)   n bytes too many or too few, without a length
    ("body", b) ("rest", b)    out of these bytes: 200 and all of them, or 206 and what was asked for
    ("whole",)                 200 in spite of a Range
    ("status", code, headers)  no body
    ("to", url)                a redirect
    ("then", f)                f is called first
    ("change", f)              the same, and then 206 and what was asked for, whatever If-Range says
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.plan: dict[str, list[tuple[Any, ...]]] = {}
        self.asked: list[Asked] = []
        self.slow_seconds = 0.0
        """Pause before each 64 KiB."""
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "https" if context else "http"
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def put(self, path: str, content: bytes) -> str:
        """Serve it from now on; returns its address."""
        self.files[path] = content
        self.etags[path] = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        return self.url + path

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        asked = Asked(handler.path, handler.headers["Range"], handler.headers["If-Range"])
        with self.lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.plan[handler.path].pop(0) if self.plan.get(handler.path) else ("ok",)
        try:
            self._send(handler, asked, fault)
        except OSError:
            pass  # the client has gone away
        finally:
            self._leave(asked)

    def _leave(self, asked: Asked) -> None:
        with self.lock:
            self.at_once -= not asked.left
            asked.left = True

    def _send(self, handler: BaseHTTPRequestHandler, asked: Asked, fault: tuple[Any, ...]) -> None:
        kind = fault[0]
        if kind in ("then", "change"):
            fault[1]()
        if kind == "to":
            return self._head(handler, 302, {"Location": fault[1], "Content-Length": "0"})
        if kind == "status" or asked.path not in self.files:
            status, headers = (fault[1], dict(fault[2])) if kind == "status" else (404, {})
            return self._head(handler, status, {"Content-Length": "0", **headers})
        content = fault[1] if kind in ("body", "rest") else self.files[asked.path]
        start = self._start(asked) if kind not in ("body", "whole", "restart") else 0
        if kind in ("rest", "change"):
            start = int((asked.range or "bytes=0-")[6:-1])
        if start >= len(content):
            return self._head(handler, 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
        headers = {"ETag": self.etags[asked.path], "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if kind in ("long", "short"):
            content = content + b"x" * fault[1] if kind == "long" else content[: -fault[1]]
        else:
            headers["Content-Length"] = str(len(content) - start)
        self._head(handler, 206 if start else 200, headers)
        self._body(handler, asked, content[start:], fault)

    def _start(self, asked: Asked) -> int:
        if asked.range is None or (asked.if_range is not None and asked.if_range != self.etags[asked.path]):
            return 0
        return int(asked.range.removeprefix("bytes=").removesuffix("-"))

    def _head(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()

    def _body(self, handler: BaseHTTPRequestHandler, asked: Asked, body: bytes, fault: tuple[Any, ...]) -> None:
        cut = fault[1] if fault[0] in ("break", "restart", "stall", "drip") else len(body)
        for begin in range(0, cut, 1 << 16):
            piece = body[begin : min(begin + (1 << 16), cut)]
            if self.slow_seconds:
                time.sleep(self.slow_seconds)
            if begin + len(piece) == len(body):
                self._leave(asked)  # before the client can know that it has all of it
            handler.wfile.write(piece)
            asked.sent += len(piece)
        if fault[0] == "stall":
            self.closing.wait(20)
        while fault[0] == "drip" and not self.closing.wait(0.05):
            handler.wfile.write(b"x")


def wait_until(happened: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.01)


def lock_text(*entries: tuple[str, str, bytes, str], mirrors: tuple[str, ...] = ()) -> str:
    """models.lock.yaml of (kind, name, content, source) with the content's true size and checksum."""
    lines = [f"mirrors: {json.dumps(mirrors)}", "models:" if entries else "models: []"]
    for kind, name, content, source in entries:
        digest = hashlib.sha256(content).hexdigest()
        lines += [f"  - name: {name}", f"    kind: {kind}", f"    size: {len(content)}", f"    sha256: {digest!r}"]
        lines += [f"    source: {source}"] if source else []
    return "\n".join(lines) + "\n"


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".models.lock"}
