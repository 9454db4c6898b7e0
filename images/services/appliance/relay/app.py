"""`POST /NAME` with Alertmanager's notification → one message of the robot of that name."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from typing import Any

import httpx
from async_timeout import timeout
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.logs import fields
from appliance.relay.messages import Kind, NoAlerts, Verdict, judge, read_alerts, request_body, signed
from appliance.relay.settings import RelaySettings, Robot

log = logging.getLogger(__name__)
MOST_BYTES = 1 << 20
SEND_SECONDS = 10.0
"""Less than Alertmanager waits for us."""


class Relay:
    def __init__(self, settings: RelaySettings, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def notify(self, request: Request) -> Response:
        expected = f"Bearer {self._settings.cluster_token.reveal()}"
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
            return PlainTextResponse("the cluster token is needed\n", 401)
        robot = self._settings.robots.get(request.path_params["name"])
        if robot is None:
            return PlainTextResponse("there is no receiver of this name\n", 404)
        try:
            body = await _read(request)
            if body is None:
                return PlainTextResponse(f"more than {MOST_BYTES} bytes\n", 413)
            message = request_body(robot.kind, read_alerts(json.loads(body)))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, NoAlerts) else "no JSON"
            return PlainTextResponse(f"no notification of Alertmanager: {reason}\n", 400)
        except ClientDisconnect:
            return Response(status_code=400)
        verdict, why = await self._send(robot, message)
        if verdict is not Verdict.TAKEN:
            log.warning("%s takes no message: %s", robot.name, why, extra=fields(event="relay", reason=why))
        return PlainTextResponse(f"{why}\n", verdict.value)

    async def _send(self, robot: Robot, message: dict[str, Any]) -> tuple[Verdict, str]:
        """The address is a secret: it must not get into a log or an answer."""
        url = robot.url.reveal()
        if robot.kind is Kind.DINGTALK and robot.signs_with is not None:
            url = signed(url, robot.signs_with.reveal(), int(time.time() * 1000))
        try:
            async with timeout(SEND_SECONDS):  # httpx bounds each of its steps, but not the whole
                answer = await self._client.post(url, json=message, timeout=SEND_SECONDS, follow_redirects=False)
            return judge(answer.status_code, _parsed(answer.text))
        except (httpx.HTTPError, asyncio.TimeoutError) as error:
            return Verdict.LATER, type(error).__name__
        except (httpx.InvalidURL, UnicodeError):
            return Verdict.REFUSED, "its address is none"


def create_app(settings: RelaySettings, client: httpx.AsyncClient) -> Starlette:
    relay = Relay(settings, client)
    return Starlette(
        routes=[
            Route("/healthz", relay.healthz),
            Route("/{name}", relay.notify, methods=["POST"]),
        ]
    )


async def _read(request: Request) -> bytes | None:
    """None where it is more than may be kept."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return body


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
