"""What tells a page of ours from a foreign one. Browsers send Basic passwords along with any page's WebSocket, simple
form or plain POST, and ask nobody before."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from sdapi.errors import http_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def is_own_origin(headers: Mapping[str, str]) -> bool:
    """True without an Origin: then it is no browser, or its page is ours. The gateway tells the host that was asked.

    `headers`: their names in lower case, or a mapping that does not mind."""
    origin = headers.get("origin")
    if origin is None:
        return True
    asked = headers.get("x-forwarded-host") or headers.get("host", "")
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{asked}")
        default = DEFAULT_PORTS.get(page.scheme)
        return bool(page.hostname) and (page.hostname, page.port or default) == (here.hostname, here.port or default)
    except ValueError:  # a port that is none, a bracket that is not closed
        return False


class OwnPages:
    """ASGI middleware: a POST that a page of another site sends is refused in A1111's shape."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or is_own_origin(_headers(scope)):
            await self._app(scope, receive, send)
            return
        error = http_error(403, "a page of another site may not ask this")
        content = json.dumps(error.body).encode()
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": error.status, "headers": about})
        await send({"type": "http.response.body", "body": content})


def _headers(scope: Message) -> dict[str, str]:
    """The first of each name, as ASGI has them: in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
