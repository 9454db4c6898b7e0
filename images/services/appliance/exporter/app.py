"""`GET /metrics` for who has the cluster token, `GET /healthz` for everybody."""

from __future__ import annotations

import hmac

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.exporter.scrape import Exporter
from appliance.settings import Secret


def create_app(exporter: Exporter, token: Secret) -> Starlette:
    wanted = f"Bearer {token.reveal()}".encode()

    async def metrics(request: Request) -> Response:
        # As bytes: a header may hold what is no text, and the comparison takes as long whatever it holds.
        if not hmac.compare_digest(request.headers.get("authorization", "").encode("latin-1"), wanted):
            answer = {"type": "unauthorized", "status": 401, "detail": "the cluster token is missing or wrong"}
            headers = {"WWW-Authenticate": "Bearer"}
            return JSONResponse(answer, 401, headers, media_type="application/problem+json")
        return Response(await exporter.scrape(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz)])
