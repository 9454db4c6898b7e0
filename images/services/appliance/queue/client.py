"""The queue's typed client. Every method is one round trip; every outage surfaces as QueueUnavailable."""

from __future__ import annotations

import json
import random
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from appliance import keys
from appliance.errors import QueueError, QueueUnavailable
from appliance.job import JobState
from appliance.queue.scripts import Script, load_scripts
from appliance.queue.types import (
    Accepted,
    BeatAnswer,
    Claim,
    CommitAnswer,
    FailKind,
    JobRecord,
    Nothing,
    Outcome,
    QueueStats,
    Settlement,
    StreamEvent,
    Submission,
    TickReport,
    WorkerRecord,
)
from appliance.redis_link import RedisLink
from appliance.settings import QueueSettings

StreamEntries = list[tuple[str, dict[str, str]]]
WAIT_MILLISECONDS = 500
MESSAGE_LIMIT = 500


class Queue:
    def __init__(self, link: RedisLink, settings: QueueSettings, replicas: int = 0) -> None:
        self._link = link
        self._settings = settings
        self._replicas = replicas
        self._scripts = load_scripts()
        self._classes = [settings.worker_class]
        self._config: dict[str, Any] = {
            "lease_ms": round(settings.lease_seconds * 1000),
            "grace_ms": round(settings.failover_grace_seconds * 1000),
            # Ticks come twice a second: a longer silence of all scripts means that Redis itself stood still.
            "stall_ms": round(max(1.5, settings.lease_seconds / 2) * 1000),
            "queue_limit": settings.queue_limit,
            "crash_budget": settings.crash_budget,
            "error_budget": settings.error_budget,
            "oom_budget": settings.oom_budget,
            "retention_ms": round(settings.retention_seconds * 1000),
        }

    @property
    def settings(self) -> QueueSettings:
        return self._settings

    async def connect(self) -> None:
        """Raises UnsafeRedis where starting would be wrong, QueueUnavailable where waiting is right."""
        await self._link.client()

    async def close(self) -> None:
        await self._link.close()

    # --- moves ---------------------------------------------------------------------------------------------------

    async def submit(self, job: Submission) -> Accepted:
        """Returns only when the configured number of replicas has the job too."""
        arguments = {
            "id": job.job_id,
            "user": job.user,
            "idem": keys.idempotency(job.user, job.idempotency_key) if job.idempotency_key else "",
            "hash": job.body_hash,
            "prio": job.priority.value,
            "slack_ms": job.priority.slack_seconds * 1000,
            "cost": job.cost_ms,
            "weight": job.weight,
            "class": self._settings.worker_class,
            "deadline_ms": None if job.deadline_seconds is None else round(job.deadline_seconds * 1000),
        }
        answer = await self._call("submit", arguments, job.body, replicas=self._replicas)
        status, detail = answer[0], answer[1]
        return Accepted(status, "" if status == "full" else detail, JobState(answer[2]) if len(answer) > 2 else None)

    async def claim(self, worker: str, nonce: str) -> Claim | Nothing:
        answer = await self._call("claim", {"worker": worker, "nonce": nonce, "classes": self._classes})
        if answer[0] == "none":
            _, cursor, due, outcomes = answer
            next_due = None if int(due) < 0 else int(due) / 1000
            return Nothing(cursor, next_due, Outcome.parse_all(outcomes))
        _, job_id, fence, attempts, deadline, now, body, outcomes = answer
        left = (int(deadline) - int(now)) / 1000 if deadline else None
        return Claim(job_id, nonce, int(fence), int(attempts), left, body, Outcome.parse_all(outcomes))

    async def beat(self, claim: Claim, step: int = 0, total_steps: int = 0, phase: str = "") -> BeatAnswer:
        progress = {"step": step, "total": total_steps, "phase": phase}
        return BeatAnswer(await self._call("beat", {**_holder(claim), **progress}))

    async def commit(self, claim: Claim, result: str, *, adopted: bool = False) -> CommitAnswer:
        return CommitAnswer(await self._call("commit", {**_holder(claim), "adopted": adopted}, result))

    async def fail(self, claim: Claim, kind: FailKind, reason: str, message: str) -> Settlement:
        arguments = {
            **_holder(claim),
            "kind": kind.value,
            "reason": reason,
            "message": message[:MESSAGE_LIMIT],
            # Redis seeds Lua's random numbers alike for every script run: the jitter has to come from here.
            "jitter": random.random(),  # noqa: S311
        }
        status, state = await self._call("fail", arguments)
        return Settlement(status, JobState(state) if state else None)

    async def cancel(self, job_id: str) -> Settlement:
        """Returns only when the configured number of replicas knows it too."""
        status, state = await self._call("cancel", {"id": job_id}, replicas=self._replicas)
        return Settlement(status, JobState(state) if state else None)

    async def tick(self) -> TickReport:
        report = json.loads(await self._call("tick", {}))
        outcomes = Outcome.parse_all(json.dumps(report.pop("outcomes")))
        return TickReport(**report, outcomes=outcomes)

    async def stats(self) -> QueueStats:
        live_ms = round(self._settings.lease_seconds * 1000)
        return QueueStats(**json.loads(await self._call("stats", {"classes": self._classes, "live_ms": live_ms})))

    async def register(self, worker: str, **description: str) -> int:
        """Keys of `description`: boot_id, state, engine, fingerprint, synthetic."""
        return int(await self._call("worker", {"worker": worker, **description}))

    # --- reads ---------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> JobRecord | None:
        return (await self.get_many([job_id]))[0]

    async def get_many(self, job_ids: list[str]) -> list[JobRecord | None]:
        async def read(client: Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hgetall(keys.job(job_id))
                pipeline.zrank(keys.ready(self._settings.worker_class), job_id)
            return list(await pipeline.execute())

        answers = await self._link.run(read)
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [JobRecord.parse(raw, rank) if raw.get("state") else None for raw, rank in pairs]

    async def list_ids(self, user: str | None, before: str | None, limit: int) -> list[str]:
        """Newest first: ids sort by time. `before` is the last id of the previous page."""
        key = keys.ALL_JOBS if user is None else keys.user_jobs(user)
        top = f"({before}" if before else "+"

        async def read(client: Redis) -> list[str]:
            return cast("list[str]", await client.zrevrangebylex(key, top, "-", start=0, num=limit))

        return await self._link.run(read)

    async def request_body(self, job_id: str) -> str | None:
        async def read(client: Redis) -> str | None:
            return cast("str | None", await client.get(keys.request(job_id)))

        return await self._link.run(read)

    async def events_after(self, job_id: str, last_id: str, limit: int = 200) -> list[StreamEvent]:
        return await self._read_events(keys.job_events(job_id), f"({last_id}", limit)

    async def cluster_events(self, seconds: float, limit: int = 5000) -> list[dict[str, str]]:
        """Cluster events of the last `seconds`, oldest first, by the server's clock."""

        async def read(client: Redis) -> list[dict[str, str]]:
            now, _ = await client.time()
            start = str(int((now - seconds) * 1000))
            entries = cast("StreamEntries", await client.xrange(keys.EVENTS, start, "+", limit))
            return [{"id": entry_id, **values} for entry_id, values in entries]

        return await self._link.run(read)

    async def _read_events(self, key: str, start: str, limit: int) -> list[StreamEvent]:
        async def read(client: Redis) -> list[StreamEvent]:
            entries = cast("StreamEntries", await client.xrange(key, start, "+", limit))
            return [StreamEvent(entry_id, values["type"], json.loads(values["data"])) for entry_id, values in entries]

        return await self._link.run(read)

    async def wait_for_work(self, cursor: str, seconds: float) -> None:
        """Blocks on the wake stream until a job enters the line, at most `seconds` (well below the socket timeout)."""
        milliseconds = max(1, round(seconds * 1000))

        async def read(client: Redis) -> None:
            await client.xread({keys.WAKE: cursor}, count=1, block=milliseconds)

        await self._link.run(read)

    async def workers(self) -> list[WorkerRecord]:
        async def read(client: Redis) -> list[WorkerRecord]:
            now, microseconds = await client.time()
            names = cast("list[str]", await client.zrange(keys.WORKERS, 0, -1))
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.hgetall(keys.worker(name))
            rows = await pipeline.execute() if names else []
            moment = now + microseconds / 1e6
            return [_worker(name, row, moment) for name, row in zip(names, rows, strict=True) if row]

        return await self._link.run(read)

    async def check_writable(self) -> None:
        """Writes, and waits for the replicas, as a submit would."""
        replicas = self._replicas

        async def write(client: Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.set(keys.WRITE_PROBE, "1", ex=60)
            if replicas:
                pipeline.execute_command("WAIT", replicas, WAIT_MILLISECONDS)
            answers = await pipeline.execute()
            if replicas and int(answers[1]) < replicas:
                raise QueueUnavailable(f"only {answers[1]} of {replicas} replicas answer")

        await self._link.run(write)

    # --- scripts -------------------------------------------------------------------------------------------------

    async def _call(self, name: str, arguments: dict[str, Any], *extra: str, replicas: int = 0) -> Any:
        script = self._scripts[name]
        # Half a surrogate pair (in a message from elsewhere) is no text for cjson.
        text = json.dumps({**self._config, **arguments}, ensure_ascii=False).encode("utf-8", "replace").decode()
        argv = (text, *extra)

        async def call(client: Redis) -> Any:
            try:
                return await self._evaluate(client, script, argv, replicas)
            except NoScriptError:
                await client.script_load(script.source)
                return await self._evaluate(client, script, argv, replicas)

        answer = await self._link.run(call)
        if answer is None:
            raise QueueError(f"the script {name} gave no answer")
        return answer

    async def _evaluate(self, client: Redis, script: Script, argv: tuple[str, ...], replicas: int) -> Any:
        arguments = (script.sha1, len(keys.SCRIPT_KEYS), *keys.SCRIPT_KEYS, *argv)
        if not replicas:
            return await client.evalsha(script.sha1, len(keys.SCRIPT_KEYS), *keys.SCRIPT_KEYS, *argv)
        # One pipeline is one connection: WAIT speaks about the writes of its own connection only.
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command("EVALSHA", *arguments)
        pipeline.execute_command("WAIT", replicas, WAIT_MILLISECONDS)
        answer, reached = await pipeline.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(reached, Exception):
            raise reached
        if int(reached) < replicas:
            raise QueueUnavailable(f"the write reached {reached} of {replicas} replicas within {WAIT_MILLISECONDS} ms")
        return answer


def _holder(claim: Claim) -> dict[str, str]:
    return {"id": claim.job_id, "nonce": claim.nonce, "fence": str(claim.fence)}


def _worker(name: str, row: dict[str, str], now: float) -> WorkerRecord:
    return WorkerRecord(
        name=name,
        state=row.get("state", ""),
        job_id=row.get("job"),
        engine=row.get("engine", ""),
        fingerprint=row.get("fingerprint", ""),
        synthetic=row.get("synthetic") == "1",
        boot_id=row.get("boot_id", ""),
        seq=int(row.get("seq", 0)),
        heartbeat_age_seconds=round(max(0.0, now - int(row.get("seen", 0)) / 1000), 3),
    )
