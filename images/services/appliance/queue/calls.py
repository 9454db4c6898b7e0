"""How a script is called: loaded where Redis does not know it, and surely where its answer is a promise."""

from __future__ import annotations

import json
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from appliance import keys
from appliance.errors import QueueError, QueueUnavailable
from appliance.queue.scripts import load_scripts
from appliance.redis_link import RedisLink, execute, execute_all
from appliance.settings import QueueSettings

WAIT_MILLISECONDS = 500
# For the rest of the replicas, once enough have it: any of them may be the next master, and Sentinel chooses by offsets
# that may be a second old.
WAIT_FOR_ALL_MILLISECONDS = 50
Command = tuple[bytes | str | int, ...]
to_json = json.JSONEncoder(ensure_ascii=False).encode


class Calls:
    def __init__(self, link: RedisLink, settings: QueueSettings) -> None:
        self._link = link
        self._scripts = load_scripts(
            {
                "lease_ms": round(settings.lease_seconds * 1000),
                "beat_ms": round(settings.beat_seconds * 1000),
                "grace_ms": round(settings.failover_grace_seconds * 1000),
                # Ticks come twice a second: a longer silence of all scripts means that Redis itself stood still.
                "stall_ms": round(max(1.5, settings.lease_seconds / 2) * 1000),
                "queue_limit": settings.queue_limit,
                "crash_budget": settings.crash_budget,
                "error_budget": settings.error_budget,
                "oom_budget": settings.oom_budget,
                "retention_ms": round(settings.retention_seconds * 1000),
            }
        )

    async def call(
        self, name: str, arguments: dict[str, Any], *extra: str, replicas: int = 0, wait: Command = ()
    ) -> Any:
        """Returns only when so many `replicas` have what it wrote. `wait` is a command that goes ahead: the script runs
        in the very moment that it is over."""
        script = self._scripts[name]
        # Half a surrogate pair (in a message from elsewhere) is no text for cjson.
        argv: Command = (to_json(arguments).encode("utf-8", "replace"), *extra)
        command = ("EVALSHA", script.sha1, 1, keys.READY, *argv)

        async def evaluate(client: Redis, wait: Command = ()) -> Any:
            if replicas:
                return await self._evaluate_safely(client, command, replicas)
            return await (_evaluate_after(client, wait, command) if wait else execute(client, *command))

        async def call(client: Redis) -> Any:
            try:
                return await evaluate(client, wait)
            except NoScriptError:  # what was waited for has come
                await client.script_load(script.source)
                return await evaluate(client)

        answer = await self._link.run(call)
        if answer is None:
            raise QueueError(f"the script {name} gave no answer")
        return answer

    async def _evaluate_safely(self, client: Redis, command: Command, replicas: int) -> Any:
        # One pipeline is one connection: WAIT speaks about the writes of its own connection only.
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command(*command)
        pipeline.execute_command("WAIT", replicas, WAIT_MILLISECONDS)
        pipeline.execute_command("WAIT", self._link.most_replicas, WAIT_FOR_ALL_MILLISECONDS)
        answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        answer, reached, _ = answers
        if int(reached) < replicas:
            raise QueueUnavailable(f"the write reached {reached} of {replicas} replicas within {WAIT_MILLISECONDS} ms")
        await self._link.confirm(client)
        return answer


async def _evaluate_after(client: Redis, wait: Command, command: Command) -> Any:
    woken, answer = await execute_all(client, wait, command)
    if isinstance(woken, ResponseError) and "NOGROUP" in str(woken):
        (woken,) = await execute_all(client, ("XGROUP", "CREATE", keys.WAKE, keys.WAKE_GROUP, "0", "MKSTREAM"))
        if "BUSYGROUP" in str(woken):  # another one was quicker
            woken = None
    for error in (woken, answer):
        if isinstance(error, Exception):
            raise error
    return answer
