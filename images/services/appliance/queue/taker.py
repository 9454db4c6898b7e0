"""One worker's way to its jobs: with the commit of the one before where more wait, else in line until one arrives."""

from __future__ import annotations

import time
import uuid

from appliance.queue.client import Queue
from appliance.queue.types import Asker, Claim, CommitAnswer, Nothing

# Below the socket timeout: a blocking read that times out would look like an outage.
WAIT_MOST_SECONDS = 0.7
WAIT_LEAST_SECONDS = 0.02
# After a job, while nobody has told when the next lease runs out.
WAIT_FIRST_SECONDS = 0.1
# What was told before that is no reason to wait: others may have been woken for what is in line now.
RECENT_SECONDS = 0.2


class Taker:
    """One call at a time. A call that fails may be repeated, in either way: it goes on under the same nonce, so that a
    job which Redis has leased to a lost answer is what the next answer tells."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._nonce = uuid.uuid4().hex
        self._wait_seconds = 0.0
        self._told_at = time.monotonic()

    async def take(self, asker: Asker) -> Claim | Nothing:
        """Nothing after at most WAIT_MOST_SECONDS, or when there is something to look after."""
        wait, self._wait_seconds = self._wait_seconds, 0.0
        if time.monotonic() - self._told_at > RECENT_SECONDS:
            wait = 0.0
        answer = await self._queue.claim(
            asker.worker,
            self._nonce,
            asker.capabilities,
            boot_id=asker.boot_id,
            gpu=asker.gpu,
            wait_seconds=wait,
        )
        self._note(answer)
        return answer

    async def commit(
        self,
        claim: Claim,
        result: str,
        asker: Asker | None,
        *,
        adopted: bool = False,
        model: str = "",
        video_seconds: float = 0.0,
    ) -> tuple[CommitAnswer, Claim | Nothing | None]:
        """With what the worker has next where more jobs wait and `asker` wants one; else None, and `take` is next."""
        if asker is None or not claim.more:
            answer = await self._queue.commit(claim, result, adopted=adopted, model=model, video_seconds=video_seconds)
            return answer, None
        committed, following = await self._queue.commit_and_claim(
            claim, result, asker, self._nonce, adopted=adopted, model=model, video_seconds=video_seconds
        )
        if following is not None:
            self._note(following)
        return committed, following

    def _note(self, answer: Claim | Nothing) -> None:
        self._nonce = uuid.uuid4().hex
        self._told_at = time.monotonic()
        if isinstance(answer, Claim):
            self._wait_seconds = 0.0 if answer.more else WAIT_FIRST_SECONDS
            return
        due = answer.next_due_seconds
        self._wait_seconds = WAIT_MOST_SECONDS if due is None else min(WAIT_MOST_SECONDS, max(WAIT_LEAST_SECONDS, due))
