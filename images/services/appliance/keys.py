"""Every Redis key of the appliance. All share the hash tag {q}, so that one script may touch them together."""

from __future__ import annotations

TAG = "{q}"

READY = f"{TAG}:ready"
VIRTUAL_FINISH = f"{TAG}:vft"
DELAYED = f"{TAG}:delayed"
LEASE = f"{TAG}:lease"
DONE = f"{TAG}:done"
DEADLINE = f"{TAG}:deadline"
RUN = f"{TAG}:run"
WAKE = f"{TAG}:wake"
EVENTS = f"{TAG}:ev"
DEAD = f"{TAG}:dead"
EPOCH = f"{TAG}:epoch"
STATS = f"{TAG}:stats"
WORKERS = f"{TAG}:workers"
ALL_JOBS = f"{TAG}:jobs"
WRITE_PROBE = f"{TAG}:probe"

JOB_PREFIX = f"{TAG}:j:"
REQUEST_PREFIX = f"{TAG}:p:"
JOB_EVENTS_PREFIX = f"{TAG}:ev:"
WORKER_PREFIX = f"{TAG}:w:"
USER_JOBS_PREFIX = f"{TAG}:jobs:"
IDEMPOTENCY_PREFIX = f"{TAG}:idem:"

RUN_GROUP = "g"
DEFAULT_CLASS = "default"

# Passed as KEYS to every script in this order; scripts/shared.lua gives each its name again.
SCRIPT_KEYS = (
    READY,
    VIRTUAL_FINISH,
    DELAYED,
    LEASE,
    DONE,
    DEADLINE,
    RUN,
    WAKE,
    EVENTS,
    DEAD,
    EPOCH,
    STATS,
    WORKERS,
    ALL_JOBS,
    JOB_PREFIX,
    REQUEST_PREFIX,
    JOB_EVENTS_PREFIX,
    WORKER_PREFIX,
    USER_JOBS_PREFIX,
)


def ready(worker_class: str = DEFAULT_CLASS) -> str:
    return READY if worker_class == DEFAULT_CLASS else f"{READY}:{worker_class}"


def job(job_id: str) -> str:
    return JOB_PREFIX + job_id


def request(job_id: str) -> str:
    return REQUEST_PREFIX + job_id


def job_events(job_id: str) -> str:
    return JOB_EVENTS_PREFIX + job_id


def worker(name: str) -> str:
    return WORKER_PREFIX + name


def user_jobs(user: str) -> str:
    return USER_JOBS_PREFIX + user


def idempotency(user: str, key: str) -> str:
    return f"{IDEMPOTENCY_PREFIX}{user}:{key}"
