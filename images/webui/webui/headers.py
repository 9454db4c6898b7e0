"""What every answer says to browsers, and what tells a page of ours from a foreign one."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    # Browsers send Basic passwords along with what any page embeds.
    "Cross-Origin-Resource-Policy": "same-origin",
    # For whatever is opened by itself; a page of ours brings a policy of its own.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'; sandbox",
}


class SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def is_own_origin(headers: Headers) -> bool:
    """True without an Origin: then it is no browser, or its page is ours. The gateway tells the host that was asked.

    Browsers send Basic passwords along with any page's WebSocket or simple form, and nothing asks us before.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    asked = headers.get("x-forwarded-host") or headers.get("host", "")
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{asked}")
        default = DEFAULT_PORTS.get(page.scheme)
        return bool(page.hostname) and (page.hostname, page.port or default) == (here.hostname, here.port or default)
    except ValueError:  # a port that is none
        return False
