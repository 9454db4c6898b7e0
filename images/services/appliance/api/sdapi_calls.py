"""A1111's txt2img and img2img through the queue: one call is one or more jobs, and waits until all have ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from appliance.api.auth import Identity
from appliance.api.jobs import submission_of
from appliance.api.limits import no_worker_fits, require_affordable
from appliance.api.problems import RETRY_SECONDS
from appliance.api.results import locate
from appliance.api.sdapi_book import Book, CallNote
from appliance.api.services import Services, patiently
from appliance.api.views import seconds_until_room
from appliance.disk import Disk
from appliance.errors import QueueError, QueueUnavailable, StorageError
from appliance.job import JobRequest, JobState
from appliance.lifecycle import wait_or_stop
from appliance.queue import JobRecord, Submission
from appliance.queue.types import Accepted
from sdapi import answers
from sdapi.answers import ResultFile
from sdapi.errors import INTERRUPTED, Problem, failure, http_error, invalid_body, of_reason
from sdapi.generation import SEEDS, Generation

log = logging.getLogger(__name__)

ANSWER_LIMIT_BYTES: Final = 256 << 20
POLL_SECONDS: Final = 0.25
SLOW_POLL_SECONDS: Final = 1.0
SLOW_AFTER_SECONDS: Final = 30.0
POLLS_PER_SECOND: Final = 200  # of all calls of this replica together
RETURN_SECONDS: Final = 5.0
REPEATS_LIMIT: Final = 32
BODIES_LIMIT_CHARS: Final = 64 << 20
CALL_SECONDS: Final = 3540.0  # below the hour after which the gateway gives up, with some for the way into the queue
CHUNK_BYTES: Final = 3 << 18  # a multiple of 3: base64 without padding in between


@dataclass(frozen=True)
class Answer:
    """Its images are read while it is sent."""

    head: bytes
    paths: tuple[Path, ...]
    tail: bytes
    size_bytes: int

    async def chunks(self, disk: Disk) -> AsyncIterator[bytes]:
        """Raises StorageError: then the answer breaks off, which its Content-Length tells."""
        yield self.head
        for number, path in enumerate(self.paths):
            yield b'"' if number == 0 else b',"'
            start = 0
            while chunk := await disk.do(partial(_read, path, start)):
                yield base64.b64encode(chunk)
                start += len(chunk)
            yield b'"'
        yield self.tail


def _read(path: Path, start: int, _: Path) -> bytes:
    """Opened and closed by the thread that reads: to close a file that another thread reads from is to wait for it,
    and the event loop would, for as long as the storage hangs."""
    with path.open("rb") as file:
        if start:
            file.seek(start)
        return file.read(CHUNK_BYTES)


@dataclass(frozen=True)
class Asked:
    """A request's body, and what makes two of them the same: the caller, its content and, where there is one, its task.

    Only a task's name tells that a request is asked for again: two clients may well want the same picture."""

    body: Any
    digest: str

    def seed(self, caller: Identity) -> int:
        """A task that is asked for again, because the connection broke, gets the seed that it had; others are drawn."""
        task_id = self.body.get("force_task_id") if isinstance(self.body, dict) else None
        if not isinstance(task_id, str) or not task_id:
            return secrets.randbelow(SEEDS)
        same = f"{caller.name}\0{task_id}\0{self.digest}"
        return int.from_bytes(hashlib.sha256(same.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Prepared:
    """A call before its jobs are submitted: they have its pictures, `generation` has not."""

    caller: Identity
    generation: Generation
    note: CallNote
    submissions: list[Submission]

    @property
    def is_named(self) -> bool:
        return self.generation.task_id is not None


Gone = Callable[[], Coroutine[Any, Any, None]]


class Calls:
    def __init__(self, services: Services, book: Book) -> None:
        self._services = services
        self._book = book
        self._waiting = 0

    def prepare(self, caller: Identity, generation: Generation, digest: str) -> Prepared:
        """Takes its time: pictures are looked into. Raises ApiError, Problem."""
        task_id = generation.task_id or f"task({secrets.token_hex(7)})"
        submissions = []
        for number, fields in enumerate(generation.jobs):
            try:
                job = JobRequest.model_validate({**fields, "metadata": {"a1111_task": task_id}})
            except ValidationError as error:
                found = [Problem(item["loc"], item["msg"], item["type"]) for item in error.errors()]
                raise invalid_body(found) from error
            require_affordable(job, self._services.settings.max_pixel_frames)
            # What is asked for counts, and not what becomes of it: the workers' names may change in between.
            key = f"a1111:{task_id}:{digest}:{number}" if generation.task_id else None
            submissions.append(replace(submission_of(job, caller, key), body_hash=digest))
            if sum(len(item.body) for item in submissions) > BODIES_LIMIT_CHARS:
                raise http_error(413, "so many results from so large a picture; ask for fewer at once")
        job_ids = tuple(item.job_id for item in submissions)
        note = CallNote(task_id, digest, generation.request_id, job_ids, generation.steps, time.time())
        return Prepared(caller, generation.without_pictures(), note, submissions)

    async def answer(self, call: Prepared, gone: Gone, submitted: Callable[[], None]) -> Answer:
        """Raises ApiError, Problem, QueueUnavailable. A client that goes away takes its jobs with it."""
        await self._book.open(call.caller.name, call.note)
        try:
            call = replace(call, note=await self._submit_all(call))
            submitted()
            leaving = asyncio.ensure_future(gone())
            try:
                return await self._made(call, leaving)
            finally:
                leaving.cancel()
        finally:
            await self._close(call)

    async def _submit_all(self, call: Prepared) -> CallNote:
        """The note with the jobs that were really submitted: of a task asked for before, they are there already.
        Empties the submissions, whose bodies would lie in memory for as long as the call waits."""
        job_ids = list(call.note.jobs)
        try:
            for number in range(len(job_ids)):
                job_ids[number] = await self._submit(call.submissions.pop(0))
        except Exception:
            await self._give_up(call.caller, replace(call.note, jobs=tuple(job_ids)))
            raise
        note = replace(call.note, jobs=tuple(job_ids))
        if note != call.note:
            await self._book.open(call.caller.name, note)
        return note

    async def _submit(self, submission: Submission) -> str:
        for _ in range(REPEATS_LIMIT):
            accepted = await patiently(self._services, partial(self._services.queue.submit, submission))
            if accepted.status == "full":
                wait = {"Retry-After": str(seconds_until_room(self._services.ticker.stats))}
                raise failure(503, "RuntimeError", "the queue is full; try again later", wait)
            if accepted.status == "unfit":
                raise no_worker_fits(submission.needs, accepted.missing)
            if accepted.status == "conflict":
                raise http_error(409, "this force_task_id was used for another request")
            if accepted.status == "ok" or not await self._has_come_to_nothing(accepted):
                return accepted.job_id
            # Anew, under a name that every call finds which asks for it again: there is one new job for all of them.
            after = f"{submission.idempotency_key}:after:{accepted.job_id}"
            name = f"a1111:{hashlib.sha256(after.encode()).hexdigest()}"
            submission = replace(submission, idempotency_key=name)
        raise http_error(409, f"this task has come to nothing {REPEATS_LIMIT} times; give it another force_task_id")

    async def _has_come_to_nothing(self, accepted: Accepted) -> bool:
        if accepted.state in (JobState.CANCELLED, JobState.DEAD):
            return True
        job = await patiently(self._services, partial(self._services.queue.get, accepted.job_id))
        return job is None or (job.cancel_requested and job.state is not JobState.DONE)

    async def _made(self, call: Prepared, leaving: asyncio.Future[None]) -> Answer:
        work = asyncio.create_task(self._work(call))
        self._waiting += 1
        try:
            either: set[asyncio.Future[Any]] = {work, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        finally:
            self._waiting -= 1
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        if call.is_named:
            await self._await_return(call)
        if not (call.is_named and self._services.stopping.is_set()):  # it may be asked for again, elsewhere
            await self._give_up(call.caller, call.note)
        raise of_reason("CANCELLED", "the client went away")

    async def _work(self, call: Prepared) -> Answer:
        try:
            jobs = await self._wait(list(call.note.jobs))
        except Exception:
            if not self._services.stopping.is_set():
                await self._give_up(call.caller, call.note)
            raise
        made = [number for number, job in enumerate(jobs) if job.state is JobState.DONE]
        if not made:
            raise of_reason("CANCELLED", INTERRUPTED)
        # Of those that became something: the answer's seeds are its images'.
        generation = replace(call.generation, jobs=tuple(call.generation.jobs[number] for number in made))
        return await self._collect(generation, [jobs[number] for number in made])

    async def _await_return(self, call: Prepared) -> None:
        """A client that names its task means to ask for it again when a connection breaks."""
        deadline = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < deadline and not await wait_or_stop(self._services.stopping, SLOW_POLL_SECONDS):
            try:
                if await self._book.is_asked_again(call.caller.name, call.note):
                    return
            except QueueUnavailable as error:
                log.debug("whether %s is asked for again is not known: %s", call.note.id, error)

    async def _wait(self, job_ids: list[str]) -> list[JobRecord]:
        """Until all have ended, or one has failed; outages of Redis are waited out."""
        started = time.monotonic()
        while True:
            waited = time.monotonic() - started
            try:
                jobs = await self._services.queue.get_many(job_ids)
            except QueueUnavailable as error:
                log.debug("waiting on: %s", error)
                jobs = []
            for job in jobs:
                if job is None:
                    text = "the job is not known any more; ask for it again"
                    raise failure(503, "ConnectionError", text, {"Retry-After": RETRY_SECONDS})
                if job.state is JobState.DEAD:
                    raise of_reason(job.reason or "UNKNOWN", job.message or "the job was given up")
            ended = [job for job in jobs if job is not None and job.state.is_final]
            if jobs and len(ended) == len(job_ids):
                return ended
            if waited >= CALL_SECONDS:
                raise failure(504, "TimeoutError", "this takes longer than an hour; use POST /api/v1/jobs")
            pause = POLL_SECONDS if waited < SLOW_AFTER_SECONDS else SLOW_POLL_SECONDS
            pause = max(pause, self._waiting / POLLS_PER_SECOND)
            if await wait_or_stop(self._services.stopping, pause):
                where = ", ".join(f"/api/v1/jobs/{job_id}/result" for job_id in job_ids)
                text = f"this service restarts; what was asked for goes on, and will be at {where}"
                raise failure(503, "ConnectionError", text, {"Retry-After": "2"})

    async def _collect(self, generation: Generation, jobs: Sequence[JobRecord]) -> Answer:
        listed = [_files(job) for job in jobs]
        order = answers.choose_files(generation, listed) if generation.send_images else []
        sizes = [listed[job][index].size_bytes for job, index in order]
        if sum(sizes) > ANSWER_LIMIT_BYTES:
            where = ", ".join(f"/api/v1/jobs/{job.job_id}/result" for job in jobs)
            raise http_error(413, f"the result has more than {ANSWER_LIMIT_BYTES} bytes; it is at {where}")
        try:
            paths = await self._services.disk.do(partial(_locate_all, jobs, order))
        except StorageError as error:
            raise failure(503, "RuntimeError", f"storage: {error}") from error
        began = time.strftime("%Y%m%d%H%M%S", time.gmtime(jobs[0].started_at or jobs[0].created_at))
        made: list[Mapping[str, Any]] = [{} for _ in jobs]
        head, tail = answers.around_images(generation, made, began)
        return Answer(head, tuple(paths), tail, len(head) + answers.encoded_size(sizes) + len(tail))

    async def _give_up(self, caller: Identity, note: CallNote) -> None:
        """Cancels the call's jobs, unless another call waits for the same ones."""
        try:
            await self._book.close(caller.name, note)
            if await self._book.is_asked_again(caller.name, note):
                return
        except QueueError as error:
            log.debug("whether somebody else waits for %s is not known: %s", note.id, error)
        cancels = [patiently(self._services, partial(self._services.queue.cancel, job_id)) for job_id in note.jobs]
        for job_id, answer in zip(note.jobs, await asyncio.gather(*cancels, return_exceptions=True), strict=True):
            if isinstance(answer, QueueError):
                log.warning("job %s could not be cancelled: %s", job_id, answer)
            elif isinstance(answer, BaseException):
                raise answer

    async def _close(self, call: Prepared) -> None:
        try:
            await self._book.close(call.caller.name, call.note)
            if call.is_named:
                await self._book.remember_end(call.caller.name, call.note.id)
        except QueueError as error:
            log.debug("the note of %s stays until it is read: %s", call.note.id, error)


def _locate_all(jobs: Sequence[JobRecord], order: Sequence[tuple[int, int]], jobs_dir: Path) -> list[Path]:
    return [locate(jobs_dir, jobs[job], index)[0] for job, index in order]


def _files(job: JobRecord) -> list[ResultFile]:
    listed = (job.result or {}).get("files", [])
    return [ResultFile(str(file["name"]), str(file["media_type"]), int(file["size_bytes"])) for file in listed]
