"""A1111's txt2img and img2img on this node: one call is one or more local runs, one after another."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdapi import answers
from sdapi.answers import ResultFile
from sdapi.errors import INTERRUPTED, Problem, failure, http_error, invalid_body, of_reason
from sdapi.generation import Generation
from sdapi.progress import Progress
from webui.local import LineFullError, LocalRun, LocalRuns
from webui.process import NotReadyError
from webui.request import RequestError, VideoRequest, request_problems, video_request

ANSWER_LIMIT_BYTES = 256 << 20
PLACE_SECONDS = 600.0  # how long the second and later runs of a call wait for a place in the line
PLACE_STEP_SECONDS = 0.2
ENDED_KEPT = 64


class Call:
    """One request that waits for its answer."""

    def __init__(self, generation: Generation) -> None:
        self.id = generation.task_id or f"task({secrets.token_hex(7)})"
        self.generation = generation
        self.run: LocalRun | None = None
        self.first: LocalRun | None = None
        self.job_no = 0
        self.interrupted = False
        self.timestamp = time.strftime("%Y%m%d%H%M%S")

    @property
    def is_running(self) -> bool:
        return self.job_no > 0 or (self.run is not None and self.run.state == "running")

    def interrupt(self) -> None:
        self.interrupted = True
        self.skip()

    def skip(self) -> None:
        if self.run is not None:
            self.run.cancel()

    def progress(self) -> Progress:
        run = self.run
        place = f"waiting, {run.position} in line" if run is not None and run.state == "queued" else None
        return Progress(
            task_id=self.id,
            job_count=len(self.generation.jobs),
            job_no=self.job_no,
            step=run.step if run else 0,
            steps=run.total_steps if run else self.generation.steps,
            timestamp=self.timestamp,
            elapsed=self._elapsed(),
            preview=base64.b64encode(run.preview).decode() if run and run.preview else None,
            interrupted=self.interrupted,
            queued=not self.is_running,
            text=place,
        )

    def _elapsed(self) -> float:
        """Since the first of its runs began."""
        began = self.first.started_at if self.first is not None else None
        return 0.0 if began is None else max(0.0, time.time() - began)


class Calls:
    """All calls of this node, in their order. `ended` remembers whether a task was ever here."""

    def __init__(self, runs: LocalRuns) -> None:
        self._runs = runs
        self._calls: list[Call] = []
        self.ended: list[str] = []

    @property
    def current(self) -> Call | None:
        """The one that runs; else the first that waits."""
        return next((call for call in self._calls if call.is_running), self._calls[0] if self._calls else None)

    @property
    def waiting(self) -> list[Call]:
        return [call for call in self._calls if not call.is_running]

    def find(self, name: str) -> Call | None:
        """By its task's id, or by the request id among AnimateDiff's arguments; the newest of that name."""
        named = (call for call in reversed(self._calls) if name in (call.id, call.generation.request_id))
        return next(named, None)

    async def answer(self, generation: Generation, gone: Callable[[], Coroutine[Any, Any, None]]) -> dict[str, Any]:
        """Makes all the jobs. Raises ApiError; when the client is gone first, everything of the call is cancelled."""
        call = Call(generation)
        same = self.find(call.id)
        if same is not None and not same.interrupted:  # one that is just ending is asked for again
            raise http_error(409, f"task {call.id} is at work already")
        self._calls.append(call)
        work = asyncio.ensure_future(self._work(call))
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                call.interrupt()
            return await work
        finally:
            call.interrupt()
            leaving.cancel()
            work.cancel()
            self._calls.remove(call)
            self.ended = [*self.ended, call.id][-ENDED_KEPT:]

    async def _work(self, call: Call) -> dict[str, Any]:
        generation = call.generation
        wanted: list[list[tuple[ResultFile, bytes]]] = []
        made: list[Mapping[str, Any]] = []
        jobs: list[Mapping[str, Any]] = []  # those that became something: the answer's seeds are its images'
        size = 0
        for number, job in enumerate(generation.jobs):
            run = await self._made(call, job)
            call.job_no = number + 1 if number + 1 < len(generation.jobs) else number
            if run is not None:
                files = await self._fetch(generation, run, ANSWER_LIMIT_BYTES - size)
                size += sum(len(content) for _, content in files)
                wanted.append(files)
                made.append(run.parameters)
                jobs.append(job)
                self._runs.forget(run)
            if call.interrupted:
                break
        if not made:
            raise of_reason("CANCELLED", INTERRUPTED)
        generation = replace(generation, jobs=tuple(jobs))
        order = answers.choose_files(generation, [[file for file, _ in files] for files in wanted])
        images = [wanted[job][index][1] for job, index in order]
        return await asyncio.to_thread(answers.build, generation, images, made, call.timestamp)

    async def _made(self, call: Call, job: Mapping[str, Any]) -> LocalRun | None:
        """The finished run; None for one that was interrupted or skipped."""
        call.run = run = await self._submit(call, job)
        call.first = call.first or run
        if run is None:
            return None
        await run.wait()
        if run.state == "cancelled":
            return None
        if run.state != "done":
            reason, message = run.error or ("UNKNOWN", "it ended without a result")
            raise of_reason(reason, message)
        return run

    async def _submit(self, call: Call, job: Mapping[str, Any]) -> LocalRun | None:
        request = await asyncio.to_thread(_read, job)  # looks into its pictures
        first = call.job_no == 0 and call.run is None
        deadline = time.monotonic() + (0 if first else PLACE_SECONDS)
        while not call.interrupted:
            try:
                return self._runs.submit(request)
            except RequestError as error:
                raise http_error(422, str(error).replace("request.", "")) from error
            except NotReadyError as error:
                raise failure(503, "RuntimeError", str(error), {"Retry-After": "2"}) from error
            except LineFullError as error:
                if time.monotonic() >= deadline:
                    raise failure(503, "RuntimeError", str(error), {"Retry-After": "5"}) from error
            await asyncio.sleep(PLACE_STEP_SECONDS)
        return None

    async def _fetch(self, generation: Generation, run: LocalRun, room: int) -> list[tuple[ResultFile, bytes]]:
        """Only those that will be told: newer runs push files off the disk."""
        files = [ResultFile(file.path.name, file.media_type, file.size_bytes) for file in run.files]
        chosen = [index for _, index in answers.choose_files(generation, [files])]
        if sum(files[index].size_bytes for index in chosen) > room:
            raise http_error(413, f"the result is larger than {ANSWER_LIMIT_BYTES} bytes; ask for less at once")
        paths = [run.files[index].path for index in chosen]
        try:
            contents = await asyncio.to_thread(_read_all, paths)
        except OSError as error:
            raise failure(500, "RuntimeError", f"the result cannot be read: {error.strerror}") from error
        return list(zip([files[index] for index in chosen], contents, strict=True))


def _read(job: Mapping[str, Any]) -> VideoRequest:
    if problems := request_problems(job):
        raise invalid_body([Problem((name,), message) for name, message in problems])
    return video_request(job)


def _read_all(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]
