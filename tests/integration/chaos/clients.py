"""Users: they submit, lose patience, ask again, look, and change their minds at the worst moments."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from tests.integration.chaos.checker import FINAL_STATES, PLAIN
from tests.integration.chaos.cluster import USERS, ChaosCluster
from tests.integration.chaos.history import CallOutcome, Cancel, History, Read, Submit

CALL_SECONDS = 5.0
RETRY_SECONDS = 0.4
GIVE_UP_SECONDS = 60.0
LOOK_SECONDS = 1.2
CLOSE_LOOK_SECONDS = 0.08
PHASES = ("waiting", "claimed", "running", "committing")
STEPS = (6, 25)


class Users:
    """All calls of all users, in one history."""

    def __init__(self, cluster: ChaosCluster, history: History, seed: str) -> None:
        self._cluster = cluster
        self._history = history
        self._seed = seed
        self._http = httpx.AsyncClient(timeout=CALL_SECONDS, trust_env=False)
        self._followers: set[asyncio.Task[None]] = set()
        self.acknowledged: set[str] = set()
        self.plain: set[str] = set()
        """Those of them that do no harm."""
        self.submitted = 0

    async def close(self) -> None:
        for task in self._followers:
            task.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        await self._http.aclose()

    async def submit_for_ever(self, number: int, pause: tuple[float, float], stop: Callable[[], bool]) -> None:
        chance = random.Random(f"{self._seed} user {number}")
        while not stop():
            await asyncio.sleep(chance.uniform(*pause))
            await self.submit_one(chance)

    async def submit_one(self, chance: random.Random) -> str | None:
        """One submission, with as many tries as it takes; its job is followed to its end beside."""
        self.submitted += 1
        kind = chance.choices([PLAIN, "poison", "hungry"], [0.94, 0.04, 0.02])[0]
        steps = chance.randint(*STEPS)
        body = {
            "prompt": f"{'a boat' if kind == PLAIN else kind} {self.submitted}",
            "width": 64,
            "height": 64,
            "frames": 8,
            "steps": steps,
            "priority": chance.choice(["high", "normal", "low"]),
        }
        user, key = chance.choice(USERS), str(uuid.UUID(int=chance.getrandbits(128)))
        cancel_in = chance.choice(PHASES) if chance.random() < 0.2 else None
        own = random.Random(chance.random())
        job = await self.submit(user, key, kind, body, own)
        if job is not None:
            self._follow(job, user, steps, cancel_in, own)
            if own.random() < 0.15:  # a client that lost our answer asks again
                await self.try_submit(user, key, kind, body, self._any_api(own))
        return job

    async def submit(self, user: str, key: str, kind: str, body: dict[str, Any], chance: random.Random) -> str | None:
        end = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < end:
            tried = await self.try_submit(user, key, kind, body, self._any_api(chance))
            if tried.outcome == "accepted":
                return tried.job
            await asyncio.sleep(RETRY_SECONDS)
        return None

    async def try_submit(self, user: str, key: str, kind: str, body: dict[str, Any], api: str) -> Submit:
        start = time.monotonic()
        headers = {"Idempotency-Key": key}
        status, answer = await self._call("POST", api, "/api/v1/jobs", user, json=body, headers=headers)
        outcome: CallOutcome = "accepted" if status == 202 else "refused" if 400 <= status < 500 else "unknown"
        job = str(answer.get("id", "")) if status == 202 else ""
        tried = Submit(key, user, kind, api, start, time.monotonic(), outcome, status, job)
        self._history.add(tried)
        if outcome == "accepted":
            self.acknowledged.add(job)
            if kind == PLAIN:
                self.plain.add(job)
        return tried

    # --- after the submission ------------------------------------------------------------------------------------

    def _follow(self, job: str, user: str, steps: int, cancel_in: str | None, chance: random.Random) -> None:
        work = self._follow_to_the_end(job, user, steps, cancel_in, chance)
        task = asyncio.create_task(work, name=f"follow {job}")
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _follow_to_the_end(
        self, job: str, user: str, steps: int, cancel_in: str | None, chance: random.Random
    ) -> None:
        if cancel_in is not None:
            await self._wait_for_phase(job, user, cancel_in, steps, chance)
            await self._cancel_until_answered(job, user, cancel_in, chance)
        last: tuple[str, int] | None = None
        while last is None or last[0] not in FINAL_STATES:
            seen = await self._read(job, user, chance)
            if seen is not None and (seen.state, seen.fence) != last:
                self._history.add(seen)
                last = seen.state, seen.fence
            await asyncio.sleep(LOOK_SECONDS)
        for _ in range(2):  # the end must stay the end
            await asyncio.sleep(chance.uniform(1, 20))
            seen = await self._read(job, user, chance)
            if seen is not None:
                self._history.add(seen)

    async def _wait_for_phase(self, job: str, user: str, phase: str, steps: int, chance: random.Random) -> None:
        if phase == "waiting":
            return
        wanted = {"claimed": 0, "running": 3, "committing": steps - 1}[phase]
        while True:
            status, answer = await self._call("GET", self._any_api(chance), f"/api/v1/jobs/{job}", user)
            if status == 200:
                step = int((answer.get("progress") or {}).get("step") or 0)
                if answer["state"] in FINAL_STATES or (answer["state"] == "running" and step >= wanted):
                    return
            await asyncio.sleep(CLOSE_LOOK_SECONDS)

    async def _cancel_until_answered(self, job: str, user: str, phase: str, chance: random.Random) -> None:
        status = 0
        while status not in (200, 404, 409):
            start, api = time.monotonic(), self._any_api(chance)
            status, answer = await self._call("DELETE", api, f"/api/v1/jobs/{job}", user)
            state = str(answer.get("state", "")) if status == 200 else ""
            self._history.add(Cancel(job, phase, api, start, time.monotonic(), status, state))
            await asyncio.sleep(0 if status == 200 else RETRY_SECONDS)

    async def _read(self, job: str, user: str, chance: random.Random) -> Read | None:
        start, api = time.monotonic(), self._any_api(chance)
        status, answer = await self._call("GET", api, f"/api/v1/jobs/{job}", user)
        if status != 200:
            return None
        result = " ".join(file["sha256"] for file in answer.get("result") or [])
        return Read(job, api, start, time.monotonic(), answer["state"], int(answer["fence"]), result)

    # --- tools ---------------------------------------------------------------------------------------------------

    def _any_api(self, chance: random.Random) -> str:
        return chance.choice(list(self._cluster.apis.values()))

    async def _call(self, method: str, api: str, path: str, user: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and body; 0 where there was no answer in time."""
        headers = {"X-Api-Key": self._cluster.keys[user], **more.pop("headers", {})}
        try:
            answer = await self._http.request(method, f"{api}{path}", headers=headers, **more)
        except httpx.HTTPError:
            return 0, {}
        with contextlib.suppress(ValueError):
            body = answer.json()
            if isinstance(body, dict):
                return answer.status_code, body
        return answer.status_code, {}
