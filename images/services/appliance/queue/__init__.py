"""The job queue on Redis: one typed client, one Lua script per atomic move."""

from appliance.queue.client import Queue
from appliance.queue.taker import Taker
from appliance.queue.types import (
    Asker,
    AttemptRecord,
    BeatAnswer,
    Claim,
    CommitAnswer,
    FailKind,
    JobRecord,
    Nothing,
    Outcome,
    Settlement,
    Submission,
)

__all__ = [
    "Asker",
    "AttemptRecord",
    "BeatAnswer",
    "Claim",
    "CommitAnswer",
    "FailKind",
    "JobRecord",
    "Nothing",
    "Outcome",
    "Queue",
    "Settlement",
    "Submission",
    "Taker",
]
