"""The node's own page: static files beside this one, read once. No build step, nothing from the internet."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/run.js": ("run.js", "text/javascript; charset=utf-8"),
    "/page/form.js": ("form.js", "text/javascript; charset=utf-8"),
    "/page/stage.js": ("stage.js", "text/javascript; charset=utf-8"),
    "/page/history.js": ("history.js", "text/javascript; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


class Page:
    def __init__(self) -> None:
        folder = Path(__file__).parent
        self._contents = {path: (folder / name).read_bytes() for path, (name, _) in FILES.items()}
        self._tags = {path: f'"{hashlib.sha256(content).hexdigest()[:20]}"' for path, content in self._contents.items()}

    def routes(self) -> list[BaseRoute]:
        return [Route(path, self.send) for path in FILES]

    async def send(self, request: Request) -> Response:
        # Not request.url.path: that would hold a prefix that somebody put in front of us.
        path = request.scope["path"]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": self._tags[path]}
        if request.headers.get("if-none-match") == self._tags[path]:
            return Response(status_code=304, headers=headers)
        return Response(self._contents[path], media_type=FILES[path][1], headers=headers)
