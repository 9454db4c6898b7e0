"""What the replicas know together of a user's A1111 calls and options: notes in Redis, since any replica may be asked.

A call's note is written before its first job is submitted and dropped at its end. One that its replica could not drop,
because it died, says nothing once all its jobs have ended; it is dropped by whoever reads it next. A task that is asked
for again while it is at work has a note for each of its calls, and the same jobs in them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from appliance.api.services import Services, patiently
from appliance.job import JobState
from appliance.queue import JobRecord
from sdapi.options import Chosen
from sdapi.progress import Progress

OPTIONS = "options"
ENDED_PREFIX = "ended:"
CALL_PREFIX = "call:"
CALLS_LIMIT = 64  # of one user at a time that are looked at
ENDED_KEPT = 64
UNSUBMITTED_SECONDS = 60.0


@dataclass(frozen=True)
class CallNote:
    """`id` is the task's; `digest` that of what was asked for; `request_id` AnimateDiff's own; `steps` are those of
    each job."""

    id: str
    digest: str
    request_id: str
    jobs: tuple[str, ...]
    steps: int
    created_at: float
    interrupted: bool = False
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def name(self) -> str:
        return CALL_PREFIX + self.key

    def same_as(self, other: CallNote) -> bool:
        return (self.id, self.digest) == (other.id, other.digest)

    @classmethod
    def parse(cls, text: str) -> CallNote | None:
        try:
            raw: dict[str, Any] = json.loads(text)
            jobs = tuple(str(job) for job in raw.pop("jobs"))
            return cls(jobs=jobs, **raw)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # of another version of this service

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Call:
    note: CallNote
    jobs: tuple[JobRecord | None, ...]

    @property
    def open_jobs(self) -> list[JobRecord]:
        return [job for job in self.jobs if job is not None and not job.state.is_final]

    @property
    def running(self) -> JobRecord | None:
        return next((job for job in self.open_jobs if job.state is JobState.RUNNING), None)

    @property
    def is_over(self) -> bool:
        fresh = time.time() - self.note.created_at < UNSUBMITTED_SECONDS
        return not self.open_jobs and not (fresh and None in self.jobs)

    def progress(self, preview: str | None = None) -> Progress:
        running = self.running
        done = sum(1 for job in self.jobs if job is not None and job.state.is_final)
        places = [job.position for job in self.open_jobs if job.position is not None]
        return Progress(
            task_id=self.note.id,
            job_count=len(self.note.jobs),
            job_no=min(done, len(self.note.jobs) - 1),
            step=running.step if running else 0,
            steps=(running.total_steps if running else 0) or self.note.steps,
            timestamp=time.strftime("%Y%m%d%H%M%S", time.gmtime(self.note.created_at)),
            elapsed=self._elapsed(),
            preview=preview,
            interrupted=self.note.interrupted,
            queued=running is None and done == 0,
            text=f"queued, {min(places)} in line" if running is None and places else None,
        )

    def _elapsed(self) -> float:
        """Since the first of its jobs began."""
        began = [job.started_at for job in self.jobs if job is not None and job.started_at is not None]
        return max(0.0, time.time() - min(began)) if began else 0.0


class Book:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def options(self, user: str) -> Chosen:
        text = (await self._notes(user)).get(OPTIONS)
        try:
            return Chosen.parse(json.loads(text)) if text else Chosen()
        except ValueError:
            return Chosen()

    async def set_options(self, user: str, chosen: Chosen) -> None:
        await self._put(user, OPTIONS, json.dumps(chosen.as_dict()))

    async def open(self, user: str, note: CallNote) -> None:
        await self._put(user, note.name, note.to_json())

    async def close(self, user: str, note: CallNote) -> None:
        await patiently(self._services, lambda: self._services.queue.drop_notes(user, note.name))

    async def is_asked_again(self, user: str, note: CallNote) -> bool:
        """Whether another call waits for the very same. Calls that end at once ask when they are closed: so the last
        of them is told that it is alone."""
        others = await self._call_notes(user)
        return any(other and other.name != note.name and other.same_as(note) for other in others.values())

    async def interrupted(self, user: str, note: CallNote) -> None:
        await self.open(user, replace(note, interrupted=True))

    async def remember_end(self, user: str, task_id: str) -> None:
        """Whoever follows a task by its name hears that it is over. A note for each, as other replicas write theirs at
        the same time."""
        await self._put(user, f"{ENDED_PREFIX}{time.time_ns():020d}:{secrets.token_hex(4)}", task_id)
        old = sorted(await self._ended_notes(user))[:-ENDED_KEPT]
        if old:
            await patiently(self._services, lambda: self._services.queue.drop_notes(user, *old))

    async def ended(self, user: str) -> list[str]:
        return [task_id for _, task_id in sorted((await self._ended_notes(user)).items())]

    async def calls(self, user: str, name: str | None = None) -> list[Call]:
        """The user's calls that are not over, the oldest first; with a name those of this task or request."""
        parsed = await self._call_notes(user)
        wanted = [note for note in parsed.values() if note and (name is None or name in (note.id, note.request_id))]
        wanted = sorted(wanted, key=lambda note: note.created_at)[:CALLS_LIMIT]
        calls = [Call(note, await self._jobs(note.jobs)) for note in wanted]
        stale = [key for key, note in parsed.items() if note is None]
        stale += [call.note.name for call in calls if call.is_over]
        await patiently(self._services, lambda: self._services.queue.drop_notes(user, *stale))
        return [call for call in calls if not call.is_over]

    async def find(self, user: str, name: str | None) -> Call | None:
        """By the task's or the request's id, the newest; without one what runs, else what waits longest."""
        calls = await self.calls(user, name)
        if name:
            return calls[-1] if calls else None
        return next((call for call in calls if call.running is not None), calls[0] if calls else None)

    async def progress(self, call: Call | None) -> Progress | None:
        if call is None:
            return None
        if (running := call.running) is None:
            return call.progress()
        return call.progress(await patiently(self._services, lambda: self._services.queue.preview(running.job_id)))

    async def _ended_notes(self, user: str) -> dict[str, str]:
        return {name: text for name, text in (await self._notes(user)).items() if name.startswith(ENDED_PREFIX)}

    async def _call_notes(self, user: str) -> dict[str, CallNote | None]:
        notes = await self._notes(user)
        return {name: CallNote.parse(text) for name, text in notes.items() if name.startswith(CALL_PREFIX)}

    async def _jobs(self, job_ids: Sequence[str]) -> tuple[JobRecord | None, ...]:
        return tuple(await patiently(self._services, lambda: self._services.queue.get_many(list(job_ids))))

    async def _put(self, user: str, name: str, text: str) -> None:
        await patiently(self._services, lambda: self._services.queue.put_note(user, name, text))

    async def _notes(self, user: str) -> dict[str, str]:
        return await patiently(self._services, lambda: self._services.queue.notes(user))
