"""A1111's txt2img and img2img through the queue: one call is one or more jobs, and waits until all have ended."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from appliance.api.auth import Identity
from appliance.api.jobs import submission_of
from appliance.api.limits import no_worker_fits, require_affordable
from appliance.api.results import locate
from appliance.api.sdapi_book import Book, CallNote
from appliance.api.services import Services, patiently
from appliance.api.views import seconds_until_room
from appliance.errors import QueueError, QueueUnavailable
from appliance.job import JobRequest, JobState
from appliance.lifecycle import wait_or_stop
from appliance.queue import JobRecord, Submission
from sdapi import answers
from sdapi.answers import ResultFile
from sdapi.errors import INTERRUPTED, Problem, failure, http_error, invalid_body, of_reason
from sdapi.generation import SEEDS, Generation

log = logging.getLogger(__name__)

ANSWER_LIMIT_BYTES: Final = 256 << 20
POLL_SECONDS: Final = 0.25
SLOW_POLL_SECONDS: Final = 1.0
SLOW_AFTER_SECONDS: Final = 30.0
BODIES_LIMIT_CHARS: Final = 64 << 20
CALL_SECONDS: Final = 3570.0  # just below the hour after which the gateway gives up
STORAGE_SECONDS: Final = 10.0
CHUNK_BYTES: Final = 3 << 18  # a multiple of 3: base64 without padding in between


@dataclass(frozen=True)
class Answer:
    """Its images are read while it is sent."""

    head: bytes
    paths: tuple[Path, ...]
    tail: bytes
    size_bytes: int

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.head
        for number, path in enumerate(self.paths):
            yield b'"' if number == 0 else b',"'
            with await asyncio.to_thread(path.open, "rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield base64.b64encode(chunk)
            yield b'"'
        yield self.tail


def seed_of(caller: Identity, task_id: object) -> int:
    """A task that is asked for again, because the connection broke, is the same request; others are drawn anew."""
    if not isinstance(task_id, str) or not task_id:
        return secrets.randbelow(SEEDS)
    return int.from_bytes(hashlib.sha256(f"{caller.name}\0{task_id}".encode()).digest()[:4], "big")


class Calls:
    def __init__(self, services: Services, book: Book) -> None:
        self._services = services
        self._book = book

    async def answer(self, caller: Identity, generation: Generation, gone: Awaitable[None]) -> Answer:
        """Raises ApiError, Problem, QueueUnavailable. A client that goes away takes its jobs with it."""
        task_id = generation.task_id or f"task({secrets.token_hex(7)})"
        submissions = await asyncio.to_thread(self._prepare, caller, generation, task_id)
        note = CallNote(
            task_id, generation.request_id, tuple(item.job_id for item in submissions), generation.steps, time.time()
        )
        await self._book.open(caller.name, note)
        job_ids = list(note.jobs)
        work = asyncio.create_task(self._work(caller, generation, note, submissions, job_ids))
        leaving = asyncio.ensure_future(gone)
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await self._cancel(job_ids)
                raise of_reason("CANCELLED", "the client went away")
            return work.result()
        finally:
            leaving.cancel()
            work.cancel()
            await self._close(caller, note)

    def _prepare(self, caller: Identity, generation: Generation, task_id: str) -> list[Submission]:
        submissions = []
        for number, fields in enumerate(generation.jobs):
            try:
                job = JobRequest.model_validate({**fields, "metadata": {"a1111_task": task_id}})
            except ValidationError as error:
                found = [Problem(item["loc"], item["msg"], item["type"]) for item in error.errors()]
                raise invalid_body(found) from error
            require_affordable(job, self._services.settings.max_pixel_frames)
            key = f"a1111:{task_id}:{number}" if generation.task_id else None
            submissions.append(submission_of(job, caller, key))
            if sum(len(item.body) for item in submissions) > BODIES_LIMIT_CHARS:
                raise http_error(413, "so many results from so large a picture; ask for fewer at once")
        return submissions

    async def _work(
        self,
        caller: Identity,
        generation: Generation,
        note: CallNote,
        submissions: Sequence[Submission],
        job_ids: list[str],
    ) -> Answer:
        """`job_ids` becomes what was really submitted: of a task asked for before, the jobs are there already."""
        try:
            for number, submission in enumerate(submissions):
                job_ids[number] = await self._submit(submission)
            if tuple(job_ids) != note.jobs:
                await self._book.open(caller.name, replace(note, jobs=tuple(job_ids)))
            jobs = await self._wait(job_ids)
        except Exception:
            if not self._services.stopping.is_set():
                await self._cancel(job_ids)
            raise
        done = [job for job in jobs if job.state is JobState.DONE]
        if not done:
            raise of_reason("CANCELLED", INTERRUPTED)
        return await self._collect(generation, done)

    async def _submit(self, submission: Submission) -> str:
        accepted = await patiently(self._services, lambda: self._services.queue.submit(submission))
        if accepted.status == "duplicate" and accepted.state in (JobState.CANCELLED, JobState.DEAD):
            anew = replace(submission, idempotency_key=None)  # asked for again because it has come to nothing
            accepted = await patiently(self._services, lambda: self._services.queue.submit(anew))
        if accepted.status == "full":
            wait = {"Retry-After": str(seconds_until_room(self._services.ticker.stats))}
            raise failure(503, "RuntimeError", "the queue is full; try again later", wait)
        if accepted.status == "unfit":
            raise no_worker_fits(submission.needs, accepted.missing)
        if accepted.status == "conflict":
            raise http_error(409, "this force_task_id was used for another request")
        return accepted.job_id

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
                    raise failure(500, "RuntimeError", "the job is not known any more")
                if job.state is JobState.DEAD:
                    raise of_reason(job.reason or "UNKNOWN", job.message or "the job was given up")
            ended = [job for job in jobs if job is not None and job.state.is_final]
            if jobs and len(ended) == len(job_ids):
                return ended
            if waited >= CALL_SECONDS:
                raise failure(504, "TimeoutError", "this takes longer than an hour; use POST /api/v1/jobs")
            pause = POLL_SECONDS if waited < SLOW_AFTER_SECONDS else SLOW_POLL_SECONDS
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
        look = asyncio.to_thread(self._locate_all, jobs, order)
        try:
            paths = await asyncio.wait_for(look, STORAGE_SECONDS)
        except asyncio.TimeoutError as error:
            raise failure(503, "RuntimeError", f"storage has not answered for {STORAGE_SECONDS:g} s") from error
        began = time.strftime("%Y%m%d%H%M%S", time.gmtime(jobs[0].started_at or jobs[0].created_at))
        made: list[Mapping[str, Any]] = [{} for _ in jobs]
        head, tail = answers.around_images(generation, made, began)
        return Answer(head, tuple(paths), tail, len(head) + answers.encoded_size(sizes) + len(tail))

    def _locate_all(self, jobs: Sequence[JobRecord], order: Sequence[tuple[int, int]]) -> list[Path]:
        return [locate(self._services.settings.jobs_dir, jobs[job], index)[0] for job, index in order]

    async def _cancel(self, job_ids: Sequence[str]) -> None:
        cancels = [patiently(self._services, partial(self._services.queue.cancel, job_id)) for job_id in job_ids]
        for job_id, answer in zip(job_ids, await asyncio.gather(*cancels, return_exceptions=True), strict=True):
            if isinstance(answer, QueueError):
                log.warning("job %s could not be cancelled: %s", job_id, answer)
            elif isinstance(answer, BaseException):
                raise answer

    async def _close(self, caller: Identity, note: CallNote) -> None:
        try:
            await self._book.close(caller.name, note)
        except QueueError as error:
            log.debug("the note of %s stays until it is read: %s", note.id, error)


def _files(job: JobRecord) -> list[ResultFile]:
    listed = (job.result or {}).get("files", [])
    return [ResultFile(str(file["name"]), str(file["media_type"]), int(file["size_bytes"])) for file in listed]
