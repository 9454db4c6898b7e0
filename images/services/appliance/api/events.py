"""One job's events: as server-sent events (resumable with Last-Event-ID) and as their WebSocket twin."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, WebSocket, WebSocketDisconnect
from starlette.responses import StreamingResponse

from appliance.api.problems import Problem, described, documented
from appliance.api.services import Caller, JobId, Services, ServicesHere, find_job
from appliance.api.views import view_job
from appliance.errors import QueueUnavailable
from appliance.job import JobState
from appliance.queue import JobRecord
from appliance.queue.types import StreamEvent
from sdapi.origin import is_own_origin

router = APIRouter(prefix="/api/v1/jobs", tags=["events"])

POLL_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 5.0
EVENT_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
LAST_EVENT_ID = (2**64 - 1, 2**64 - 1)
FINAL = frozenset(state.value for state in JobState if state.is_final)

LastEventId = Annotated[str | None, Header(max_length=64)]


EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "description": "`job`, a state, or a kind of progress"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
# `itemSchema` is OpenAPI 3.2's word for one event of a stream; older readers pass over it.
STREAM = described(200, "the events", content={"text/event-stream": {"itemSchema": EVENT_SCHEMA}})
NO_MORE = described(204, "the job has ended, and Last-Event-ID was its last event")


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses=documented(401, 404, 422, 503) | STREAM | NO_MORE,
)
async def stream_events(
    services: ServicesHere, caller: Caller, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """`text/event-stream`: first a `job` event with the whole job, then every change; ends with the job."""
    job = await find_job(services, caller, job_id)
    start = known_position(last_event_id)
    if start and await _has_seen_the_end(services, job, start):
        return Response(status_code=204)  # tells an EventSource to stop reconnecting
    return StreamingResponse(
        _as_sse(services, job, start),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.websocket("/{job_id}/ws")
async def serve_websocket(
    socket: WebSocket,
    services: ServicesHere,
    caller: Caller,
    job_id: JobId,
    last_event_id: Annotated[str | None, Query(max_length=64)] = None,
) -> None:
    """The same events as JSON messages `{id, event, data}`; closes with 1000 when the job ends."""
    if not is_own_origin(socket.headers):
        # Browsers send cookies and Basic passwords with any page's WebSocket, and no preflight asks us before.
        await socket.close(1008, "foreign-origin")
        return
    start = known_position(last_event_id)
    try:
        job = await find_job(services, caller, job_id)
        over = start is not None and await _has_seen_the_end(services, job, start)
    except Problem as problem:
        await socket.close(1008, problem.slug)
        return
    except QueueUnavailable:
        await socket.accept()
        await socket.close(1013, "queue-unavailable")  # before the handshake no code but 403 would reach the client
        return
    await socket.accept()
    if over:
        await socket.close(1000)
        return
    sender = asyncio.create_task(_send_all(socket, services, job, start))
    listener = asyncio.create_task(_listen(socket))
    try:
        await asyncio.wait({sender, listener}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sender.cancel()
        listener.cancel()
        await asyncio.gather(sender, listener, return_exceptions=True)


async def _has_seen_the_end(services: Services, job: JobRecord, start: str) -> bool:
    seen_ms = int(start.partition("-")[0])
    return job.state.is_final and seen_ms >= _finished_ms(job) and await _is_over(services, job.job_id, start)


def known_position(last_event_id: str | None) -> str | None:
    """None for what Redis would refuse as an id to go on after."""
    if last_event_id is None or not EVENT_ID.fullmatch(last_event_id):
        return None
    milliseconds, _, number = last_event_id.partition("-")
    position = (int(milliseconds), int(number))
    return last_event_id if max(position) < 2**64 and position != LAST_EVENT_ID else None


async def follow(services: Services, job: JobRecord, start: str | None) -> AsyncIterator[StreamEvent | None]:
    """Events after `start`; None every few seconds of silence. Survives outages of Redis."""
    position = start or "0-0"
    with suppress(QueueUnavailable):
        if job.state.is_final and await _is_over(services, job.job_id, position):
            yield _last_snapshot(services, job)
            return
    if start is None:
        yield _snapshot(services, job)
    last_sign = time.monotonic()
    while not services.stopping.is_set():
        try:
            events = await services.queue.events_after(job.job_id, position)
            for event in events:
                position = event.event_id
                yield event
            # A dead job may have been tried again: its end is then not the end of its events.
            if events and events[-1].kind in FINAL and await _is_over(services, job.job_id, position):
                return
            if events:
                last_sign = time.monotonic()
            elif time.monotonic() - last_sign >= KEEP_ALIVE_SECONDS:
                last_sign = time.monotonic()
                yield None
                latest = await services.queue.get(job.job_id)
                if latest is None:
                    return
                # The stream lives for an hour after the job's end; the job's own record lives longer.
                if latest.state.is_final and await _is_over(services, job.job_id, position):
                    yield _last_snapshot(services, latest)
                    return
        except QueueUnavailable:
            yield None
            await asyncio.sleep(1.0)
        await asyncio.sleep(POLL_SECONDS)


async def _is_over(services: Services, job_id: str, position: str) -> bool:
    return not await services.queue.events_after(job_id, position, 1)


def _snapshot(services: Services, job: JobRecord, event_id: str = "") -> StreamEvent:
    return StreamEvent(event_id, "job", view_job(job, services.ticker.stats).model_dump(mode="json"))


def _last_snapshot(services: Services, job: JobRecord) -> StreamEvent:
    """In place of events that are not kept any more; its id lets a client that comes back hear that this was all."""
    return _snapshot(services, job, f"{_finished_ms(job)}-0")


def _finished_ms(job: JobRecord) -> int:
    return round((job.finished_at or job.created_at) * 1000)


async def _as_sse(services: Services, job: JobRecord, start: str | None) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    async for event in follow(services, job, start):
        if event is None:
            yield ": keep-alive\n\n"
            continue
        line = f"id: {event.event_id}\n" if event.event_id else ""
        yield f"{line}event: {event.kind}\ndata: {json.dumps(event.data)}\n\n"


async def _send_all(socket: WebSocket, services: Services, job: JobRecord, start: str | None) -> None:
    async for event in follow(services, job, start):
        if event is not None:
            await socket.send_json({"id": event.event_id or None, "event": event.kind, "data": event.data})
    await socket.close(1001 if services.stopping.is_set() else 1000)


async def _listen(socket: WebSocket) -> None:
    """Nothing is expected from the client; reading is how its leaving is noticed."""
    try:
        while True:
            await socket.receive_text()
    except (WebSocketDisconnect, KeyError):
        return
