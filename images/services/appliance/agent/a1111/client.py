"""A1111's HTTP API, each call bounded in time and in bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from async_timeout import timeout

from appliance.agent.a1111.request import Known
from appliance.agent.webui import WebuiBroke, WebuiError, WebuiNotThere
from appliance.settings import Secret

CONNECT_SECONDS = 2.0
ASK_SECONDS = 10.0
"""A list of a thousand LoRAs with their metadata takes a while."""
LIST_BYTES = 32 << 20
ANSWER_BYTES = 96 << 20
"""Of a video: three times as much is needed in memory for a moment."""


class Unanswered(WebuiError):  # noqa: N818 - reads as what happened
    """No usable answer, from something that may be there all the same."""


class Client:
    """`auth` is `user:password`, as A1111's --api-auth has it; empty: none."""

    def __init__(self, url: str, auth: Secret) -> None:
        user, _, password = auth.reveal().partition(":")
        self._http = httpx.AsyncClient(
            base_url=url,
            auth=httpx.BasicAuth(user, password) if user else None,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, path: str, seconds: float = ASK_SECONDS) -> Any:
        """JSON of a GET. Raises WebuiNotThere or Unanswered."""
        try:
            async with timeout(seconds):
                status, body = await self._send("GET", path, b"", seconds, LIST_BYTES)
        except asyncio.TimeoutError:
            raise Unanswered(f"GET {path}: no answer in {seconds:g} s") from None
        except WebuiBroke as error:
            raise Unanswered(f"GET {path}: {error}") from None
        if status != 200:
            raise Unanswered(f"GET {path}: HTTP {status}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Unanswered(f"GET {path}: no JSON") from None

    async def tell(self, path: str, seconds: float = ASK_SECONDS) -> int:
        """Status of a POST without content. Raises WebuiNotThere or Unanswered."""
        try:
            async with timeout(seconds):
                status, _ = await self._send("POST", path, b"{}", seconds, LIST_BYTES)
        except (asyncio.TimeoutError, WebuiBroke) as error:
            raise Unanswered(f"POST {path}: {error or 'no answer in time'}") from None
        return status

    async def generate(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and content of a POST that takes as long as it takes; the caller watches. Raises WebuiNotThere when
        nothing was started, WebuiBroke when the answer never came whole."""
        return await self._send("POST", path, body, None, ANSWER_BYTES)

    async def _send(self, method: str, path: str, body: bytes, seconds: float | None, limit: int) -> tuple[int, bytes]:
        each = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            async with self._http.stream(method, path, content=body, headers=headers, timeout=each) as response:
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > limit:
                        raise WebuiBroke(f"its answer is larger than {limit >> 20} MiB")
                return response.status_code, bytes(content)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise WebuiNotThere(f"no connection to the A1111: {error or type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise WebuiBroke(f"the A1111's answer broke: {error or type(error).__name__}") from error

    async def known(self) -> Known:
        """What it has. A list that it does not give is left empty: its own errors then tell."""
        return Known(
            checkpoints=await self._names("sd-models", "model_name"),
            loras=await self._names("loras", "name"),
            vaes=await self._names("sd-vae", "model_name"),
            samplers=await self._names("samplers", "name"),
            schedulers=(*await self._names("schedulers", "label"), *await self._names("schedulers", "name")),
        )

    async def _names(self, kind: str, key: str) -> tuple[str, ...]:
        try:
            items = await self.ask(f"/sdapi/v1/{kind}")
        except Unanswered:
            return ()
        items = items if isinstance(items, list) else []
        return tuple(str(item[key]) for item in items if isinstance(item, dict) and item.get(key))
