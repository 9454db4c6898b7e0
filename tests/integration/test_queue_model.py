"""The queue against a small model of it in memory: hypothesis makes up the moves, Redis has to agree after each."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of the parameters
from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from appliance import keys
from appliance.job import Capabilities, JobState, Needs, Priority
from appliance.queue import BeatAnswer, Claim, CommitAnswer, FailKind, Queue, Submission
from appliance.redis_link import RedisLink
from appliance.settings import QueueSettings
from tests.integration.redis_server import PASSWORD, RedisServer, redis_server, submission  # noqa: F401

pytestmark = pytest.mark.docker
T = TypeVar("T")

# Nothing runs out by itself: leases and delays end when a rule says so.
CALM = QueueSettings(lease_seconds=600, beat_seconds=1, failover_grace_seconds=0, queue_limit=6, oom_budget=2)
TOON = Needs(model="toon")
WORKERS: dict[str, Capabilities | None] = {"a/0": Capabilities(models=("sd15",)), "b/0": None, "c/0": None, "d/0": None}
KINDS = tuple(FailKind)


@dataclass
class ModelJob:
    needs: Needs
    state: JobState = JobState.QUEUED
    claim: Claim | None = None
    worker: str = ""
    cancel: bool = False
    expired: bool = False
    due: bool = False
    replayed: bool = False
    attempts: int = 0
    errors: int = 0
    ooms: int = 0
    refusals: int = 0
    crashes: list[str] = field(default_factory=list)

    def end(self, kind: FailKind) -> None:
        self.expired = False
        if self.cancel or kind is FailKind.CANCELLED:
            self.finish(JobState.CANCELLED)
        elif kind is FailKind.PERMANENT:
            self.finish(JobState.DEAD)
        elif kind is FailKind.CRASH:
            self.crashes.append(self.worker)
            spent = len(set(self.crashes)) >= CALM.crash_budget or len(self.crashes) >= 5 * CALM.crash_budget
            self.retry(spent, later=False)
        elif kind is FailKind.ERROR:
            self.errors += 1
            self.retry(self.errors >= CALM.error_budget, later=True)
        elif kind is FailKind.OOM:
            self.ooms += 1
            self.retry(self.ooms >= CALM.oom_budget, later=True)
        elif kind is FailKind.REFUSED:
            self.refusals += 1
            self.retry(False, later=self.refusals > 3)
        else:
            self.retry(False, later=False)

    def retry(self, spent: bool, *, later: bool) -> None:
        if spent:
            self.finish(JobState.DEAD)
        else:
            self.state = JobState.DELAYED if later else JobState.QUEUED

    def finish(self, state: JobState) -> None:
        self.state, self.cancel, self.due, self.replayed = state, False, False, False

    def live_again(self) -> None:
        self.state, self.replayed = JobState.QUEUED, True
        self.errors = self.ooms = self.refusals = 0
        self.crashes.clear()


class QueueMachine(RuleBasedStateMachine):
    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = Redis(host="127.0.0.1", port=server.port, password=PASSWORD, decode_responses=True)
        # Not about outages: a busy machine may keep its Redis waiting.
        patient = replace(server.settings, socket_timeout_seconds=30, connect_timeout_seconds=10)
        self.queue = Queue(RedisLink(patient), CALM)
        self.run(self.redis.flushall())
        self.run(self.queue.tick())
        self.jobs: dict[str, ModelJob] = {}
        self.submissions: dict[str, Submission] = {}
        self.claims: list[Claim] = []
        self.held: dict[str, Claim] = {}
        self.nonces = itertools.count()

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.queue.close())
        self.run(self.redis.aclose())
        self.loop.close()

    def in_state(self, *states: JobState) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.state in states]

    def holds(self, claim: Claim) -> bool:
        job = self.jobs[claim.job_id]
        return job.state is JobState.RUNNING and job.claim is claim

    # --- clients -----------------------------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from("ab"),
        priority=st.sampled_from(Priority),
        needs=st.sampled_from((Needs(), Needs(), TOON)),
        key=st.sampled_from((None, None, "k")),
        body=st.sampled_from(("{}", '{"other":1}')),
    )
    def submit(self, user: str, priority: Priority, needs: Needs, key: str | None, body: str) -> None:
        job = submission(user=user, priority=priority, needs=needs, idempotency_key=key, body=body)
        known = [
            other for other in self.submissions.values() if key and (other.user, other.idempotency_key) == (user, key)
        ]
        answer = self.run(self.queue.submit(job))
        if known:
            expected = "duplicate" if known[0].body == body else "conflict"
            assert (answer.status, answer.job_id) == (expected, known[0].job_id)
        elif len(self.in_state(JobState.QUEUED, JobState.DELAYED)) >= CALM.queue_limit:
            assert answer.status == "full"
        else:
            assert (answer.status, answer.job_id, answer.state) == ("ok", job.job_id, JobState.QUEUED)
            self.jobs[job.job_id] = ModelJob(needs)
            self.submissions[job.job_id] = job

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        answer = self.run(self.queue.submit(self.submissions[job_id]))
        assert (answer.status, answer.job_id, answer.state) == ("duplicate", job_id, self.jobs[job_id].state)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        job = self.jobs[job_id]
        answer = self.run(self.queue.cancel(job_id))
        if job.state is JobState.RUNNING:
            job.cancel = True
            assert answer.status == "requested"
        elif job.state.is_final:
            assert (answer.status, answer.state) == ("final", job.state)
        else:
            job.finish(JobState.CANCELLED)
            assert answer.status == "cancelled"

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.in_state(JobState.DEAD) or list(self.jobs)))
        job = self.jobs[job_id]
        answer = self.run(self.queue.requeue_dead(job_id))
        if job.state is JobState.DEAD:
            job.live_again()
            assert answer.status == "settled"
        else:
            assert (answer.status, answer.state) == ("replay" if job.replayed else "final", job.state)

    # --- workers -----------------------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from(list(WORKERS)))
    def claim(self, worker: str) -> None:
        can = WORKERS[worker]
        answer = self.run(self.queue.claim(worker, f"n{next(self.nonces)}", can))
        if worker in self.held and self.holds(self.held[worker]):
            self.jobs[self.held[worker].job_id].end(FailKind.CRASH)
        self.held.pop(worker, None)
        self.pass_time()
        fitting = [
            job_id for job_id in self.in_state(JobState.QUEUED) if can is None or not can.lacks(self.jobs[job_id].needs)
        ]
        if not isinstance(answer, Claim):
            assert fitting == []
            return
        job = self.jobs[answer.job_id]
        scores = {job_id: float(self.run(self.redis.hget(keys.job(job_id), "score"))) for job_id in fitting}
        assert answer.job_id in scores
        assert scores[answer.job_id] == min(scores.values())
        assert answer.fence > max((claim.fence for claim in self.claims if claim.job_id == answer.job_id), default=0)
        assert (answer.attempts, answer.ooms) == (job.attempts + 1, job.ooms)
        job.state, job.claim, job.worker, job.attempts = JobState.RUNNING, answer, worker, answer.attempts
        self.held[worker] = answer
        self.claims.append(answer)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def claim_again(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[worker]
        job = self.jobs[held.job_id]
        if self.holds(held) and not any(other.expired or other.due for other in self.jobs.values()):
            answer = self.run(self.queue.claim(worker, held.nonce, WORKERS[worker]))
            assert isinstance(answer, Claim)
            assert (answer.job_id, answer.fence, answer.attempts) == (held.job_id, held.fence, job.attempts)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), step=st.integers(0, 3))
    def beat(self, data: st.DataObject, step: int) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        answer = self.run(self.queue.beat(claim, step, 3, "step"))
        if not self.holds(claim):
            assert answer is BeatAnswer.FENCED
            return
        job = self.jobs[claim.job_id]
        job.expired = False
        assert answer is (BeatAnswer.CANCEL if job.cancel else BeatAnswer.OK)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), times=st.integers(1, 2))
    def commit(self, data: st.DataObject, times: int) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        job = self.jobs[claim.job_id]
        for _ in range(times):
            answer = self.run(self.queue.commit(claim, "{}"))
            if self.holds(claim):
                job.finish(JobState.DONE)
                job.expired = False
                assert answer is CommitAnswer.DONE
            elif job.state is JobState.DONE and job.claim is claim:
                assert answer is CommitAnswer.REPLAY
            else:
                assert answer is CommitAnswer.FENCED

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def fail(self, data: st.DataObject, kind: FailKind) -> None:
        claim = data.draw(st.sampled_from([c for c in self.claims if self.holds(c)] or self.claims))
        job = self.jobs[claim.job_id]
        answer = self.run(self.queue.fail(claim, kind, "UNKNOWN", "x"))
        if self.holds(claim):
            job.end(kind)
            assert (answer.status, answer.state) == ("settled", job.state)
        else:
            assert (answer.status, answer.state) == ("replay" if job.claim is claim else "fenced", job.state)

    # --- time --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.in_state(JobState.RUNNING))
    @rule(data=st.data())
    def lose_a_worker(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.in_state(JobState.RUNNING)))
        self.run(self.redis.zadd(keys.LEASE, {job_id: 1}))
        self.jobs[job_id].expired = True

    @precondition(lambda self: self.in_state(JobState.DELAYED))
    @rule(data=st.data())
    def let_a_delay_pass(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.in_state(JobState.DELAYED)))
        self.run(self.redis.zadd(keys.DELAYED, {job_id: 1}))
        self.jobs[job_id].due = True

    def pass_time(self) -> None:
        for job in self.jobs.values():
            if job.due and job.state is JobState.DELAYED:
                job.state = JobState.QUEUED
            job.due = False
            if job.expired and job.state is JobState.RUNNING:
                job.end(FailKind.CRASH)

    @rule()
    def tick(self) -> None:
        expired = sorted(job_id for job_id, job in self.jobs.items() if job.expired)
        report = self.run(self.queue.tick())
        self.pass_time()
        assert sorted(outcome.job_id for outcome in report.outcomes) == expired

    @rule()
    def repair_finds_nothing(self) -> None:
        cursor, report = self.run(self.queue.repair())
        assert report.repaired == 0
        while cursor:
            cursor, report = self.run(self.queue.repair(cursor))
            assert report.repaired == 0

    # --- agreement ---------------------------------------------------------------------------------------------------

    @invariant()
    def every_job_is_where_the_model_has_it(self) -> None:
        for job_id, record in zip(self.jobs, self.run(self.queue.get_many(list(self.jobs))), strict=True):
            assert record is not None
            job = self.jobs[job_id]
            assert record.state is job.state
            assert (record.attempts, record.errors, record.ooms) == (job.attempts, job.errors, job.ooms)
            assert (record.crashes, record.cancel_requested) == (len(job.crashes), job.cancel)
            assert (record.position is not None) == (job.state is JobState.QUEUED)

    @invariant()
    def the_indexes_hold_what_the_states_say(self) -> None:
        running = self.in_state(JobState.RUNNING)
        final = self.in_state(JobState.DONE, JobState.CANCELLED, JobState.DEAD)
        assert sorted(self.run(self.redis.zrange(keys.LEASE, 0, -1))) == sorted(running)
        assert sorted(self.run(self.redis.zrange(keys.DELAYED, 0, -1))) == sorted(self.in_state(JobState.DELAYED))
        assert sorted(self.run(self.redis.zrange(keys.DONE, 0, -1))) == sorted(final)
        assert sorted(row[1]["job"] for row in self.run(self.redis.xrange(keys.RUN))) == sorted(running)
        letters = sorted(row[1]["job"] for row in self.run(self.redis.xrange(keys.DEAD)))
        assert letters == sorted(self.in_state(JobState.DEAD))
        for worker in WORKERS:
            job_id = self.run(self.redis.hget(keys.worker(worker), "job"))
            mine = [other for other in running if self.jobs[other].worker == worker]
            assert mine == ([job_id] if job_id else [])


def test_the_queue_does_what_its_model_does(redis_server: RedisServer, request: pytest.FixtureRequest) -> None:
    many = request.config.getoption("--long")
    run_state_machine_as_test(
        lambda: QueueMachine(redis_server),
        settings=settings(
            max_examples=500 if many else 40,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
