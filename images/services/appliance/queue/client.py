"""The queue's typed client. Every method is one round trip; every outage surfaces as QueueUnavailable."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from redis.asyncio import Redis

from appliance import keys
from appliance.errors import QueueUnavailable
from appliance.gpu import Gpu
from appliance.job import Capabilities, JobState, Priority
from appliance.queue.calls import WAIT_MILLISECONDS, Calls, Command
from appliance.queue.counts import label_text
from appliance.queue.figures import Line
from appliance.queue.nodes import NodeBook
from appliance.queue.past import PastJob, PastLine
from appliance.queue.reader import Reader
from appliance.queue.types import (
    Accepted,
    Asker,
    BeatAnswer,
    Claim,
    CommitAnswer,
    FailKind,
    Nothing,
    Outcome,
    QueueStats,
    Registration,
    RepairReport,
    Settlement,
    Submission,
    TickReport,
)
from appliance.redis_link import RedisLink
from appliance.settings import QueueSettings

MESSAGE_LIMIT = 500
LABEL_LIMIT = 100
PROBE = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1', 'EX', 60)"


class Queue(Reader):
    def __init__(self, link: RedisLink, settings: QueueSettings, replicas: int = 0) -> None:
        super().__init__(link)
        self._settings = settings
        self._replicas = replicas
        self.nodes = NodeBook(link, replicas)
        self._asked = ("", 0)
        self._call = Calls(link, settings).call

    @property
    def settings(self) -> QueueSettings:
        return self._settings

    async def connect(self) -> None:
        """Raises UnsafeRedis where starting would be wrong, QueueUnavailable where waiting is right."""
        await self._link.client()

    async def close(self) -> None:
        await self._link.close()

    # --- moves of clients ----------------------------------------------------------------------------------------

    async def submit(self, job: Submission) -> Accepted:
        """Returns only when the configured number of replicas has the job too."""
        weight = self._settings.user_weights.get(job.user, 1.0) if job.weight is None else job.weight
        arguments: dict[str, Any] = {
            "id": job.job_id,
            "user": job.user,
            "prio": job.priority.value,
            "slack_ms": job.priority.slack_seconds * 1000,
            "cost": job.cost_ms,
            "weight": weight,
            "res": job.resolution,
        }
        if job.idempotency_key:
            arguments |= {"idem": keys.idempotency(job.user, job.idempotency_key), "hash": job.body_hash}
        if job.deadline_seconds is not None:
            arguments["deadline_ms"] = round(job.deadline_seconds * 1000)
        needs = job.needs.to_json()
        if needs != "{}":
            arguments |= {"class": job.needs.worker_class(), "needs": needs}
        status, *rest = await self._call("submit", arguments, job.body, replicas=self._replicas)
        if status == "unfit":
            return Accepted(status, "", None, tuple(rest[0].split()))
        state = JobState(rest[1]) if len(rest) > 1 else None
        return Accepted(status, "" if status == "full" else rest[0], state)

    async def cancel(self, job_id: str) -> Settlement:
        """Returns only when the configured number of replicas knows it too."""
        return _settlement(await self._call("cancel", {"id": job_id}, replicas=self._replicas))

    async def requeue_dead(self, job_id: str) -> Settlement:
        """Gives a dead job all its budgets again. Returns only when the configured number of replicas knows it too."""
        arguments = {"id": job_id, "slacks": {priority.value: priority.slack_seconds * 1000 for priority in Priority}}
        return _settlement(await self._call("requeue_dead", arguments, replicas=self._replicas))

    # --- moves of workers ----------------------------------------------------------------------------------------

    async def claim(
        self,
        worker: str,
        nonce: str,
        capabilities: Capabilities | None = None,
        *,
        boot_id: str = "",
        gpu: Gpu | None = None,
        wait_seconds: float = 0.0,
    ) -> Claim | Nothing:
        """The best waiting job that `capabilities` fit; the same nonce again gets the same job. See `Asker`.

        With `wait_seconds` (well below the socket timeout) it waits in line first, until a job arrives. Redis leases it
        in that moment, whether or not this process still lives: it may cost a job one lease, and saves each a trip."""
        asker = Asker(worker, boot_id, capabilities, gpu)
        answer = await self._call("claim", self._asking(asker, nonce), wait=_wait_for_work(wait_seconds))
        return _claimed(nonce, answer)

    def _asking(self, asker: Asker, nonce: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {"worker": asker.worker, "nonce": nonce, "boot": asker.boot_id}
        arguments["turn"] = self._turn(nonce)
        if asker.capabilities is not None:
            arguments["can"] = asker.capabilities.for_claim()
        if asker.gpu is not None:
            arguments["gpu"] = asker.gpu.label
        return arguments

    def _turn(self, nonce: str) -> int:
        """Grows from one nonce to the next within a process."""
        if nonce != self._asked[0]:
            self._asked = (nonce, round(time.monotonic() * 1000))
        return self._asked[1]

    async def beat(
        self,
        claim: Claim,
        step: int = 0,
        total_steps: int = 0,
        phase: str = "",
        *,
        memory: str | None = None,
        resumed_from: int | None = None,
        checkpoint_step: int | None = None,
        parameters: str | None = None,
        preview: str | None = None,
    ) -> BeatAnswer:
        """What is None stays as it was told before. `parameters` (JSON) are the job's; what was told first stays.
        `preview` is a JPEG in base64, kept for ten minutes."""
        told = {
            "step": step,
            "total": total_steps,
            "phase": phase,
            "memory": None if memory is None else memory[:LABEL_LIMIT],
            "resumed": resumed_from,
            "checkpoint": checkpoint_step,
            "params": parameters,
        }
        known = {name: value for name, value in told.items() if value is not None}
        pictures = [preview] if preview else []
        return BeatAnswer(await self._call("beat", {**_holder(claim), **known}, *pictures))

    async def commit(
        self, claim: Claim, result: str, *, adopted: bool = False, model: str = "", video_seconds: float = 0.0
    ) -> CommitAnswer:
        """`model` and `video_seconds` are only counted."""
        arguments = _ending(claim, adopted, model, video_seconds)
        return CommitAnswer(await self._call("commit", arguments, result))

    async def commit_and_claim(
        self,
        claim: Claim,
        result: str,
        asker: Asker,
        nonce: str,
        *,
        adopted: bool = False,
        model: str = "",
        video_seconds: float = 0.0,
    ) -> tuple[CommitAnswer, Claim | Nothing | None]:
        """`commit`, and then `claim` for its worker, in one move; None after FENCED, or where the claim failed. It may
        be repeated."""
        arguments = {**_ending(claim, adopted, model, video_seconds), "next": self._asking(asker, nonce)}
        committed, *answer = await self._call("commit_and_claim", arguments, result)
        return CommitAnswer(committed), _claimed(nonce, answer) if answer else None

    async def fail(self, claim: Claim, kind: FailKind, reason: str, message: str, *, where: str = "") -> Settlement:
        """`where` is the place in the code that failed."""
        arguments = {
            **_holder(claim),
            "kind": kind.value,
            "reason": reason,
            "message": message[:MESSAGE_LIMIT],
            "where": where[:LABEL_LIMIT],
            # Redis seeds Lua's random numbers alike for every script run: the jitter has to come from here.
            "jitter": random.random(),  # noqa: S311
        }
        return _settlement(await self._call("fail", arguments))

    async def register(self, worker: str, **description: str) -> Registration:
        """Keys of `description`: boot_id, state, engine, fingerprint, synthetic; capabilities and gpu as JSON texts."""
        number, order, outcomes = await self._call("worker", {"worker": worker, **description})
        return Registration(int(number), order, Outcome.parse_all(outcomes))

    # --- housekeeping --------------------------------------------------------------------------------------------

    async def tick(self, host: str = "") -> TickReport:
        """`host`: the caller's, for which it is counted what time alone has ended."""
        report = json.loads(await self._call("tick", {"host": host}))
        outcomes = Outcome.parse_all(json.dumps(report.pop("outcomes")))
        return TickReport(**report, outcomes=outcomes)

    async def repair(self, cursor: str = "") -> tuple[str, RepairReport]:
        """Cross-checks one bounded slice of all records; begin with "", go on with the answer until it is "" again."""
        report = json.loads(await self._call("repair", {"cursor": cursor}))
        return report.pop("cursor"), RepairReport(**report)

    async def past_jobs(self, line: PastLine, first: int, count: int) -> tuple[int, list[PastJob]]:
        """How many jobs that slice of the line has, and those that are still kept; "done" begins with the newest,
        "ready" with the heads of the lines, and of those only what was tried before."""
        size, rows = await self._call("past", {"line": line, "first": first, "count": count})
        return int(size), [PastJob.parse(row) for row in rows]

    async def stats(self) -> QueueStats:
        return QueueStats(**json.loads(await self._call("stats", {})))

    async def lines(self) -> dict[str, Line]:
        """By the queue's name: `default` and `special`."""
        return {name: Line(**line) for name, line in json.loads(await self._call("lines", {})).items()}

    async def check_writable(self) -> None:
        """Writes, and waits for the replicas, as a submit would. A full memory is no outage: it takes no new job, but
        all else goes on."""
        replicas = self._replicas

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.eval(PROBE, 1, keys.WRITE_PROBE)
            if replicas:
                pipeline.execute_command("WAIT", replicas, WAIT_MILLISECONDS)
            answers = await pipeline.execute()
            if replicas and int(answers[1]) < replicas:
                raise QueueUnavailable(f"only {answers[1]} of {replicas} replicas answer")

        await self._link.run(write)


def _holder(claim: Claim) -> dict[str, str]:
    return {"id": claim.job_id, "nonce": claim.nonce, "fence": str(claim.fence)}


def _ending(claim: Claim, adopted: bool, model: str, video_seconds: float) -> dict[str, Any]:
    return {
        **_holder(claim),
        "adopted": adopted,
        "model": label_text(model),
        "video_ms": round(video_seconds * 1000),
    }


def _wait_for_work(seconds: float) -> Command:
    if seconds <= 0:
        return ()
    milliseconds = max(1, round(seconds * 1000))
    group = ("GROUP", keys.WAKE_GROUP, "all")  # nothing is kept for a consumer, whose name says nothing then
    return ("XREADGROUP", *group, "COUNT", 1, "BLOCK", milliseconds, "NOACK", "STREAMS", keys.WAKE, ">")


def _claimed(nonce: str, answer: list[Any]) -> Claim | Nothing:
    if answer[0] == "none":
        _, due, outcomes = answer
        next_due = None if int(due) < 0 else int(due) / 1000
        return Nothing(next_due, Outcome.parse_all(outcomes))
    _, job_id, fence, attempts, deadline, now, body, outcomes, ooms, user, more = answer
    left = (int(deadline) - int(now)) / 1000 if deadline else None
    parsed = Outcome.parse_all(outcomes)
    return Claim(job_id, nonce, int(fence), int(attempts), left, body, parsed, int(ooms), user, bool(int(more)))


def _settlement(answer: list[str]) -> Settlement:
    status, state = answer
    return Settlement(status, JobState(state) if state else None)
