"""Every Redis key of the appliance. All share the hash tag {q}, so that one script may touch them together."""

from __future__ import annotations

from appliance.job import DEFAULT_CLASS

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
CLASSES = f"{TAG}:classes"
TRASH = f"{TAG}:trash"
CONTROL = f"{TAG}:ctl"  # a pub/sub channel
WRITE_PROBE = f"{TAG}:probe"
ORDERS = f"{TAG}:cfg:nodes"
VIEWS = f"{TAG}:views"
RATES = f"{TAG}:rates"
AWS_COST = f"{TAG}:aws"
TALLY = f"{TAG}:tally"

JOB_PREFIX = f"{TAG}:j:"
REQUEST_PREFIX = f"{TAG}:p:"
JOB_EVENTS_PREFIX = f"{TAG}:ev:"
PREVIEW_PREFIX = f"{TAG}:pv:"
WORKER_PREFIX = f"{TAG}:w:"
USER_JOBS_PREFIX = f"{TAG}:jobs:"
IDEMPOTENCY_PREFIX = f"{TAG}:idem:"
NOTES_PREFIX = f"{TAG}:notes:"
VIEW_PREFIX = f"{TAG}:view:"
COUNTS_PREFIX = f"{TAG}:counts:"
LABELS_PREFIX = f"{TAG}:labels:"
PROCESSES_PREFIX = f"{TAG}:proc:"

RUN_GROUP = "g"
WAKE_GROUP = "w"

# The names that the Lua scripts have for them: K.ready and so on, replaced when a script is loaded.
SCRIPT_KEYS = {
    "ready": READY,
    "vft": VIRTUAL_FINISH,
    "delayed": DELAYED,
    "lease": LEASE,
    "done": DONE,
    "deadline": DEADLINE,
    "run": RUN,
    "wake": WAKE,
    "ev": EVENTS,
    "dead": DEAD,
    "epoch": EPOCH,
    "stats": STATS,
    "workers": WORKERS,
    "all": ALL_JOBS,
    "classes": CLASSES,
    "trash": TRASH,
    "ctl": CONTROL,
    "orders": ORDERS,
    "rates": RATES,
    "counts": COUNTS_PREFIX,
    "tally": TALLY,
    "labels": LABELS_PREFIX,
    "j": JOB_PREFIX,
    "p": REQUEST_PREFIX,
    "jev": JOB_EVENTS_PREFIX,
    "pv": PREVIEW_PREFIX,
    "w": WORKER_PREFIX,
    "ujobs": USER_JOBS_PREFIX,
}


def ready(worker_class: str = DEFAULT_CLASS) -> str:
    return READY if worker_class == DEFAULT_CLASS else f"{READY}:{worker_class}"


def job(job_id: str) -> str:
    return JOB_PREFIX + job_id


def request(job_id: str) -> str:
    return REQUEST_PREFIX + job_id


def preview(job_id: str) -> str:
    return PREVIEW_PREFIX + job_id


def job_events(job_id: str) -> str:
    return JOB_EVENTS_PREFIX + job_id


def worker(name: str) -> str:
    return WORKER_PREFIX + name


def user_jobs(user: str) -> str:
    return USER_JOBS_PREFIX + user


def idempotency(user: str, key: str) -> str:
    return f"{IDEMPOTENCY_PREFIX}{user}:{key}"


def notes(user: str) -> str:
    return NOTES_PREFIX + user


def view(gateway: str) -> str:
    return VIEW_PREFIX + gateway


def counts(host: str) -> str:
    return COUNTS_PREFIX + host


def labels(kind: str) -> str:
    return LABELS_PREFIX + kind


def processes(host: str) -> str:
    return PROCESSES_PREFIX + host
