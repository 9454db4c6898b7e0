"""How jobs ended, as the queue keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PastLine = Literal["done", "delayed", "lease", "ready"]


@dataclass(frozen=True)
class PastJob:
    """What is kept of how a job's attempts ended, as texts: to parse thousands takes long, and not here.

    `finished_at` is None for a job that is tried again. `parameters` and `history` are JSON, or empty.
    """

    job_id: str
    state: str
    finished_at: float | None
    reason: str
    message: str
    parameters: str
    history: str

    @classmethod
    def parse(cls, row: Sequence[str]) -> PastJob:
        job_id, state, finished, *texts = row
        return cls(job_id, state, int(finished) / 1000 if finished else None, *texts)
