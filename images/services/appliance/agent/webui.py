"""The webui as its agent sees it: ping, one generation as a stream of NDJSON events, interrupt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx
from async_timeout import timeout

from appliance.errors import ApplianceError
from appliance.job import Capabilities
from appliance.settings import Secret

CONNECT_SECONDS = 1.0
PING_SECONDS = 1.0
INTERRUPT_SECONDS = 5.0
LOCAL_RUN = "local"  # what a webui is busy with that no agent ordered


class WebuiError(ApplianceError):
    """The webui did not do what was asked."""


class WebuiRefused(WebuiError):  # noqa: N818 - reads as what happened
    """It answered, but not with a stream: status 409 busy, 422 invalid, 503 not ready, 401 wrong token."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the webui answered {status}: {detail}")
        self.status = status
        self.detail = detail


class WebuiNotThere(WebuiError):  # noqa: N818 - reads as what happened
    """No connection: nothing was started."""


class WebuiBroke(WebuiError):  # noqa: N818 - reads as what happened
    """The stream ended or turned to garbage in the middle of the work."""


@dataclass(frozen=True)
class Ping:
    ready: bool
    status: str
    engine: str = ""
    fingerprint: str = ""
    synthetic: bool = False
    busy: str | None = None
    capabilities: Capabilities | None = None
    """None: of the time before checkpoints; it refuses what it does not know."""
    gpu: Mapping[str, Any] | None = None

    def with_gpu_of(self, later: Ping) -> Ping:
        return replace(self, gpu=later.gpu)


class AnyWebui(Protocol):
    """What makes the videos, seen from the agent: our own webui, or a foreign one behind an adapter."""

    async def close(self) -> None: ...

    async def ping(self) -> Ping: ...

    async def interrupt(
        self, job_id: str, fence: int | None = None, *, checkpoint: bool = False, seconds: float = INTERRUPT_SECONDS
    ) -> int | None: ...

    def generate(self, body: bytes) -> AbstractAsyncContextManager[AsyncIterator[dict[str, Any]]]: ...


class Webui:
    def __init__(self, url: str, token: Secret) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token.reveal()}"},
            timeout=httpx.Timeout(PING_SECONDS, connect=CONNECT_SECONDS),
            # A kept connection may belong to a process that is gone; new ones cost nothing on the same host.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ping(self) -> Ping:
        try:
            # httpx bounds each read, but not the whole.
            async with timeout(CONNECT_SECONDS + PING_SECONDS):
                response = await self._client.get("/internal/ping")
            facts = response.json()
        except (httpx.HTTPError, ValueError, RecursionError, asyncio.TimeoutError) as error:
            return Ping(ready=False, status=f"unreachable: {error or type(error).__name__}")
        if not isinstance(facts, dict):
            return Ping(ready=False, status="answers something else")
        busy, capabilities, gpu = facts.get("busy"), facts.get("capabilities"), facts.get("gpu")
        return Ping(
            ready=response.status_code == 200 and facts.get("status") == "ok",
            status=str(facts.get("status", response.status_code)),
            engine=str(facts.get("engine") or ""),
            fingerprint=str(facts.get("fingerprint") or ""),
            synthetic=facts.get("synthetic") is True,
            busy=busy if isinstance(busy, str) and busy else None,
            capabilities=Capabilities.parse(capabilities) if isinstance(capabilities, dict) else None,
            gpu=gpu if isinstance(gpu, dict) else None,
        )

    async def interrupt(
        self,
        job_id: str,
        fence: int | None = None,
        *,
        checkpoint: bool = False,
        seconds: float = INTERRUPT_SECONDS,
    ) -> int | None:
        """Stops this attempt at `job_id` (without a fence: any) if it is what runs, and waits until it has stopped.

        Answers the step of the newest checkpoint, where there is one.
        """
        body = {"job": job_id, "fence": fence, "checkpoint": checkpoint}
        each = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            async with timeout(CONNECT_SECONDS + seconds):
                response = await self._client.post("/internal/interrupt", json=body, timeout=each)
            answer = response.json() if response.status_code < 400 else None
        except (httpx.HTTPError, ValueError, RecursionError, asyncio.TimeoutError) as error:
            raise WebuiError(f"interrupt failed: {error or type(error).__name__}") from error
        if response.status_code >= 400:
            raise WebuiRefused(response.status_code, response.text[:200])
        step = answer.get("checkpoint_step") if isinstance(answer, dict) else None
        return step if isinstance(step, int) else None

    @asynccontextmanager
    async def generate(self, body: bytes) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events of one generation. Leaving the block closes the connection, which stops the work.

        There is no read timeout: the caller watches the silence, since only it knows when it was frozen itself.
        """
        forever = httpx.Timeout(None, connect=CONNECT_SECONDS)
        kind = {"Content-Type": "application/json"}
        try:
            async with self._client.stream(
                "POST", "/internal/generate", content=body, headers=kind, timeout=forever
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise WebuiRefused(response.status_code, problem_detail(response))
                yield _events(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise WebuiNotThere(f"no connection to the webui: {error or type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise WebuiBroke(f"the webui's stream broke: {error or type(error).__name__}") from error


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise WebuiBroke(f"the webui sent a broken line: {line[:80]!r}") from error
        if not isinstance(event, dict):
            raise WebuiBroke(f"the webui sent {line[:80]!r} where an event belongs")
        yield event


def problem_detail(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return str(problem.get("detail") or problem.get("title") or problem)[:500]
    except (ValueError, AttributeError):
        return response.text[:500]
