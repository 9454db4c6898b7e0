"""A node and an api in one, as small as they come: `node.py NAME` in a container, on port 7860.

It answers pings, keys, pages, posts and WebSockets, and has runs below its own name; `GET /mode?…` makes it ill: `ping`
(what its ping says), `status` (of everything else), `delay` (seconds before any answer). Every post's id is a line of
its output; `?wait=` of a post: seconds from there to its answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from urllib.parse import parse_qsl, urlsplit

NAME = sys.argv[1] if len(sys.argv) > 1 else "node"
PORT = 7860
HEALTHY = {"ping": "ok", "status": "200", "delay": "0"}
mode = dict(HEALTHY)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await answer(reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request; whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, version = head[0].split(" ", 2)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    path = urlsplit(target).path
    goes_on = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if path == "/mode":
        mode.update(HEALTHY)
        mode.update(parse_qsl(urlsplit(target).query))
        return send(writer, 200, {}) and goes_on
    await asyncio.sleep(float(mode["delay"]))
    if path in ("/internal/ping", "/readyz"):
        said = mode["ping"] if path == "/internal/ping" else "ok"
        return send(writer, 200 if said == "ok" else 503, {"status": said, "fingerprint": "f"}) and goes_on
    if path == "/internal/auth":
        return send(writer, 204, None) and goes_on
    if headers.get("upgrade", "").lower() == "websocket":
        await talk(reader, writer, headers["sec-websocket-key"])
        return False
    if method == "POST":
        print("post", headers.get("x-post-id", "?"), flush=True)
        await asyncio.sleep(float(dict(parse_qsl(urlsplit(target).query)).get("wait", 0)))
    missing = path.startswith("/local/runs/") and not path.startswith(f"/local/runs/{NAME}/")
    status = 404 if missing and mode["status"] == "200" else int(mode["status"])
    return send(writer, status, {"node": NAME}) and goes_on


def send(writer: asyncio.StreamWriter, status: int, body: object) -> bool:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    return True


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """Says its name to every short message, and closes when asked to (RFC 6455)."""
    digest = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())  # noqa: S324
    writer.write(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + digest)
    writer.write(b"\r\n\r\n")
    name = NAME.encode()
    while True:
        first, second = await reader.readexactly(2)
        await reader.readexactly(4 + second % 128)
        if first & 15 == 8:
            writer.write(bytes([0x88, 0]))
            return
        if first & 15 == 9:
            writer.write(bytes([0x8A, 0]))
        else:
            writer.write(bytes([0x81, len(name)]) + name)


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", PORT)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
