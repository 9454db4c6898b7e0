"""Large bodies share the api's memory: first come, first served, and nobody's share gets lost."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from appliance.api.limits import ROOM_BYTES, BodyLimit, Hold, Room


async def taken(room: Room, amount: int) -> asyncio.Task[None]:
    task = asyncio.create_task(room.take(amount))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_a_small_one_does_not_push_past_a_large_one() -> None:
    room = Room(10)
    await room.take(8)
    large, small = await taken(room, 9), await taken(room, 1)
    assert not large.done()
    assert not small.done()
    room.give(8)
    await asyncio.gather(large, small)


async def test_whoever_stops_waiting_holds_up_nobody() -> None:
    room = Room(10)
    await room.take(8)
    large, small = await taken(room, 9), await taken(room, 2)
    large.cancel()
    await asyncio.wait({large})
    await asyncio.wait_for(small, 1)


async def test_all_who_leave_at_once_leave_as_they_were_told_to() -> None:
    """As at a stop, or when several have waited long enough in the same moment."""
    room = Room(10)
    await room.take(8)
    leaving = [await taken(room, amount) for amount in (9, 2, 1)]
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    assert all(task.cancelled() for task in leaving)
    room.give(8)
    await asyncio.wait_for(room.take(10), 1)


async def test_a_share_that_is_given_to_one_just_leaving_is_not_lost() -> None:
    room = Room(10)
    await room.take(10)
    leaving = await taken(room, 10)
    room.give(10)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await asyncio.wait_for(room.take(10), 1)


async def test_a_hold_is_given_back_once() -> None:
    room = Room(10)
    await room.take(6)
    hold = Hold(room, 6)
    hold.release()
    hold.release()
    assert not (await taken(room, 11)).done()


async def test_every_large_request_gives_its_share_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.api.limits.ROOM_SECONDS", 0.05)
    going, answers = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/broken":
            raise OSError
        await going.wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    limited = BodyLimit(app, limit=ROOM_BYTES)

    async def ask(path: str) -> None:
        headers = [(b"content-length", str(ROOM_BYTES).encode())]
        await limited({"type": "http", "path": path, "headers": headers}, receive, send)

    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011
            await ask("/broken")
    first = asyncio.create_task(ask("/slow"))
    await asyncio.sleep(0)
    await ask("/sdapi/v1/txt2img")
    assert (answers[0]["status"], b"too many large requests" in answers[1]["body"]) == (503, True)
    going.set()
    await first
    await ask("/slow")
